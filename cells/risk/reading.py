"""Decisions out of the stream, in its order, from any position: for features, and for replays."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import structlog
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from cells.cancellation import go_on_unless_cancelled
from cells.risk.stream import SUBJECTS, ensure_stream
from router.risk.record import STREAM, Record, decode

log = structlog.get_logger(__name__)

_MESSAGES_MAX = 64
# A consumer that nobody asks vanishes from the server.
_INACTIVE_S = 60.0
_WAIT_S = 2.0


Item = TypeVar("Item")


class Message(NamedTuple, Generic[Item]):
    position: int
    stored_ms: int
    # Messages behind it, when it was sent.
    behind: int
    # None of a message that is not ours.
    items: Sequence[Item]


class MessageReader(Generic[Item]):
    """Messages after a position, in order. It keeps no state that would have to be kept."""

    def __init__(self, stream: Any, read: Callable[[bytes], Sequence[Item]]) -> None:
        """`read`: what of a message is wanted; raises ValueError for what is not ours."""
        self._stream = stream
        self._read = read
        self._subscription: Any = None
        # The consumer's own count, which has no holes unless a message was lost on the way.
        self._taken = 0
        self._position = -1

    async def after(self, position: int, wait_s: float) -> list[Message[Item]]:
        """Some; none when there are none within this time."""
        if self._subscription is None or position != self._position:
            await self._open(position)
        try:
            messages = await self._subscription.fetch(_MESSAGES_MAX, timeout=wait_s)
        except TimeoutError:
            go_on_unless_cancelled()
            return []
        found: list[Message[Item]] = []
        for message in messages:
            metadata = message.metadata
            if metadata.sequence.consumer != self._taken + 1:
                log.warning("a message was lost on its way; it is read again")
                self._position = -1
                break
            self._taken += 1
            self._position = metadata.sequence.stream
            found.append(self._message(message))
        return found

    async def _open(self, position: int) -> None:
        await self.close()
        self._subscription = await self._stream.pull_subscribe(
            SUBJECTS,
            stream=STREAM,
            config=ConsumerConfig(
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=position + 1,
                ack_policy=AckPolicy.NONE,
                inactive_threshold=_INACTIVE_S,
                mem_storage=True,
                num_replicas=1,
            ),
        )
        self._taken, self._position = 0, position

    def _message(self, message: Any) -> Message[Item]:
        metadata = message.metadata
        position = int(metadata.sequence.stream)
        found: Sequence[Item] = ()
        try:
            found = self._read(message.data)
        except ValueError:
            log.error("a message holds no records of ours; it is left out", position=position)
        stored_ms = int(metadata.timestamp.timestamp() * 1000)
        return Message(position, stored_ms, int(metadata.num_pending), found)

    async def close(self) -> None:
        if self._subscription is not None:
            subscription, self._subscription = self._subscription, None
            await subscription.unsubscribe()


async def records(stream: Any) -> AsyncIterator[Record]:
    """All that the stream holds when this begins, oldest first."""
    await ensure_stream(stream)
    reader = MessageReader(stream, decode)
    last, position = int((await stream.stream_info(STREAM)).state.last_seq), 0
    while position < last:
        messages = await reader.after(position, _WAIT_S)
        if not messages and await is_end(stream, position):
            break
        for message in messages:
            position = message.position
            for record in message.items:
                yield record
    await reader.close()


async def is_end(stream: Any, position: int) -> bool:
    """Whether there is nothing behind it: the last messages may have been deleted."""
    try:
        await stream.get_msg(STREAM, seq=position + 1, next=True, subject=SUBJECTS)
    except NotFoundError:
        return True
    return False
