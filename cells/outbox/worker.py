"""The relay: from the outbox to the stream, for ever.

    read unsent ──▶ publish, await each ack ──▶ mark as sent, fenced

No transaction is open while it publishes. Whatever kills it between two steps, the rows are still
unsent and go again; the stream drops repeats by the batch's ID and consumers are idempotent. A
deposed cell publishes at most what it had read, and marks nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import structlog
from nats.js.errors import NoStreamResponseError, NotFoundError
from sqlalchemy.ext.asyncio import AsyncEngine

from cells.cancellation import go_on_unless_cancelled
from cells.ledger.model import EventBatch
from cells.outbox.store import (
    BEGINNING,
    Position,
    mark,
    owned_slots,
    purge,
    sent_since,
    unsent_batches,
)
from cells.outbox.stream import connect_stream, ensure_stream, publish
from cells.settings import OutboxSettings
from router.client.tls import TlsFiles
from router.tracing.tracer import Tracer

log = structlog.get_logger(__name__)

_BACKOFF_BASE_S = 0.1
_BACKOFF_CAP_S = 5.0
# Sent rows are looked for this often; each slot's turn is one short transaction.
_PURGE_INTERVAL_S = 600.0
_PURGE_BATCH_MAX = 500
_PURGE_PAUSE_S = 0.01


class OutboxRelay:
    def __init__(
        self,
        engine: AsyncEngine,
        cell: str,
        nats_url: str,
        settings: OutboxSettings,
        nats_tls: TlsFiles | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer
        self._engine = engine
        self._cell = cell
        self._nats_url = nats_url
        self._nats_tls = nats_tls
        self._settings = settings
        self._after = BEGINNING

    async def run(self) -> None:
        """Relays for ever; waits out whatever is away."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._relay_for_ever())
            group.create_task(self._purge_for_ever())

    async def _relay_for_ever(self) -> None:
        failures = 0
        while True:
            go_on_unless_cancelled()
            try:
                name = f"cellpay-{self._cell}-outbox"
                async with connect_stream(self._nats_url, name, self._nats_tls) as stream:
                    while True:
                        go_on_unless_cancelled()
                        try:
                            full = await self.relay_rows(stream)
                        except (NoStreamResponseError, NotFoundError):
                            log.error("the stream is gone; making it anew. Replay what it held")
                            await ensure_stream(stream)
                            continue
                        failures = 0
                        if not full:
                            await asyncio.sleep(self._settings.poll_interval_s)
            except Exception as error:
                failures += 1
                log.warning("the outbox waits", error=type(error).__name__, tries=failures)
                await asyncio.sleep(_backoff_s(failures))

    async def relay_rows(self, stream: Any) -> bool:
        """Sends and marks some rows; True when more may be waiting.

        It goes round: each time it begins behind the last, so that a row which cannot be sent does
        not hold up the others, and begins again when it has come to the end.
        """
        count_max = self._settings.rows_max
        batches = await unsent_batches(self._engine, self._cell, self._after, count_max)
        full = len(batches) == count_max
        self._after = Position(batches[-1].slot, batches[-1].batch_id) if full else BEGINNING
        if not batches:
            return False
        acknowledged = await publish(stream, batches, self._tracer)
        marked = await self._mark(acknowledged)
        if marked < len(batches):
            # Not acknowledged, or no longer ours to mark.
            log.warning(
                "not all batches are sent",
                read=len(batches),
                acknowledged=len(acknowledged),
                marked=marked,
            )
        return full and marked == len(batches)

    async def _mark(self, batches: Sequence[EventBatch]) -> int:
        positions = [Position(batch.slot, batch.batch_id) for batch in batches]
        return await mark(self._engine, self._cell, positions, sent=True)

    async def _purge_for_ever(self) -> None:
        while True:
            # The first pause spreads cells that start together.
            await asyncio.sleep(random.uniform(0.5, 1.0) * _PURGE_INTERVAL_S)
            try:
                purged = await self.purge_sent()
            except Exception as error:
                log.warning("the outbox is not purged", error=type(error).__name__)
            else:
                if purged:
                    log.info("sent events purged", batches=purged)

    async def purge_sent(self) -> int:
        """Deletes sent rows older than the retention, some at a time; returns how many."""
        purged = 0
        for slot in await owned_slots(self._engine, self._cell):
            while True:
                deleted = await purge(
                    self._engine, self._cell, slot, self._settings.retention_s, _PURGE_BATCH_MAX
                )
                purged += deleted
                if deleted < _PURGE_BATCH_MAX:
                    break
            await asyncio.sleep(_PURGE_PAUSE_S)
        return purged


async def replay(engine: AsyncEngine, cell: str, since: datetime, *, rows_max: int = 256) -> int:
    """Makes the relay send again every batch of events since then; returns how many.

    For a stream that lost messages (pitfall 18). Consumers do not mind repeats. It can be stopped
    and called again: what it marked as unsent stays so until it is acknowledged again.
    """
    replayed = 0
    for slot in await owned_slots(engine, cell):
        after = ""
        while batches := await sent_since(engine, slot, since, after, rows_max):
            replayed += await mark(engine, cell, batches, sent=False)
            after = batches[-1].batch_id
    return replayed


def _backoff_s(failures: int) -> float:
    return random.uniform(0.2, 1.0) * min(
        _BACKOFF_CAP_S, _BACKOFF_BASE_S * 2.0 ** min(failures, 10)
    )
