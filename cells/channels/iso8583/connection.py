"""One connection to a bank: frames out, frames in, each answer to whom it belongs.

Nothing that arrives raises out of `data_received`. A frame that cannot be read is dropped and
counted; when it is not known any more where frames begin, or too many in a row cannot be read, the
connection is closed. No log line holds a field's content except types and STANs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import structlog

from cells.channels.iso8583.codec import Codec, Fields, Undecodable
from cells.channels.iso8583.framing import Framer, FramingLost

log = structlog.get_logger(__name__)

_UNREADABLE_MAX = 8

# A message as it came, and its fields.
Receiver = Callable[[bytes, Fields], None]


def _ignore(message: bytes, fields: Fields) -> None:
    return None


class Connection(asyncio.Protocol):
    def __init__(self, channel: str, framer: Framer, codec: Codec) -> None:
        self._channel = channel
        self._framer = framer
        self._codec = codec
        # Set before the first byte can come.
        self.receive: Receiver = _ignore
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._unreadable = 0
        # Done when the connection is.
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def writable(self) -> bool:
        """The bank takes what we send; else more would only queue up here."""
        return not self._paused and self._transport is not None and not self.lost.done()

    def send(self, message: bytes) -> None:
        """Raises ValueError for a message too long."""
        assert self._transport is not None
        self._transport.write(self._framer.wrap(message))

    async def first(self, other: asyncio.Future[Any], timeout_s: float) -> None:
        """Until the connection is lost, the other is done, or the time is over."""
        either: set[asyncio.Future[Any]] = {self.lost, other}
        await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are no subclass of it.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._framer.feed(data):
                self._take(message)
        except FramingLost as error:
            log.warning("iso8583.framing_lost", channel=self._channel, why=str(error))
            self.close()

    def _take(self, message: bytes) -> None:
        try:
            fields = self._codec.decode(message)
        except Undecodable as error:
            self._count_unreadable(str(error))
            return
        self._unreadable = 0
        self.receive(message, fields)

    def _count_unreadable(self, why: str) -> None:
        self._unreadable += 1
        log.warning("iso8583.unreadable", channel=self._channel, why=why, row=self._unreadable)
        if self._unreadable >= _UNREADABLE_MAX:
            log.warning("iso8583.closed_as_unreadable", channel=self._channel)
            self.close()
