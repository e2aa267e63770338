"""Rows of any noun, loaded and written by the set.

A noun registers a table and its NamedTuple; the ledger then reads all rows that a group needs in
one statement a table, and writes all that it changed in one statement for all tables. UNNEST keeps
the statement's text the same for any group size, so it is prepared once. All of it is valid on
PostgreSQL and on CockroachDB, where one table may be modified once a statement.

A column travels as one string, joined here and split there: asyncpg takes 0.6 µs an element of an
array, joining takes 0.05 (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql

Row = TypeVar("Row", bound=tuple[Any, ...])

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]
# Between the values of a column. Requests with control characters are refused, and U+001F stands
# inside idempotency IDs.
SEPARATOR = "\x1e"
_SPLIT = "string_to_array(${}, chr(30))"
_INTEGERS = frozenset({"SMALLINT", "INTEGER", "BIGINT"})


class RecordType(Generic[Row]):
    """A table whose first two columns, slot and ID, are its primary key, and its row class.

    `changes`: the fields that may change once a row is there. Its rows are locked when read; those
    of a table that is only ever inserted into need no lock. Rows are made with `created_at` set to
    the transaction's time. `cached_max`: rows that a process remembers, for tables without changes:
    what cannot change needs no invalidation.
    """

    def __init__(
        self, table: Table, row: type[Row], *, changes: Sequence[str] = (), cached_max: int = 0
    ) -> None:
        fields: Sequence[str] = row._fields  # type: ignore[attr-defined]
        columns = [table.c[name] for name in fields]
        if [column.name for column in columns[:2]] != [
            column.name for column in table.primary_key.columns
        ][:2]:
            raise TypeError(f"{table.name}: the key must be its first two columns")
        if changes and cached_max:
            raise TypeError(f"{table.name}: rows that change cannot be remembered")
        self.name = table.name
        self.table = table
        self.row = row
        self.locked = bool(changes)
        self.fields = tuple(fields)
        self.id_field = self.fields[1]
        self.key = tuple(column.name for column in table.primary_key.columns)
        self.changes = tuple(changes)
        self.cached_max = cached_max
        self.types = tuple(str(column.type.compile(dialect=_DIALECT)) for column in columns)

    def __repr__(self) -> str:
        return f"RecordType({self.name})"


@cache
def load_statement(record: RecordType[Any]) -> str:
    """Rows by (slot, ID) pairs in two arrays, locked in key order (pitfall 13)."""
    columns = ", ".join(f"t.{name}" for name in record.fields)
    lock = " FOR UPDATE OF t" if record.locked else ""
    slots, ids = _array(1, "SMALLINT"), _array(2, "TEXT")
    return (
        f"SELECT {columns} FROM unnest({slots}, {ids})"
        f" AS k(slot, id) JOIN {record.name} AS t ON t.slot = k.slot AND t.{record.id_field} = k.id"
        f" ORDER BY t.slot, t.{record.id_field}{lock}"
    )


def _array(argument: int, type_: str) -> str:
    """The SQL that makes an array of what `joined` sent."""
    if type_ == "TEXT":
        return _SPLIT.format(argument)
    if type_ in _INTEGERS:
        return f"CAST({_SPLIT.format(argument)} AS {type_}[])"
    return f"CAST(${argument} AS {type_}[])"


def joined(values: Sequence[Any], type_: str = "BIGINT") -> Any:
    """The argument for `_array`: a string, or the values themselves for types that have none."""
    if type_ in _INTEGERS:
        return SEPARATOR.join(map(str, values))
    if type_ != "TEXT":
        return values
    text = SEPARATOR.join(values)
    if text.count(SEPARATOR) != len(values) - 1:
        raise ValueError("a value holds the separator of values")
    return text


class Write(NamedTuple):
    """Rows of one table to write: `fresh` ones are inserted, others update what was read.

    Never both in one (ON CONFLICT DO UPDATE): a row that another process of the cell has inserted
    since would be written over unread. As it is, the insert fails and the group decides anew.
    """

    record: RecordType[Any]
    fresh: bool

    def sent(self) -> list[int]:
        """The positions of the fields whose values are sent: as few as it takes.

        An array's elements are what a group costs; a time that all rows share is sent once.
        """
        fields = self.record.fields
        if self.fresh:
            return [number for number, name in enumerate(fields) if name != _STAMP]
        needed = {*self.record.key, *self.record.changes}
        return [number for number, name in enumerate(fields) if name in needed]


_STAMP = "created_at"


@cache
def write_statement(writes: tuple[Write, ...]) -> str:
    """All tables in one statement. Arguments: the time, then those of `write_arguments`."""
    parts = []
    first = 2
    for write in writes:
        parts.append(f"w_{write.record.name} AS ({_write_one(write, first)})")
        first += len(write.sent())
    return f"WITH {', '.join(parts)} SELECT CAST($1 AS timestamptz)"


def _write_one(write: Write, first: int) -> str:
    record = write.record
    sent = write.sent()
    names = [record.fields[number] for number in sent]
    arrays = ", ".join(
        _array(argument, record.types[number]) for argument, number in enumerate(sent, first)
    )
    columns = ", ".join(names)
    if write.fresh:
        # One empty string splits into no element at all.
        selected = ", ".join(
            f"COALESCE(u.{record.fields[number]}, '')"
            if record.types[number] == "TEXT"
            else f"u.{record.fields[number]}"
            for number in sent
        )
        target = columns
        if _STAMP in record.fields:
            target, selected = f"{columns}, {_STAMP}", f"{selected}, CAST($1 AS timestamptz)"
        statement = (
            f"INSERT INTO {record.name} ({target}) SELECT {selected}"
            f" FROM unnest({arrays}) AS u({columns})"
        )
    else:
        updates = ", ".join(
            f"{field} = COALESCE(u.{field}, '')" if kind == "TEXT" else f"{field} = u.{field}"
            for field, kind in zip(record.fields, record.types, strict=True)
            if field in record.changes
        )
        matches = " AND ".join(f"t.{field} = u.{field}" for field in record.key)
        statement = (
            f"UPDATE {record.name} AS t SET {updates} FROM unnest({arrays}) AS u({columns})"
            f" WHERE {matches}"
        )
    return f"{statement} RETURNING 1"


def write_arguments(write: Write, rows: Iterable[tuple[Any, ...]]) -> Iterable[Any]:
    """A column a field that is sent."""
    columns = list(zip(*rows, strict=True))
    types = write.record.types
    return [joined(columns[number], types[number]) for number in write.sent()]
