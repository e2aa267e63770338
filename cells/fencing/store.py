"""The fence itself: the only maker of a FencedSession, which every writing store method takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from cells.database import Driver


@dataclass(frozen=True, slots=True)
class FencedSession:
    """The driver's connection, inside a transaction that holds the locks of the slots."""

    driver: Driver


@dataclass(frozen=True, slots=True)
class Fence:
    """What the database said under the lock: slots of this cell → epoch, and its time (UTC)."""

    cell: str
    epochs: Mapping[int, int]
    now: datetime


# One statement, so that a writer that waited for a change of owner sees the new row (the lock
# re-reads it). In slot order: two groups cannot deadlock on each other's slots (pitfall 13).
# One row of text: hundreds of rows, each with the time, take the driver longer than the locks.
LOCK_SLOTS = (
    "SELECT count(*), now(), string_agg(CAST(slot AS text) || ' ' || CAST(epoch AS text), ',')"
    " FILTER (WHERE owner = $2) FROM (SELECT slot, owner, epoch FROM slots"
    " WHERE slot = ANY(CAST(string_to_array($1, ',') AS smallint[])) ORDER BY slot FOR SHARE) AS s"
)


async def fence(
    transaction: Driver, cell: str, slots: Iterable[int]
) -> tuple[FencedSession, Fence]:
    """Locks the slots' rows for the rest of the transaction; the fence holds those `cell` owns.

    It must be the transaction's first statement: what is read after it cannot be older.
    """
    count, now, ours = await transaction.fetchrow(
        LOCK_SLOTS, ",".join(map(str, sorted(set(slots)))), cell
    )
    if not count:
        raise LookupError("the slots table is empty: the controller has not seeded it yet")
    pairs = [pair.split(" ") for pair in ours.split(",")] if ours else []
    epochs = {int(slot): int(epoch) for slot, epoch in pairs}
    return FencedSession(transaction), Fence(cell, epochs, now)
