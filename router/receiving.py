"""The one message of a unary call: it comes within a bound, or the call ends.

grpc.aio (1.85) waits for it for ever, and when the stream ends without one it neither calls the
handler nor answers: the call then holds a place at this server, and at the edge before it, until
its connection ends. So servers register their unary methods as streams and read one message.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from router.errors import Refusal, abort

# Headers and message travel together; a slow network takes a second. The edge sends on only what
# it has whole.
MESSAGE_WAIT_S = 5.0

_MISSING = Refusal(
    grpc.StatusCode.INVALID_ARGUMENT,
    "MESSAGE_MISSING",
    "the call ended without its message",
)
_LATE = Refusal(
    grpc.StatusCode.DEADLINE_EXCEEDED,
    "MESSAGE_LATE",
    "the call's message did not come; nothing was executed",
)


class Absent:
    """In place of a message that did not come: what its caller hears."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal


_ENDED, _SLOW = Absent(_MISSING), Absent(_LATE)


class _Waits:
    """Calls that wait for their message, longest first. One timer for all: one for each would cost
    a call some microseconds."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._since: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._is_looking = False

    async def message(self, context: Any) -> Any:
        """The call's message, or an Absent."""
        task = asyncio.current_task()
        assert task is not None, "a handler runs in a task"
        loop = task.get_loop()
        self._since[task] = loop.time()
        if not self._is_looking:
            self._is_looking = True
            loop.call_later(self._wait_s, self._look, loop)
        try:
            message = await context.read()
        except asyncio.CancelledError:
            if task in self._late and task.uncancel() == 0:
                return _SLOW
            raise
        finally:
            self._since.pop(task, None)
            self._late.discard(task)
        return _ENDED if message is grpc.aio.EOF else message

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ends the waits that are over, and looks again when the next may be."""
        now = loop.time()
        while self._since:
            task, since = next(iter(self._since.items()))
            if since + self._wait_s > now:
                loop.call_at(since + self._wait_s, self._look, loop)
                return
            del self._since[task]
            self._late.add(task)
            task.cancel()
        self._is_looking = False


def one_message(
    behaviour: Callable[[Any, Any], Awaitable[Any]], wait_s: float = MESSAGE_WAIT_S
) -> Callable[[Any, Any], Awaitable[Any]]:
    """For a handler of stream_unary; `behaviour` hears of an Absent too."""
    waits = _Waits(wait_s)

    async def receive(requests: Any, context: Any) -> Any:
        return await behaviour(await waits.message(context), context)

    return receive


def one_message_answered_by_many(
    behaviour: Callable[[Any, Any], AsyncIterator[Any]], wait_s: float = MESSAGE_WAIT_S
) -> Callable[[Any, Any], AsyncIterator[Any]]:
    """For a handler of stream_stream."""
    waits = _Waits(wait_s)

    async def receive(requests: Any, context: Any) -> AsyncIterator[Any]:
        message = await waits.message(context)
        if isinstance(message, Absent):
            await abort(context, message.refusal)
        async for answer in behaviour(message, context):
            yield answer

    return receive
