"""The Channel: keeps one connection to a bank, and finds for each answer the request it belongs to.

What may have left and has no answer is UNKNOWN; what surely has not left is FAILED. A request that
nobody waits for any more is remembered: its late answer goes to the listener.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import NamedTuple

import structlog

from cells.channels.interface import (
    Listener,
    StatementFile,
    StatementMissing,
    StatementSource,
)
from cells.channels.iso8583 import rules
from cells.channels.iso8583.codec import Codec, Fields, Unencodable
from cells.channels.iso8583.connection import Connection
from cells.channels.iso8583.dialect import MacAlgorithm, Spelling
from cells.channels.iso8583.framing import Framer
from cells.channels.iso8583.network import Network, NetworkRefused, WorkingKeys
from cells.channels.iso8583.options import IsoOptions, options_of
from cells.channels.iso8583.rules import Sent
from cells.channels.model import (
    Answer,
    AnswerReason,
    ChannelSettings,
    Heard,
    Operation,
    Request,
    Verdict,
)
from router.waiting import heard

log = structlog.get_logger(__name__)

_STANS = 999_999
# A connection that lived shorter than this counts as one more failure to connect.
_LIVED_S = 5.0


class _Waiting(NamedTuple):
    sent: Sent
    answer: asyncio.Future[Answer]


def open_channel(
    settings: ChannelSettings, listener: Listener, statements: StatementSource | None
) -> IsoChannel:
    """Raises ValueError (pydantic's too) for options that are none, OSError for a missing key."""
    options = options_of(settings.options)
    path = options.zone_master_key_file
    master = bytes.fromhex(path.read_text(encoding="ascii").strip()) if path else b""
    return IsoChannel(settings.name, options, master, listener, statements)


class IsoChannel:
    def __init__(
        self,
        name: str,
        options: IsoOptions,
        master_key: bytes,
        listener: Listener,
        statements: StatementSource | None = None,
    ) -> None:
        self._name = name
        self._options = options
        self._dialect = options.dialect
        self._listener = listener
        self._statements = statements
        self._codec = Codec(options.dialect)
        sealed = options.dialect.mac is not MacAlgorithm.NONE
        self._keys = WorkingKeys(options.dialect, master_key) if sealed else None
        self._stan = random.randrange(_STANS)
        self._pending: dict[str, _Waiting] = {}
        # The oldest is forgotten first.
        self._late: OrderedDict[str, Sent] = OrderedDict()
        self._network = Network(name, options.dialect, self._codec, self._keys, self._next_stan)
        # Signed on, with a key.
        self._connection: Connection | None = None
        self._up = asyncio.Event()
        self._operations = rules.supported(options.dialect)

    @property
    def name(self) -> str:
        return self._name

    @property
    def operations(self) -> frozenset[Operation]:
        return self._operations

    async def fetch_statement(self, day: date, into: Path) -> StatementFile:
        """ISO 8583 has none: banks lay files down elsewhere."""
        if self._statements is None:
            raise StatementMissing(f"{self._name} has no source of statements")
        return await self._statements(day, into)

    # ------------------------------------------------------------------ requests

    async def perform(self, request: Request, timeout_s: float) -> Answer:
        operation = request.operation
        spelling = rules.spelling_of(self._dialect, request)
        if spelling is None:
            return rules.unsent(operation, AnswerReason.UNSUPPORTED)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        if len(self._pending) >= self._options.in_flight_max:
            return rules.unsent(operation, AnswerReason.NOT_SENT, "too many under way")
        try:
            fields, sent = self._prepared(request, spelling)
            if operation is Operation.VOID:
                return await self._reverse(fields, sent, deadline)
            wait_s = min(timeout_s, self._options.ready_wait_s)
            connection = self._connection or await self._ready(wait_s)
            if connection is None or not connection.writable:
                return rules.unsent(operation, AnswerReason.NOT_SENT, "no connection")
            connection.send(self._sealed(fields))
        except (rules.Unsendable, Unencodable, ValueError) as error:
            # The last two never hold what was in a field.
            return rules.unsent(operation, AnswerReason.NOT_SENT, str(error))
        key = rules.match_key(self._dialect, fields)
        waiting = self._expect(key, sent)
        timer = loop.call_at(deadline, self._give_up, key, AnswerReason.TIMED_OUT)
        try:
            return await waiting
        finally:
            timer.cancel()
            # Still there: whoever asked was cancelled.
            self._give_up(key, AnswerReason.TIMED_OUT)

    async def _ready(self, wait_s: float) -> Connection | None:
        await heard(self._up, wait_s)
        return self._connection

    def _prepared(self, request: Request, spelling: Spelling) -> tuple[Fields, Sent]:
        fields = rules.fields_of(
            self._dialect, request, spelling, self._next_stan(), datetime.now(UTC)
        )
        answered_by = rules.answer_types(self._dialect, request, spelling)
        return fields, rules.sent_of(request, answered_by, fields)

    def _sealed(self, fields: Mapping[str, str]) -> bytes:
        if self._keys is None:
            return self._codec.encode(dict(fields), None)
        mac = self._keys.current
        if mac is None:
            raise Unencodable("no key yet")
        return self._codec.encode(dict(fields), mac)

    def _expect(self, key: str, sent: Sent) -> asyncio.Future[Answer]:
        waiting: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._pending[key] = _Waiting(sent, waiting)
        return waiting

    async def _reverse(self, fields: Fields, sent: Sent, deadline: float) -> Answer:
        """Repeated with the same numbers until it is answered, over new connections too."""
        loop = asyncio.get_running_loop()
        key = rules.match_key(self._dialect, fields)
        types = self._dialect.operations.reversal
        answer: Answer | None = None
        tries = 0
        try:
            while loop.time() < deadline:
                connection = self._connection or await self._ready(deadline - loop.time())
                if connection is None:
                    break
                if not connection.writable:
                    await asyncio.sleep(_pause(deadline - loop.time()))
                    continue
                waiting = self._expect(key, sent)
                fields["t"] = types[min(tries, len(types) - 1)]
                connection.send(self._sealed(fields))
                tries += 1
                await connection.first(waiting, min(self._options.repeat_s, deadline - loop.time()))
                if waiting.done():
                    answer = waiting.result()
                    if answer.verdict is not Verdict.UNKNOWN:
                        return answer
                    # Not to be believed, or the bank does not know itself: asked again in a while.
                    rest = min(self._options.repeat_s, deadline - loop.time())
                    await asyncio.wait({connection.lost}, timeout=max(0.0, rest))
        finally:
            self._give_up(key, AnswerReason.TIMED_OUT)
        if not tries:
            return rules.unsent(Operation.VOID, AnswerReason.NOT_SENT, "no connection")
        return answer or Answer(Verdict.UNKNOWN, AnswerReason.TIMED_OUT)

    def _give_up(self, key: str, reason: AnswerReason) -> None:
        waiting = self._pending.pop(key, None)
        if waiting is None:
            return
        self._remember(key, waiting.sent)
        if not waiting.answer.done():
            waiting.answer.set_result(Answer(Verdict.UNKNOWN, reason))

    def _remember(self, key: str, sent: Sent) -> None:
        self._late[key] = sent
        if len(self._late) > self._options.late_max:
            self._late.popitem(last=False)

    def _next_stan(self) -> str:
        """Never 000000. Six digits come round; an answer is found by its reference as well."""
        self._stan = self._stan % _STANS + 1
        return f"{self._stan:06}"

    # ------------------------------------------------------------------ answers

    def _receive(self, connection: Connection, message: bytes, fields: Fields) -> None:
        mti = fields["t"]
        if mti[1:2] == "8":
            self._network.receive(connection, fields)
            return
        key = rules.match_key(self._dialect, fields)
        waiting = self._pending.pop(key, None)
        sent = waiting.sent if waiting else self._late.get(key)
        if sent is None:
            # A second answer, or one to what an earlier process asked.
            log.info("iso8583.stray", channel=self._name, type=mti, stan=fields.get("11", ""))
            return
        if self._is_authentic(message, fields):
            answer = rules.answer_of(self._dialect, sent, fields, datetime.now(UTC).date())
        else:
            log.warning("iso8583.wrong_mac", channel=self._name, stan=fields.get("11", ""))
            answer = Answer(
                Verdict.UNKNOWN, AnswerReason.NOT_AUTHENTIC, fields.get("39", ""), message="its MAC"
            )
        if waiting is not None:
            if answer.verdict is Verdict.UNKNOWN:
                # A better one may follow.
                self._remember(key, sent)
            else:
                self._late.pop(key, None)
            if not waiting.answer.done():
                waiting.answer.set_result(answer)
        elif answer.verdict is not Verdict.UNKNOWN:
            del self._late[key]
            self._tell(Heard(self._name, sent.request.reference, answer), sent)

    def _tell(self, heard: Heard, sent: Sent) -> None:
        if sent.request.operation is Operation.QUERY:
            # It speaks of another request than the one it answers.
            heard = Heard(heard.channel, sent.request.original, heard.answer)
        try:
            self._listener(heard)
        except Exception:
            # The connection serves all others.
            log.exception("iso8583.listener_failed", channel=self._name)

    def _is_authentic(self, message: bytes, fields: Fields) -> bool:
        if self._keys is None:
            return True
        verified = self._codec.verify(message, fields, *self._keys.believed())
        self._keys.count(verified)
        return verified

    # ------------------------------------------------------------------ the connection

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            began = loop.time()
            try:
                await self._session()
                log.warning("iso8583.connection_lost", channel=self._name)
            except (OSError, NetworkRefused, Unencodable) as error:
                # TimeoutError is an OSError.
                log.warning("iso8583.no_connection", channel=self._name, why=str(error))
            failures = 0 if loop.time() - began > _LIVED_S else failures + 1
            options = self._options
            most_s = min(options.backoff_last_s, options.backoff_first_s * 2 ** min(failures, 30))
            await asyncio.sleep(random.uniform(0.0, most_s))

    async def _session(self) -> None:
        """From connecting until the connection is lost. Raises OSError, NetworkRefused."""
        options = self._options
        loop = asyncio.get_running_loop()
        framer = Framer(self._dialect.header, self._dialect.frame_bytes_max)
        connection = Connection(self._name, framer, self._codec)
        connection.receive = lambda message, fields: self._receive(connection, message, fields)
        async with asyncio.timeout(options.connect_timeout_s):
            await loop.create_connection(lambda: connection, options.host, options.port)
        try:
            await self._network.sign_on(connection, options.network_timeout_s)
            await self._network.change_key(connection, options.network_timeout_s)
            self._connection = connection
            self._up.set()
            log.info("iso8583.signed_on", channel=self._name)
            await self._keep(connection)
        finally:
            self._up.clear()
            if self._connection is not None:
                self._network.sign_off(connection)
            self._connection = None
            connection.close()
            self._abandon()

    async def _keep(self, connection: Connection) -> None:
        """Echoes, and changes keys in time, until the connection is lost."""
        options = self._options
        loop = asyncio.get_running_loop()
        keys = self._dialect.keys
        change_at = loop.time() + keys.change_s if keys else float("inf")
        while not connection.lost.done():
            rest = min(options.echo_s, change_at - loop.time())
            if await self._doubts_come_first(connection, max(0.0, rest)) or (
                keys and loop.time() >= change_at
            ):
                await self._network.change_key(connection, options.network_timeout_s)
                change_at = loop.time() + keys.change_s if keys else change_at
            elif not connection.lost.done():
                await self._network.echo(connection, options.network_timeout_s)

    async def _doubts_come_first(self, connection: Connection, wait_s: float) -> bool:
        """Waits for the connection's end, the time, or a key that is doubted; whether the last."""
        if self._keys is None:
            await asyncio.wait({connection.lost}, timeout=wait_s)
            return False
        async with asyncio.TaskGroup() as group:
            doubted = group.create_task(self._keys.doubted.wait())
            await connection.first(doubted, wait_s)
            came = doubted.done()
            doubted.cancel()
        return came

    def _abandon(self) -> None:
        """The connection is gone: what was under way may have had its effect."""
        for key, waiting in list(self._pending.items()):
            # A reversal is repeated over the next connection.
            if waiting.sent.request.operation is not Operation.VOID:
                self._give_up(key, AnswerReason.CONNECTION_LOST)


def _pause(rest_s: float) -> float:
    """Before a full socket is tried again."""
    return max(0.0, min(0.05, rest_s))
