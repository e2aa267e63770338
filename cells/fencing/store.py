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
LOCK_SLOTS = (
    "SELECT slot, owner, epoch, now() FROM slots"
    " WHERE slot = ANY(CAST(string_to_array($1, ',') AS smallint[])) ORDER BY slot FOR SHARE"
)


async def fence(
    transaction: Driver, cell: str, slots: Iterable[int]
) -> tuple[FencedSession, Fence]:
    """Locks the slots' rows for the rest of the transaction; the fence holds those `cell` owns.

    It must be the transaction's first statement: what is read after it cannot be older.
    """
    rows = await transaction.fetch(LOCK_SLOTS, ",".join(map(str, sorted(set(slots)))))
    if not rows:
        raise LookupError("the slots table is empty: the controller has not seeded it yet")
    epochs = {slot: epoch for slot, owner, epoch, _ in rows if owner == cell}
    return FencedSession(transaction), Fence(cell, epochs, rows[0][3])
