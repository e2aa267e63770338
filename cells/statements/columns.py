"""A statement as columns of a Parquet file: what reconciliation reads, ten million lines of it.

Two ways lead there. The fast one lets DuckDB read a text format in one pass, when the file is plain
(ASCII, no quotes, numbers written the usual way); it judges nothing: whatever it does not find in
order sends the file down the slow way, the streaming parser, which knows the line and the column.
So the fast way may only ever accept what the parser accepts, and a property test holds it to that.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb

from cells.statements.layouts import CamtLayout, CsvLayout, FixedLayout
from cells.statements.model import (
    HASH_MODULUS,
    Claimed,
    FaultReason,
    Limits,
    StatementFault,
    StatementLine,
    Totals,
)
from cells.statements.reading import AnyLayout, check_size, reading_of
from cells.statements.rules import check_claims
from cells.statements.selecting import select_csv, select_fixed

_BLOCK_BYTES = 4 * 1024**2
# Where the totals of a file are looked for; each currency's takes a line.
_TAIL_BYTES = 64 * 1024
_PLAIN = bytes(range(0x20, 0x7F)) + b"\n"

# The columns of a believed statement, as StatementLine has them.
COLUMNS = (
    "channel VARCHAR, clearing_date DATE, line_no BIGINT, reference VARCHAR,"
    " short_reference VARCHAR, bank_reference VARCHAR, kind VARCHAR, amount BIGINT, fee BIGINT,"
    " currency VARCHAR, status VARCHAR, booked_at TIMESTAMP, batch VARCHAR"
)


@dataclass(frozen=True, slots=True)
class Converted:
    """A statement whose totals are right, as columns on disk."""

    path: Path
    claimed: Claimed
    totals: Mapping[str, Totals]
    sha256: str
    # columns or lines: which way it went.
    way: str

    @property
    def lines(self) -> int:
        return sum(totals.lines for totals in self.totals.values())


@dataclass(frozen=True, slots=True)
class Resources:
    # DuckDB's; more spills to disk.
    memory_limit: str = "512MB"
    threads: int = 2


def convert(
    path: Path,
    layout: AnyLayout,
    channel: str,
    day: date,
    into: Path,
    limits: Limits | None = None,
    resources: Resources | None = None,
) -> Converted:
    """Writes the Parquet file `into`, whole or not at all. Raises StatementFault."""
    limits = limits or Limits()
    resources = resources or Resources()
    try:
        check_size(path, limits)
        with TemporaryDirectory(prefix=".converting-", dir=into.parent) as folder:
            work = _Work(path, layout, channel, day, Path(folder), limits, resources)
            converted = work.by_columns() or work.by_lines()
            os.replace(converted.path, into)
    except StatementFault as fault:
        fault.file = path.name
        raise
    return Converted(into, converted.claimed, converted.totals, converted.sha256, converted.way)


@dataclass(frozen=True, slots=True)
class _Plainness:
    sha256: str
    lines: int
    is_plain: bool


class _Work:
    """One conversion, in a folder of its own."""

    def __init__(
        self,
        path: Path,
        layout: AnyLayout,
        channel: str,
        day: date,
        folder: Path,
        limits: Limits,
        resources: Resources,
    ) -> None:
        self._path = path
        self._layout = layout
        self._channel = channel
        self._day = day
        self._limits = limits
        self._folder = folder
        self._resources = resources
        tabs = isinstance(layout, CsvLayout) and layout.delimiter == "\t"
        self._plainness = _look_over(path, _PLAIN + b"\t" if tabs else _PLAIN)

    def by_columns(self) -> Converted | None:
        """The fast way; None where the parser has to judge."""
        layout = self._layout
        plain = self._plainness
        if isinstance(layout, CamtLayout) or not plain.is_plain or plain.lines < 2:
            return None
        if plain.lines > self._limits.lines_max:
            return None
        try:
            claimed, tails = self._claims(layout)
        except StatementFault:
            return None
        if not claimed.totals:
            return None
        selecting = (
            select_csv(self._path, layout, claimed, self._channel, self._day, self._limits)
            if isinstance(layout, CsvLayout)
            else select_fixed(self._path, layout, claimed, self._channel, self._day, self._limits)
        )
        if selecting is None:
            return None
        out = self._folder / "columns.parquet"
        with self._database() as database:
            try:
                _copy(database, selecting.query, out)
                rows = plain.lines - selecting.lines_before - tails
                totals = _totals_of_good(database, out, rows)
            except duckdb.Error:
                return None
        if totals is None:
            return None
        # What is claimed and is not so is a fault either way; the parser need not find it again.
        check_claims(claimed, totals, self._day)
        return Converted(out, claimed, totals, plain.sha256, "columns")

    def _claims(self, layout: CsvLayout | FixedLayout) -> tuple[Claimed, int]:
        """What head and tails say, read by the parser itself from a file without rows."""
        before = 2 if isinstance(layout, CsvLayout) and layout.head else 1
        with self._path.open("rb") as file:
            first = b"".join(file.readline(self._limits.line_bytes_max) for _ in range(before))
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _TAIL_BYTES, len(first)))
            lines = file.read().split(b"\n")[:-1]
        tag = layout.tail_tag.encode()
        tails: list[bytes] = []
        while lines and lines[-1].startswith(tag):
            tails.append(lines.pop())
        text = first + b"".join(tail + b"\n" for tail in reversed(tails))
        return _claims_of(text, layout, self._channel, self._day, self._limits), len(tails)

    def by_lines(self) -> Converted:
        """The slow way: the parser's lines, by a file that says nothing twice, into columns."""
        staged = self._folder / "lines.csv"
        with (
            self._path.open("rb") as file,
            staged.open("w", encoding="utf-8", newline="", buffering=1024**2) as out,
        ):
            reading = reading_of(file, self._layout, self._channel, self._day, self._limits)
            writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
            writer.writerows(_texts(line) for line in reading)
        into = self._folder / "lines.parquet"
        names = [column.split()[0] for column in COLUMNS.split(", ")]
        fields = ", ".join(f"'{name}': 'VARCHAR'" for name in names)
        casts = ", ".join(
            f"CAST(nullif({name}, '') AS {kind}) AS {name}" if kind == "TIMESTAMP"
            else f"CAST({name} AS {kind}) AS {name}"
            for name, kind in (column.split() for column in COLUMNS.split(", "))
        )  # fmt: skip
        query = (
            f"SELECT {casts} FROM read_csv('{_quoted(staged)}', auto_detect=false, header=false,"
            f" delim=',', quote='\"', escape='\"', nullstr='\x01', columns={{{fields}}})"
        )
        with self._database() as database:
            _copy(database, query, into)
        return Converted(
            into, reading.claimed, dict(reading.totals), self._plainness.sha256, "lines"
        )

    def _database(self) -> duckdb.DuckDBPyConnection:
        return duckdb.connect(
            config={
                "memory_limit": self._resources.memory_limit,
                "threads": self._resources.threads,
                "temp_directory": str(self._folder / "spill"),
                # Nothing is fetched and nothing is loaded for a statement.
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            }
        )


