"""Reads that may be old: a replica of PostgreSQL, followers on CockroachDB.

A caller who says how old an answer may be (`x-cellpay-staleness-max-s`) is answered from beside the
writers where that is possible, and by the primary otherwise. How far a replica is behind is told
without comparing two machines' clocks (pitfall 16): this process notes the primary's log position
each second by its own clock, and a replica that has replayed the note of a moment is no older.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

log = structlog.get_logger(__name__)

STALENESS_HEADER = "x-cellpay-staleness-max-s"
# CockroachDB's follower reads are about this old; a lower bound than that needs the leaseholder.
FOLLOWER_READ_AGE_S = 5.0
_NOTE_INTERVAL_S = 1.0
_NOTES_MAX = 600
# A replica that hangs must not hold up a read that the primary can answer.
REPLICA_WAIT_S = 1.0

_FOLLOWER_READ = text("SET TRANSACTION AS OF SYSTEM TIME follower_read_timestamp()")
_PRIMARY_AT = text("SELECT CAST(pg_current_wal_lsn() - '0/0' AS bigint)")
# NULL on a server that is no replica.
_REPLICA_AT = text("SELECT CAST(pg_last_wal_replay_lsn() - '0/0' AS bigint)")


class Notes:
    """Where the primary's log was, at moments of this process's clock. Pure but for the clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._notes: deque[tuple[float, int]] = deque(maxlen=_NOTES_MAX)

    def note(self, asked_at: float, position: int) -> None:
        """The primary was at `position` when it was asked, or later."""
        self._notes.append((asked_at, position))

    def proves(self, replayed: int, staleness_max_s: float) -> bool:
        """Whether a replica that has replayed this far is at most so old."""
        oldest_allowed = self._clock() - staleness_max_s
        first = bisect_left(self._notes, (oldest_allowed, 0))
        return first < len(self._notes) and replayed >= self._notes[first][1]


class Replica:
    """A streaming replica of PostgreSQL, and what is known of its age."""

    def __init__(self, engine: AsyncEngine, primary: AsyncEngine) -> None:
        self.engine = engine
        self._primary = primary
        self._notes = Notes(lambda: asyncio.get_running_loop().time())

    async def run(self) -> None:
        """Notes the primary's position, for ever."""
        while True:
            try:
                await self.look()
            except Exception as error:
                # Without new notes the replica proves nothing, and reads go to the primary.
                log.info("the primary does not say where it is", error=type(error).__name__)
            await asyncio.sleep(_NOTE_INTERVAL_S)

    async def look(self) -> None:
        asked_at = asyncio.get_running_loop().time()
        async with self._primary.connect() as connection:
            self._notes.note(asked_at, (await connection.execute(_PRIMARY_AT)).scalar_one())

    async def is_fresh(self, connection: AsyncConnection, staleness_max_s: float) -> bool:
        replayed = (await connection.execute(_REPLICA_AT)).scalar_one()
        return replayed is not None and self._notes.proves(replayed, staleness_max_s)


async def read_from_follower(connection: AsyncConnection) -> None:
    """CockroachDB: the transaction, which must have just begun, reads from the nearest replica."""
    await connection.execute(_FOLLOWER_READ)


def staleness_of(context: Any) -> float | None:
    """Seconds that the caller's answer may be old; None: not at all."""
    for key, value in context.invocation_metadata() or ():
        if key == STALENESS_HEADER:
            try:
                seconds = float(value)
            except ValueError:
                return None
            return seconds if seconds > 0 else None
    return None
