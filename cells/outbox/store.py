"""The outbox's rows, a batch of events each: what is unsent; marks and purges under the fence."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import literal, literal_column, select, tuple_
from sqlalchemy.ext.asyncio import AsyncEngine

from cells.database import changed_rows, commit, transaction
from cells.fencing.store import FencedSession, fence
from cells.fencing.tables import slots
from cells.ledger.model import EventBatch
from cells.ledger.tables import OUTBOX, outbox
from router.ids import Kind, mint

# IDs carry a machine's clock, rows the database's. The database's decides; IDs only bound what is
# read, with this much to spare.
_CLOCKS_APART_MAX = timedelta(hours=1)


class Position(NamedTuple):
    """A place in the outbox's order; rows behind it come next."""

    slot: int
    batch_id: str


BEGINNING = Position(-1, "")


async def unsent_batches(
    engine: AsyncEngine, cell: str, after: Position, count_max: int
) -> list[EventBatch]:
    """Batches still to be sent, of the slots that the database gives to `cell` now."""
    statement = (
        select(*(outbox.c[name] for name in OUTBOX.fields))
        .join(slots, slots.c.slot == outbox.c.slot)
        .where(
            slots.c.owner == cell,
            # Written out, not bound, so that the partial index is used.
            literal_column("NOT outbox.sent"),
            tuple_(outbox.c.slot, outbox.c.batch_id)
            > tuple_(literal(after.slot), literal(after.batch_id)),
        )
        .order_by(outbox.c.slot, outbox.c.batch_id)
        .limit(count_max)
    )
    async with engine.connect() as connection:
        return [EventBatch(*row) for row in await connection.execute(statement)]


_SET_SENT = (
    "UPDATE outbox AS t SET sent = CAST($1 AS boolean)"
    " FROM unnest(CAST($2 AS smallint[]), CAST($3 AS text[])) AS k(slot, id)"
    " WHERE t.slot = k.slot AND t.batch_id = k.id AND t.sent <> CAST($1 AS boolean)"
)


async def set_sent(session: FencedSession, batches: Collection[Position], *, sent: bool) -> int:
    """How many rows it changed."""
    slots_of = [batch.slot for batch in batches]
    ids = [batch.batch_id for batch in batches]
    return changed_rows(await session.driver.execute(_SET_SENT, sent, slots_of, ids))


async def mark(engine: AsyncEngine, cell: str, batches: Collection[Position], *, sent: bool) -> int:
    """Marks the batches of slots that `cell` owns under the fence; returns how many changed."""
    async with transaction(engine) as driver:
        session, held = await fence(driver, cell, {batch.slot for batch in batches})
        ours = [batch for batch in batches if batch.slot in held.epochs]
        changed = await set_sent(session, ours, sent=sent) if ours else 0
        if changed:
            await commit(driver)
    return changed


# One slot a transaction, by its primary key: no index on time is needed, since IDs begin with it.
_PURGE = (
    "DELETE FROM outbox WHERE slot = CAST($1 AS smallint) AND batch_id IN ("
    "SELECT batch_id FROM outbox WHERE slot = CAST($1 AS smallint) AND batch_id < $2 AND sent"
    " AND created_at < CAST($3 AS timestamptz) ORDER BY batch_id LIMIT $4)"
)


async def purge(
    engine: AsyncEngine, cell: str, slot: int, retention_s: float, count_max: int
) -> int:
    """Deletes some of the slot's sent batches that are older than the retention; how many."""
    async with transaction(engine) as driver:
        session, held = await fence(driver, cell, [slot])
        if slot not in held.epochs:
            return 0
        before = held.now - timedelta(seconds=retention_s)
        deleted = await _delete_sent(session, slot, before, count_max)
        if deleted:
            await commit(driver)
    return deleted


async def _delete_sent(session: FencedSession, slot: int, before: datetime, count_max: int) -> int:
    bound = _bound(slot, before + _CLOCKS_APART_MAX)
    return changed_rows(await session.driver.execute(_PURGE, slot, bound, before, count_max))


async def owned_slots(engine: AsyncEngine, cell: str) -> Sequence[int]:
    """As the database says now."""
    statement = select(slots.c.slot).where(slots.c.owner == cell).order_by(slots.c.slot)
    async with engine.connect() as connection:
        return (await connection.execute(statement)).scalars().all()


async def sent_since(
    engine: AsyncEngine, slot: int, since: datetime, after: str, count_max: int
) -> list[Position]:
    """Batches of a slot that were sent already and were made at `since` or later, in order."""
    statement = (
        select(outbox.c.slot, outbox.c.batch_id)
        .where(
            outbox.c.slot == slot,
            outbox.c.batch_id > max(after, _bound(slot, since - _CLOCKS_APART_MAX)),
            literal_column("outbox.sent"),
            outbox.c.created_at >= since,
        )
        .order_by(outbox.c.batch_id)
        .limit(count_max)
    )
    async with engine.connect() as connection:
        return [Position(*row) for row in await connection.execute(statement)]


def _bound(slot: int, moment: datetime) -> str:
    """Below the IDs of batches made from then on: theirs are those of their first events."""
    return mint(Kind.EVENT, slot, unix_ms=int(moment.timestamp() * 1000), random_80=0)
