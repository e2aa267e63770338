"""Rows on their way into Parquet: as CSV, a line at a time, so that memory does not grow with them.

DuckDB reads the CSV with columns that are named here, never guessed; files are whole or absent.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from cells.reconciliation.model import Theirs
from cells.statements.model import StatementLine

_NULL = "\\N"


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> int:
    """Returns how many."""
    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        for row in rows:
            writer.writerow([_text(value) for value in row])
            count += 1
    return count


def _text(value: object) -> object:
    if value is None:
        return _NULL
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ")
    return value


def theirs_of(line: StatementLine) -> Theirs:
    return Theirs(
        line.line_no, line.reference, line.short_reference, line.bank_reference, line.kind.value,
        line.amount, line.fee, line.currency, line.status.value, line.booked_at, line.batch,
    )  # fmt: skip


def to_parquet(
    connection: duckdb.DuckDBPyConnection,
    source: Path,
    columns: Mapping[str, str],
    target: Path,
    condition: str = "true",
) -> int:
    """Returns the rows written. `source` goes when `target` is there."""
    listed = ", ".join(f"'{name}': '{kind}'" for name, kind in columns.items())
    half = target.with_suffix(".half")
    row = connection.execute(
        f"COPY (SELECT * FROM read_csv('{_quoted(source)}', columns = {{{listed}}},"
        " auto_detect = false, header = false, delim = ',', quote = '\"', escape = '\"',"
        f" nullstr = '\\N', new_line = '\\n', strict_mode = true) WHERE {condition})"
        f" TO '{_quoted(half)}' (FORMAT parquet)"
    ).fetchone()
    os.replace(half, target)
    source.unlink()
    return int(row[0]) if row else 0


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
