"""Reads beside the lanes: plain selects that lock nothing and disturb no writer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NewType, TypeVar

import grpc
from sqlalchemy import ARRAY, Select, SmallInteger, any_, cast, select
from sqlalchemy.ext.asyncio import AsyncEngine

from cells.database import is_away
from cells.ledger.records import RecordType
from router.errors import Refusal

Row = TypeVar("Row", bound=tuple[Any, ...])
ReadEngine = NewType("ReadEngine", AsyncEngine)


def any_slot(slots: Iterable[int]) -> Any:
    """The right side of `slot = …`: one array, so that the statement's text is the same for any."""
    return any_(cast(sorted(slots), ARRAY(SmallInteger)))


async def fetch(engine: ReadEngine, statement: Select[Any]) -> Sequence[Any]:
    """All rows. Raises Refusal UNAVAILABLE when the database is away."""
    try:
        async with engine.connect() as connection:
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


async def fetch_row(
    engine: ReadEngine, record: RecordType[Row], slot: int, identifier: str
) -> Row | None:
    """One row by its ID."""
    table = record.table
    statement = select(*(table.c[name] for name in record.fields)).where(
        table.c.slot == slot, table.c[record.id_field] == identifier
    )
    rows = await fetch(engine, statement)
    return record.row(*rows[0]) if rows else None
