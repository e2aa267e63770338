"""The fence itself: the only maker of a FencedSession, which every writing store method takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NewType

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

FencedSession = NewType("FencedSession", AsyncConnection)


@dataclass(frozen=True, slots=True)
class Fence:
    """What the database said under the lock: slots of this cell → epoch, and its time (UTC)."""

    cell: str
    epochs: Mapping[int, int]
    now: datetime


# One statement, so that a writer that waited for a change of owner sees the new row (the lock
# re-reads it). In slot order: two groups cannot deadlock on each other's slots (pitfall 13).
_LOCK_SLOTS = text(
    "SELECT slot, owner, epoch, now() FROM slots"
    " WHERE slot = ANY(CAST(:slots AS smallint[])) ORDER BY slot FOR SHARE"
)


async def fence(
    connection: AsyncConnection, cell: str, slots: Iterable[int]
) -> tuple[FencedSession, Fence]:
    """Locks the slots' rows for the rest of the transaction; the fence holds those `cell` owns.

    It must be the transaction's first statement: what is read after it cannot be older.
    """
    rows = (await connection.execute(_LOCK_SLOTS, {"slots": sorted(set(slots))})).all()
    if not rows:
        raise LookupError("the slots table is empty: the controller has not seeded it yet")
    epochs = {slot: epoch for slot, owner, epoch, _ in rows if owner == cell}
    return FencedSession(connection), Fence(cell, epochs, rows[0][3])
