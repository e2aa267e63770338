"""Rows on their way into Parquet: as CSV, a line at a time, so that memory does not grow with them.

DuckDB reads the CSV with columns that are named here, never guessed; files are whole or absent.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import duckdb

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
        if value.tzinfo is not None:
            value = value.astimezone(UTC).replace(tzinfo=None)
        return value.isoformat(sep=" ")
    return value


def to_parquet(
    connection: duckdb.DuckDBPyConnection,
    sources: Sequence[Path],
    columns: Mapping[str, str],
    target: Path,
    condition: str = "true",
) -> int:
    """Returns the rows written. `sources` go when `target` is there."""
    listed = ", ".join(f"'{name}': '{kind}'" for name, kind in columns.items())
    files = ", ".join(f"'{_quoted(source)}'" for source in sources)
    half = target.with_suffix(".half")
    row = connection.execute(
        f"COPY (SELECT * FROM read_csv([{files}], columns = {{{listed}}},"
        " auto_detect = false, header = false, delim = ',', quote = '\"', escape = '\"',"
        f" nullstr = '\\N', new_line = '\\n', strict_mode = true) WHERE {condition})"
        f" TO '{_quoted(half)}' (FORMAT parquet)"
    ).fetchone()
    os.replace(half, target)
    for source in sources:
        source.unlink()
    return int(row[0]) if row else 0


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
