"""What a process does before the mesh hears of it, so that its first callers wait for nothing.

Every connection of its pools is open, the ledger's statements are prepared on its lanes, merchants
are read. What fails is left: a cell starts while its database is away, too. Fees and all else that
policies say comes with them, before the slot map does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy import select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from cells.accounts.tables import MERCHANTS, merchants
from cells.ledger.book import Book
from cells.ledger.model import Accepted, Key, Outcome, PlainCommand
from cells.ledger.records import RecordType
from cells.ledger.tables import ACCOUNTS, IDEMPOTENCY
from cells.ledger.worker import Lanes
from cells.orders.tables import ORDERS
from cells.payments.tables import PAYMENTS
from router.errors import Refusal

log = structlog.get_logger(__name__)

_WAIT_S = 10.0
# Read on a payment's way; a key that no row has prepares the statement and locks nothing.
_READ: Sequence[RecordType[Any]] = (IDEMPOTENCY, ORDERS, PAYMENTS, ACCOUNTS)


@dataclass(frozen=True, slots=True)
class Warm(PlainCommand):
    """A command that reads what others will read, and changes nothing."""

    slot: int
    merchants: Sequence[Key]
    idempotency = None
    resource_type = PAYMENTS

    def reads(self) -> Sequence[Key]:
        nothing = [Key(record, self.slot, "warming") for record in _READ]
        return [*nothing, *self.merchants]

    def decide(self, book: Book) -> Outcome:
        return Accepted(None)


async def warm(lanes: Lanes, reads: AsyncEngine, merchants_max: int) -> int:
    """Merchants that are known now. The lanes must be running. Takes ten seconds at most."""
    known: list[Key] = []
    try:
        async with asyncio.timeout(_WAIT_S):
            await _open_all(reads)
            async with reads.connect() as connection:
                columns = select(merchants.c.slot, merchants.c.account_id).limit(merchants_max)
                rows = (await connection.execute(columns)).all()
            known = [Key(MERCHANTS, slot, identifier) for slot, identifier in rows]
            # Each lane has a connection of its own. They share what is remembered.
            for slot in range(len(lanes.lanes)):
                await lanes.submit(Warm(slot, known if slot == 0 else ()), _WAIT_S)
    except (SQLAlchemyError, OSError, TimeoutError, Refusal) as error:
        log.warning("not all is warm: the database is away", error=type(error).__name__)
    return len(known)


async def _open_all(engine: AsyncEngine) -> None:
    """As many connections as the pool may have, at the same time."""
    size = engine.pool.size()  # type: ignore[attr-defined]
    ready = asyncio.Event()
    open_now = 0

    async def hold() -> None:
        nonlocal open_now
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            open_now += 1
            if open_now == size:
                ready.set()
            await ready.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(size):
            group.create_task(hold())
