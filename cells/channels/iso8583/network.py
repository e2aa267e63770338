"""Network messages (0800): sign-on, echo, and working keys under the zone master key.

Either side may begin an echo or a key change. The key before stays good for answers that were on
their way when it changed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from cells.channels.iso8583.codec import Codec, Fields, Unencodable
from cells.channels.iso8583.connection import Connection
from cells.channels.iso8583.dialect import Dialect
from cells.channels.iso8583.mac import KeyRefused, Mac, unwrap_key

log = structlog.get_logger(__name__)


class NetworkRefused(Exception):
    """The bank does not let us in, or gives no key that we can use."""


class WorkingKeys:
    """The MAC's key, and for a while the one before."""

    def __init__(self, dialect: Dialect, master: bytes) -> None:
        self._dialect = dialect
        self._master = master
        self._macs: tuple[Mac, ...] = ()
        self._old_until = 0.0
        # Wrong MACs in a row.
        self._wrong = 0
        # A new key is needed before its time.
        self.doubted = asyncio.Event()

    @property
    def current(self) -> Mac | None:
        return self._macs[0] if self._macs else None

    def believed(self) -> tuple[Mac, ...]:
        if len(self._macs) > 1 and time.monotonic() > self._old_until:
            self._macs = self._macs[:1]
        return self._macs

    def install(self, text: str) -> None:
        """Raises KeyRefused."""
        keys = self._dialect.keys
        if keys is None:
            raise KeyRefused("a key, where none is used")
        mac = Mac(self._dialect.mac, unwrap_key(keys.scheme, self._master, text))
        self._macs = (mac, *self._macs[:1])
        self._old_until = time.monotonic() + keys.overlap_s
        self._wrong = 0
        self.doubted.clear()

    def count(self, verified: bool) -> None:
        keys = self._dialect.keys
        self._wrong = 0 if verified else self._wrong + 1
        if keys is not None and self._wrong >= keys.wrong_macs_max:
            self.doubted.set()


class Network:
    """What goes over one connection beside payments."""

    def __init__(
        self,
        channel: str,
        dialect: Dialect,
        codec: Codec,
        keys: WorkingKeys | None,
        next_stan: Callable[[], str],
    ) -> None:
        self._channel = channel
        self._dialect = dialect
        self._codec = codec
        self._keys = keys
        self._next_stan = next_stan
        self._waiting: dict[str, asyncio.Future[Fields]] = {}

    async def sign_on(self, connection: Connection, timeout_s: float) -> None:
        answer = await self._ask(connection, self._dialect.network.sign_on, timeout_s)
        if answer.get("39") != "00":
            raise NetworkRefused(f"sign-on was refused with {answer.get('39', 'no code')!r}")

    async def echo(self, connection: Connection, timeout_s: float) -> None:
        """Raises TimeoutError: the connection is dead. Whatever the answer says, it is alive."""
        await self._ask(connection, self._dialect.network.echo, timeout_s)

    async def change_key(self, connection: Connection, timeout_s: float) -> None:
        keys = self._dialect.keys
        if self._keys is None or keys is None:
            return
        answer = await self._ask(connection, self._dialect.network.key_change, timeout_s)
        if answer.get("39") != "00":
            raise NetworkRefused(f"a key was refused with {answer.get('39', 'no code')!r}")
        try:
            self._keys.install(answer.get(keys.field, ""))
        except KeyRefused as error:
            raise NetworkRefused(str(error)) from None
        log.info("iso8583.key_changed", channel=self._channel)

    def sign_off(self, connection: Connection) -> None:
        """A farewell; nobody waits for its answer."""
        if connection.writable:
            connection.send(self._codec.encode(self._message(self._dialect.network.sign_off), None))

    def receive(self, connection: Connection, fields: Fields) -> None:
        """A message of class 8, an answer or the bank's own. Raises nothing."""
        if fields["t"][2:3] == "0":
            self._reply(connection, fields)
            return
        waiting = self._waiting.get(fields.get("11", ""))
        if waiting is not None and not waiting.done():
            waiting.set_result(fields)

    async def _ask(self, connection: Connection, code: str, timeout_s: float) -> Fields:
        """Raises TimeoutError, ConnectionError."""
        fields = self._message(code)
        stan = fields["11"]
        waiting: asyncio.Future[Fields] = asyncio.get_running_loop().create_future()
        self._waiting[stan] = waiting
        try:
            connection.send(self._codec.encode(fields, None))
            await connection.first(waiting, timeout_s)
            if waiting.done():
                return waiting.result()
            if connection.lost.done():
                raise ConnectionError("the connection was lost")
            raise TimeoutError(f"no answer to network message {code}")
        finally:
            del self._waiting[stan]

    def _message(self, code: str) -> Fields:
        moment = datetime.now(UTC).strftime("%m%d%H%M%S")
        return {"t": "0800", "7": moment, "11": self._next_stan(), "70": code}

    def _reply(self, connection: Connection, fields: Fields) -> None:
        code = "00"
        keys = self._dialect.keys
        if fields.get("70") == self._dialect.network.key_change:
            try:
                if self._keys is None or keys is None:
                    raise KeyRefused("a key, where none is used")
                self._keys.install(fields.get(keys.field, ""))
                log.info("iso8583.key_changed", channel=self._channel)
            except KeyRefused as error:
                log.warning("iso8583.key_refused", channel=self._channel, why=str(error))
                code = "96"
        answer = {"t": "0810", "39": code}
        answer.update({name: fields[name] for name in ("7", "11", "70") if name in fields})
        try:
            message = self._codec.encode(answer, None)
        except Unencodable as error:
            log.warning("iso8583.no_reply", channel=self._channel, why=str(error))
            return
        if connection.writable:
            connection.send(message)