def _claims_of(text: bytes, layout: AnyLayout, channel: str, day: date, limits: Limits) -> Claimed:
    """What head and tails say. Without rows the totals do not match, which is no fault here."""
    reading = reading_of(BytesIO(text), layout, channel, day, limits)
    try:
        for _ in reading:
            pass
    except StatementFault as fault:
        if fault.reason not in _OF_TOTALS:
            raise
    return reading.claimed


_OF_TOTALS = frozenset(
    {FaultReason.WRONG_COUNT, FaultReason.WRONG_TOTAL, FaultReason.WRONG_HASH_TOTAL}
)


def _look_over(path: Path, plain: bytes) -> _Plainness:
    """One pass over the bytes: their hash, their lines, and whether the fast way can read them."""
    digest = sha256()
    lines, is_plain, last = 0, True, b""
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            lines += block.count(b"\n")
            is_plain = is_plain and not block.translate(None, plain) and b'"' not in block
            last = block
    return _Plainness(digest.hexdigest(), lines, is_plain and last.endswith(b"\n"))


def _copy(database: duckdb.DuckDBPyConnection, query: str, into: Path) -> None:
    database.execute(
        f"COPY ({query}) TO '{_quoted(into)}' (FORMAT parquet, COMPRESSION zstd,"
        f" COMPRESSION_LEVEL 1)"
    )


def _totals_of_good(
    database: duckdb.DuckDBPyConnection, path: Path, rows: int
) -> dict[str, Totals] | None:
    """By currency; None unless all rows are there and were understood: each has its number."""
    found: list[tuple[Any, ...]] = database.execute(
        "SELECT currency, count(*), count(line_no),"
        " coalesce(sum(amount) FILTER (amount > 0), 0),"
        " coalesce(-sum(amount) FILTER (amount < 0), 0), coalesce(sum(fee), 0),"
        # Most references end in twelve digits, and leaving out what is none is dear.
        " coalesce(sum(TRY_CAST(CASE"
        "  WHEN regexp_full_match(right(bank_reference, 12), '[0-9]{12}')"
        "  THEN right(bank_reference, 12)"
        "  ELSE right(regexp_replace(bank_reference, '[^0-9]', '', 'g'), 12)"
        " END AS BIGINT)), 0)"
        f" FROM read_parquet('{_quoted(path)}') GROUP BY currency"
    ).fetchall()
    if sum(row[2] for row in found) != rows or any(row[1] != row[2] for row in found):
        return None
    return {
        str(row[0]): Totals(
            int(row[1]), int(row[3]), int(row[4]), int(row[5]), int(row[6]) % HASH_MODULUS
        )
        for row in found
    }


def _texts(line: StatementLine) -> Iterator[str]:
    for value in line:
        if isinstance(value, datetime):
            yield value.strftime("%Y-%m-%d %H:%M:%S.%f")
        else:
            yield "" if value is None else str(value)


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
