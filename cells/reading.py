"""Reads beside the lanes: plain selects that lock nothing and disturb no writer.

Whoever says how old an answer may be is read for beside the writers (replica.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import structlog
from sqlalchemy import ARRAY, Select, SmallInteger, any_, cast, select
from sqlalchemy.ext.asyncio import AsyncEngine

from cells.database import is_away
from cells.ledger.records import RecordType
from cells.replica import FOLLOWER_READ_AGE_S, REPLICA_WAIT_S, Replica, read_from_follower
from cells.requests import page_token
from router.errors import Refusal
from router.slots import slot_of_user

log = structlog.get_logger(__name__)

Row = TypeVar("Row", bound=tuple[Any, ...])


@dataclass(frozen=True, slots=True)
class ReadEngine:
    """Where reads go; `replica` for those that may be old, if there is one."""

    primary: AsyncEngine
    replica: Replica | None = None

    async def dispose(self) -> None:
        await self.primary.dispose()
        if self.replica is not None:
            await self.replica.engine.dispose()


def any_slot(slots: Iterable[int]) -> Any:
    """The right side of `slot = …`: one array, so that the statement's text is the same for any."""
    return any_(cast(sorted(slots), ARRAY(SmallInteger)))


async def fetch(
    engine: ReadEngine, statement: Select[Any], staleness_max_s: float | None = None
) -> Sequence[Any]:
    """All rows, at most so old. Raises Refusal UNAVAILABLE when the database is away."""
    if staleness_max_s is not None and (rows := await _beside(engine, statement, staleness_max_s)):
        return rows
    try:
        async with engine.primary.connect() as connection:
            return (await connection.execute(statement)).all()
    except Exception as error:
        if is_away(error):
            raise Refusal(
                grpc.StatusCode.UNAVAILABLE,
                "DATABASE_UNAVAILABLE",
                "the database is away; nothing was read",
                retry_after_ms=500,
            ) from error
        raise


async def _beside(
    engine: ReadEngine, statement: Select[Any], staleness_max_s: float
) -> Sequence[Any] | None:
    """Rows from beside the writers; None when there is nothing, or nothing fresh enough.

    No row is no answer either: what is asked for may be younger, and the primary knows.
    """
    try:
        async with asyncio.timeout(REPLICA_WAIT_S):
            if engine.primary.dialect.name == "cockroachdb":
                if staleness_max_s < FOLLOWER_READ_AGE_S:
                    return None
                async with engine.primary.connect() as connection:
                    await read_from_follower(connection)
                    return (await connection.execute(statement)).all()
            if engine.replica is None:
                return None
            async with engine.replica.engine.connect() as connection:
                if not await engine.replica.is_fresh(connection, staleness_max_s):
                    return None
                return (await connection.execute(statement)).all()
    except Exception as error:
        log.info("no answer from beside the writers", error=type(error).__name__)
        return None


async def fetch_row(
    engine: ReadEngine,
    record: RecordType[Row],
    slot: int,
    identifier: str,
    staleness_max_s: float | None = None,
) -> Row | None:
    """One row by its ID."""
    table = record.table
    statement = select(*(table.c[name] for name in record.fields)).where(
        table.c.slot == slot, table.c[record.id_field] == identifier
    )
    rows = await fetch(engine, statement, staleness_max_s)
    return record.row(*rows[0]) if rows else None


async def newest_of_user(
    engine: ReadEngine,
    record: RecordType[Row],
    owner: str,
    user_id: str,
    size: int,
    start: Sequence[str] | None,
    staleness_max_s: float | None,
) -> tuple[list[Row], str]:
    """A page of a user's rows, newest first, and the token of the next one (AIP-158).

    `owner`: the column that names the user; `start`: what `page_start` read of a token.
    """
    columns = record.table.c
    identifier = columns[record.id_field]
    statement = (
        select(*(columns[name] for name in record.fields))
        .where(columns.slot == slot_of_user(user_id), columns[owner] == user_id)
        .order_by(identifier.desc())
        .limit(size + 1)
    )
    if start:
        statement = statement.where(identifier < start[0])
    rows = [record.row(*row) for row in await fetch(engine, statement, staleness_max_s)]
    listed = rows[:size]
    return listed, page_token([listed[-1][1]]) if len(rows) > size else ""
