"""The stream RISK in JetStream: every decision of every cell, as features and replays need it.

subject   cellpay.risk.records.<cell>
header    Nats-Msg-Id, by which the server drops repeats for half an hour
body      records, router/risk/record.py

Decisions are told from memory, not through the outbox: they are statistics, and a payment must not
wait for them, nor grow by them. What a killed process had not sent yet, a tenth of a second,
is lost; what was acknowledged is not, and nothing is ever there twice.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import deque
from typing import Any, NamedTuple

import nats.errors
import structlog
from nats.js.api import RetentionPolicy, StorageType, StreamConfig

from cells.breakers.board import Breaker
from cells.cancellation import go_on_unless_cancelled
from cells.gathering import gathered
from cells.outbox.stream import connect_jetstream, make_if_absent
from router.client.tls import TlsFiles
from router.risk.record import STREAM, SUBJECT_PREFIX, Record, encode

log = structlog.get_logger(__name__)

SUBJECTS = f"{SUBJECT_PREFIX}>"
# As long as the longest window, and a day in which a killed consumer may come back.
_AGE_MAX_S = 31 * 86_400.0
# Some million decisions, for a laptop: NATS refuses a stream that may outgrow its disk. Production
# makes it beforehand, with room for the longest window.
_BYTES_MAX = 8 * 1024**3
_DUPLICATE_WINDOW_S = 1800.0
# A batch that may have been stored is sent again for so long: well within the window.
_DOUBT_MAX_S = 1200.0
# What a consumer counts at once holds Redis up, and its own event loop, for some ms each.
RECORDS_A_MESSAGE_MAX = 64
_BYTES_A_MESSAGE_MAX = 512 * 1024
# About 20 s of the busiest process, and some tens of MB.
_WAITING_MAX = 20_000
_LOOK_S = 0.02
_ACK_WAIT_S = 2.0
_BACKOFF_BASE_S = 0.1
_BACKOFF_CAP_S = 2.0


class _Pace(NamedTuple):
    """The stream syncs once a message, on the disk that payments commit to, and a consumer has as
    much to do for a small one as for a large one: patience makes it larger. Full, it goes at once.
    """

    batch_size_max: int = RECORDS_A_MESSAGE_MAX
    gather_max_s: float = 0.1
    gather_step_s: float = _LOOK_S


_PACE = _Pace()


async def ensure_stream(stream: Any) -> None:
    await make_if_absent(
        stream,
        StreamConfig(
            name=STREAM,
            subjects=[SUBJECTS],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            duplicate_window=_DUPLICATE_WINDOW_S,
            max_age=_AGE_MAX_S,
            max_bytes=_BYTES_MAX,
        ),
    )


class _Batch(NamedTuple):
    message_id: str
    records: int
    data: bytes
    # Of the monotonic clock: when it was first sent; from then on it may be there. 0: not yet.
    sent_at: float = 0.0


class Publisher:
    """Of one process: what it decided, on its way to the stream."""

    def __init__(
        self,
        nats_url: str,
        cell: str,
        breaker: Breaker | None = None,
        nats_tls: TlsFiles | None = None,
    ) -> None:
        self._nats_url = nats_url
        self._nats_tls = nats_tls
        self._subject = SUBJECT_PREFIX + cell
        self._cell = cell
        self._breaker = breaker
        self._waiting: deque[Record] = deque()
        self._batch: _Batch | None = None
        self._some = asyncio.Event()
        self._incarnation = uuid.uuid4().hex
        self._count = 0
        # Since the process began, for metrics.
        self.published = 0
        self.dropped = 0

    def put(self, record: Record) -> None:
        """Never waits and never fails; what is too much is dropped and counted."""
        if len(self._waiting) >= _WAITING_MAX:
            self.dropped += 1
            return
        self._waiting.append(record)
        self._some.set()

    @property
    def waiting(self) -> int:
        return len(self._waiting) + (self._batch.records if self._batch else 0)

    async def run(self) -> None:
        """Publishes for ever; waits out whatever is away."""
        failures = 0
        name = f"cellpay-{self._cell}-risk-records"
        while True:
            go_on_unless_cancelled()
            try:
                async with connect_jetstream(self._nats_url, name, self._nats_tls) as stream:
                    await ensure_stream(stream)
                    while True:
                        go_on_unless_cancelled()
                        await self._some.wait()
                        await gathered(self._waiting, _PACE, lone_waits=True)
                        await self._publish_waiting(stream)
                        failures = 0
            except Exception as error:
                failures += 1
                log.warning(
                    "decisions wait for the stream",
                    error=type(error).__name__, waiting=self.waiting, tries=failures,
                )  # fmt: skip
                ceiling = min(_BACKOFF_CAP_S, _BACKOFF_BASE_S * 2.0 ** min(failures, 10))
                await asyncio.sleep(random.uniform(0.5, 1.0) * ceiling)

    async def _publish_waiting(self, stream: Any) -> None:
        """One after the other. What is not acknowledged stays, and goes again as it was."""
        while batch := self._next_batch():
            if self._breaker is not None:
                self._breaker.check()
            if not batch.sent_at:
                self._batch = batch._replace(sent_at=time.monotonic())
            try:
                await stream.publish(
                    self._subject,
                    batch.data,
                    timeout=_ACK_WAIT_S,
                    stream=STREAM,
                    headers={"Nats-Msg-Id": batch.message_id},
                )
            except (nats.errors.Error, OSError, TimeoutError) as error:
                if self._breaker is not None:
                    self._breaker.note(error)
                raise
            if self._breaker is not None:
                self._breaker.note(None)
            self.published += batch.records
            self._batch = None
        self._some.clear()

    def _next_batch(self) -> _Batch | None:
        """The one that is under way, or what waits; None when nothing does."""
        batch = self._batch
        if batch and batch.sent_at and time.monotonic() - batch.sent_at > _DOUBT_MAX_S:
            # The server may soon have forgotten that it has it.
            self._drop(batch.records, "the stream was away for too long")
            batch = self._batch = None
        while batch is None and self._waiting:
            count = min(len(self._waiting), RECORDS_A_MESSAGE_MAX)
            batch = self._batch = self._encode([self._waiting.popleft() for _ in range(count)])
        return batch

    def _encode(self, records: list[Record]) -> _Batch | None:
        """As many of them as one message holds; the others wait on."""
        while records:
            try:
                data = encode(records)
            except ValueError:
                data = b""
            if 0 < len(data) <= _BYTES_A_MESSAGE_MAX:
                self._count += 1
                return _Batch(f"{self._incarnation}:{self._count}", len(records), data)
            if len(records) == 1:
                self._drop(1, "a record is too large, or no JSON")
                return None
            half = len(records) // 2
            self._waiting.extendleft(reversed(records[half:]))
            records = records[:half]
        return None

    def _drop(self, count: int, why: str) -> None:
        self.dropped += count
        log.error("decisions are missing in the stream", records=count, why=why)

    async def drain(self, wait_s: float) -> bool:
        """At the process's end, while `run` still runs: whether all went out in time."""
        try:
            async with asyncio.timeout(wait_s):
                while self.waiting:
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            self._drop(self.waiting, "the process ended")
            return False
        return True
