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


async def received(context: Any, wait_s: float = MESSAGE_WAIT_S) -> Any:
    """The call's message, or an Absent."""
    try:
        async with asyncio.timeout(wait_s):
            message = await context.read()
    except TimeoutError:
        return _SLOW
    return _ENDED if message is grpc.aio.EOF else message


def one_message(
    behaviour: Callable[[Any, Any], Awaitable[Any]], wait_s: float = MESSAGE_WAIT_S
) -> Callable[[Any, Any], Awaitable[Any]]:
    """For a handler of stream_unary; `behaviour` hears of an Absent too."""

    async def receive(requests: Any, context: Any) -> Any:
        return await behaviour(await received(context, wait_s), context)

    return receive


def one_message_answered_by_many(
    behaviour: Callable[[Any, Any], AsyncIterator[Any]], wait_s: float = MESSAGE_WAIT_S
) -> Callable[[Any, Any], AsyncIterator[Any]]:
    """For a handler of stream_stream."""

    async def receive(requests: Any, context: Any) -> AsyncIterator[Any]:
        message = await received(context, wait_s)
        if isinstance(message, Absent):
            await abort(context, message.refusal)
        async for answer in behaviour(message, context):
            yield answer

    return receive
