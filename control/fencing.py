"""The database's fence, from the control plane's side: step 5 of a failover's walk.

etcd decides, the database enforces (design decision 3). One transaction gives slots to their new
owner and locks the old one out; it waits for the share locks of writes in flight
(docs/decisions/0005-fence-and-assign-in-one-step.md).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Iterable, Sequence
from typing import TypeVar

import asyncpg
import grpc
import structlog
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from router.errors import Refusal
from router.slotmap import Move, Owned, SlotMap
from router.slots import SLOT_COUNT

log = structlog.get_logger(__name__)

# The database is away or busy: whoever must go on tries again. What asyncpg raises while it
# connects (the server is starting, stopping or full) comes bare: SQLAlchemy wraps only what is
# raised later. OSError holds TimeoutError too.
DATABASE_FAULTS: tuple[type[Exception], ...] = (
    DBAPIError, PoolTimeout, asyncpg.PostgresError, asyncpg.InterfaceError,
    asyncpg.InternalClientError, OSError,
)  # fmt: skip
T = TypeVar("T")
_LOCK_TIMEOUT_MS = 3000
_STATEMENT_TIMEOUT_MS = 8000
_BACKOFF_CAP_S = 1.0

_LOCK = text(
    "SELECT slot, owner, epoch FROM slots WHERE slot = ANY(CAST(:slots AS smallint[]))"
    " ORDER BY slot FOR UPDATE"
)
# Epochs only move forward (pitfall 7).
_ASSIGN = text(
    "UPDATE slots AS s SET owner = u.owner, epoch = u.epoch FROM unnest("
    "CAST(:slots AS smallint[]), CAST(:owners AS text[]), CAST(:epochs AS bigint[]))"
    " AS u(slot, owner, epoch) WHERE s.slot = u.slot AND s.epoch < u.epoch"
)
_RECORD = text(
    "INSERT INTO slot_history (slot, epoch, owner, operation_id) SELECT u.slot, u.epoch, u.owner,"
    " :operation_id FROM unnest(CAST(:slots AS smallint[]), CAST(:owners AS text[]),"
    " CAST(:epochs AS bigint[])) AS u(slot, owner, epoch) ON CONFLICT DO NOTHING"
)
_SEED = text(
    "INSERT INTO slots (slot, owner, epoch) SELECT u.slot, u.owner, u.epoch FROM unnest("
    "CAST(:slots AS smallint[]), CAST(:owners AS text[]), CAST(:epochs AS bigint[]))"
    " AS u(slot, owner, epoch) ON CONFLICT DO NOTHING"
)


async def asked(work: Awaitable[T]) -> T:
    """What a database that may be away answers. Raises Refusal."""
    try:
        return await work
    except DATABASE_FAULTS as error:
        raise Refusal(
            grpc.StatusCode.UNAVAILABLE,
            "DATABASE_UNAVAILABLE",
            f"the database is away ({type(error).__name__})",
            retry_after_ms=1000,
        ) from error


class FenceConflict(Exception):
    """The database knows of a later owner than the plan does. Nothing was changed."""


def make_fence_engine(database_url: str, name: str) -> AsyncEngine:
    settings = {
        "application_name": name,
        "lock_timeout": str(_LOCK_TIMEOUT_MS),
        "statement_timeout": str(_STATEMENT_TIMEOUT_MS),
    }
    return create_async_engine(
        database_url,
        pool_size=2,
        max_overflow=0,
        pool_pre_ping=True,
        connect_args={"server_settings": settings, "timeout": 5},
    )


class Fence:
    """Retries until the database answers: a fence that is begun must be finished."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def assign(self, moves: Sequence[Move], operation_id: str) -> None:
        """Gives the slots to their targets; doing it twice is doing it once.

        Raises FenceConflict when a slot has gone elsewhere at the same or a later epoch.
        """
        tries = 0
        while True:
            try:
                async with self._engine.begin() as connection:
                    await _assign(connection, moves, operation_id)
                return
            except DATABASE_FAULTS as error:
                tries += 1
                log.warning("the fence waits for the database", error=_name(error), tries=tries)
                ceiling = min(_BACKOFF_CAP_S, 0.02 * 2 ** min(tries, 10))
                await asyncio.sleep(random.uniform(0, ceiling))

    async def seed(self, first: SlotMap) -> None:
        """The first rows; those that are there stay."""
        columns = _columns(
            (slot, owned.cell, owned.epoch)
            for owned in first.ranges
            for slot in range(owned.first, owned.last + 1)
        )
        async with self._engine.begin() as connection:
            await connection.execute(_SEED, columns)
            await connection.execute(_RECORD, {**columns, "operation_id": "seed"})

    async def read(self) -> SlotMap:
        """Who owns what, as the database enforces it."""
        async with self._engine.connect() as connection:
            rows = await connection.execute(
                text("SELECT slot, owner, epoch FROM slots ORDER BY slot")
            )
            owners = [(row.owner, row.epoch) for row in rows]
        if len(owners) != SLOT_COUNT:
            raise LookupError(f"the slots table has {len(owners)} rows, not {SLOT_COUNT}")
        ranges: list[Owned] = []
        for slot, (owner, epoch) in enumerate(owners):
            if ranges and ranges[-1][2:] == (owner, epoch):
                ranges[-1] = ranges[-1]._replace(last=slot)
            else:
                ranges.append(Owned(slot, slot, owner, epoch))
        return SlotMap(tuple(ranges))

    async def close(self) -> None:
        await self._engine.dispose()


async def _assign(connection: AsyncConnection, moves: Sequence[Move], operation_id: str) -> None:
    wanted = {slot: move for move in moves for slot in range(move.first, move.last + 1)}
    rows = (await connection.execute(_LOCK, {"slots": sorted(wanted)})).all()
    todo = []
    for slot, owner, epoch in rows:
        move = wanted[slot]
        if (owner, epoch) == (move.target, move.epoch):
            continue
        if owner != move.source or epoch >= move.epoch:
            raise FenceConflict(f"slot {slot} is {owner}'s at epoch {epoch}; planned: {move}")
        todo.append((slot, move.target, move.epoch))
    if len(rows) != len(wanted):
        raise FenceConflict(f"the slots table has {len(rows)} of {len(wanted)} slots")
    if todo:
        columns = _columns(todo)
        await connection.execute(_ASSIGN, columns)
        await connection.execute(_RECORD, {**columns, "operation_id": operation_id})


def _columns(rows: Iterable[tuple[int, str, int]]) -> dict[str, object]:
    slots, owners, epochs = zip(*rows, strict=True)
    return {"slots": list(slots), "owners": list(owners), "epochs": list(epochs)}


def _name(error: BaseException) -> str:
    return type(error).__name__
