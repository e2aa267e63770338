"""Rows of any noun, loaded and written by the set.

A noun registers a table and its NamedTuple; the ledger then reads all rows that a group needs in
one statement a table, and writes all that it changed in one statement for all tables. Arrays and
UNNEST keep the statement's text the same for any group size, so it is prepared once. All of it is
valid on PostgreSQL and on CockroachDB, where one table may be modified once a statement.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar

from sqlalchemy import Table, TextClause, text
from sqlalchemy.dialects import postgresql

Row = TypeVar("Row", bound=tuple[Any, ...])

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]


class RecordType(Generic[Row]):
    """A table whose first two columns, slot and ID, are its primary key, and its row class.

    `locked`: rows are locked when read, because they change. A table of rows that are only ever
    inserted needs no lock.
    """

    def __init__(self, table: Table, row: type[Row], *, locked: bool = True) -> None:
        fields: Sequence[str] = row._fields  # type: ignore[attr-defined]
        columns = [table.c[name] for name in fields]
        if [column.name for column in columns[:2]] != [
            column.name for column in table.primary_key.columns
        ][:2]:
            raise TypeError(f"{table.name}: the key must be its first two columns")
        self.name = table.name
        self.table = table
        self.row = row
        self.locked = locked
        self.fields = tuple(fields)
        self.id_field = self.fields[1]
        self.key = tuple(column.name for column in table.primary_key.columns)
        self.array_types = tuple(f"{column.type.compile(dialect=_DIALECT)}[]" for column in columns)

    def __repr__(self) -> str:
        return f"RecordType({self.name})"


@cache
def load_statement(record: RecordType[Any]) -> TextClause:
    """Rows by (slot, ID) pairs `:slots`, `:ids`, locked in key order (pitfall 13)."""
    columns = ", ".join(f"t.{name}" for name in record.fields)
    lock = " FOR UPDATE OF t" if record.locked else ""
    return text(
        f"SELECT {columns} FROM unnest(CAST(:slots AS smallint[]), CAST(:ids AS text[]))"
        f" AS k(slot, id) JOIN {record.name} AS t ON t.slot = k.slot AND t.{record.id_field} = k.id"
        f" ORDER BY t.slot, t.{record.id_field}{lock}"
    )


class Write(NamedTuple):
    """Rows of one table to write: `fresh` ones are inserted, others update what was read."""

    record: RecordType[Any]
    fresh: bool
    stale: bool


@cache
def write_statement(writes: tuple[Write, ...]) -> TextClause:
    parts = [f"w_{write.record.name} AS ({_write_one(write)})" for write in writes]
    return text(f"WITH {', '.join(parts)} SELECT 1")


def _write_one(write: Write) -> str:
    record = write.record
    name = record.name
    arrays = ", ".join(
        f"CAST(:{name}_{field} AS {array_type})"
        for field, array_type in zip(record.fields, record.array_types, strict=True)
    )
    columns = ", ".join(record.fields)
    changing = [field for field in record.fields if field not in record.key]
    if write.fresh:
        statement = f"INSERT INTO {name} ({columns}) SELECT * FROM unnest({arrays})"
        if write.stale:
            updates = ", ".join(f"{field} = excluded.{field}" for field in changing)
            statement += f" ON CONFLICT ({', '.join(record.key)}) DO UPDATE SET {updates}"
    else:
        updates = ", ".join(f"{field} = u.{field}" for field in changing)
        matches = " AND ".join(f"t.{field} = u.{field}" for field in record.key)
        statement = (
            f"UPDATE {name} AS t SET {updates} FROM unnest({arrays}) AS u({columns})"
            f" WHERE {matches}"
        )
    return f"{statement} RETURNING 1"


def write_arguments(record: RecordType[Any], rows: Iterable[tuple[Any, ...]]) -> dict[str, Any]:
    """The arrays of `write_statement` for these rows."""
    columns = zip(*rows, strict=True)
    return {
        f"{record.name}_{field}": list(column)
        for field, column in zip(record.fields, columns, strict=True)
    }
