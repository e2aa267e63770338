"""CSV statements, read line by line. See layouts.CsvLayout for what a bank may choose.

Stricter than RFC 4180 in one thing: no cell holds a line's end, so that a line is a record and a
quote that is never closed costs one line and not the file.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import date
from typing import BinaryIO

from cells.statements.layouts import CsvLayout
from cells.statements.model import (
    Claimed,
    ClaimedTotals,
    FaultReason,
    Limits,
    StatementFault,
    StatementLine,
    Totals,
)
from cells.statements.rows import RawLine, RowBuilder, count_of, day_of, raw_lines, total_of
from cells.statements.rules import check_channel, check_claims, check_day


class CsvReading:
    """One pass over a file. Believe nothing before it has ended without a StatementFault."""

    def __init__(
        self, file: BinaryIO, layout: CsvLayout, channel: str, day: date, limits: Limits
    ) -> None:
        self._file = file
        self._layout = layout
        self._channel = channel
        self._day = day
        self._limits = limits
        self.claimed = Claimed()
        self.totals: dict[str, Totals] = {}

    def __iter__(self) -> Iterator[StatementLine]:
        layout = self._layout
        lines = raw_lines(
            self._file, layout.conventions.charset, self._limits, tabs=layout.delimiter == "\t"
        )
        first = next(lines, None)
        if first is None:
            raise StatementFault(FaultReason.EMPTY, "the file is empty")
        if layout.head:
            self._read_head(first)
            first = next(lines, None)
            if first is None:
                raise StatementFault(FaultReason.TRUNCATED, "the file ends behind its head")
        width, places, builder = self._read_names(first)
        tails: dict[str, ClaimedTotals] = {}
        tail_tag = layout.tail_tag if layout.tail else None
        totals = self.totals
        for line in lines:
            cells = split_cells(line, layout.delimiter)
            if tail_tag is not None and cells[0] == tail_tag:
                self._read_tail(line, cells, tails)
                continue
            if tails:
                raise StatementFault(
                    FaultReason.MALFORMED, "a row behind the totals", line=line.number
                )
            if len(cells) != width:
                raise StatementFault(
                    FaultReason.MALFORMED,
                    f"{len(cells)} cells where the names of columns are {width}", line=line.number,
                )  # fmt: skip

            def column_of(place: int, line: RawLine = line) -> int:
                return start_of(line.text, layout.delimiter, places[place])

            row = builder.build(line.number, [cells[place] for place in places], column_of)
            totals[row.currency] = totals.get(row.currency, _NOTHING).plus(row)
            yield row
        if layout.tail and not tails:
            raise StatementFault(FaultReason.TRUNCATED, "the file ends without its totals")
        self.claimed = Claimed(
            self.claimed.statement_id, self.claimed.clearing_date, self.claimed.lines, tails
        )
        check_claims(self.claimed, totals, self._day)

    def _read_head(self, line: RawLine) -> None:
        cells = self._named(line, self._layout.head, self._layout.head_tag, "head")
        try:
            self.claimed = read_head(cells, self._layout, self._channel, self._day)
        except StatementFault as fault:
            fault.line = line.number
            raise

    def _read_tail(self, line: RawLine, cells: list[str], tails: dict[str, ClaimedTotals]) -> None:
        try:
            named = self._named(line, self._layout.tail, self._layout.tail_tag, "total", cells)
            currency, claim = read_tail(named, self._layout)
            if currency in tails:
                raise StatementFault(FaultReason.MALFORMED, f"two totals of {currency}")
        except StatementFault as fault:
            fault.line = line.number
            raise
        tails[currency] = claim

    def _named(
        self,
        line: RawLine,
        names: tuple[str, ...],
        tag: str,
        what: str,
        cells: list[str] | None = None,
    ) -> dict[str, str]:
        cells = split_cells(line, self._layout.delimiter) if cells is None else cells
        # Some programs fill short lines with empty cells, as spreadsheets do.
        if len(cells) < len(names) or any(cells[len(names) :]):
            raise StatementFault(
                FaultReason.MALFORMED,
                f"a {what} of {len(cells)} cells instead of {len(names)}", line=line.number,
            )  # fmt: skip
        named = dict(zip(names, cells, strict=False))
        if named.get("tag", tag) != tag:
            raise StatementFault(
                FaultReason.MALFORMED,
                f"{named['tag'][:32]!r} where {tag!r} begins the {what}",
                line=line.number, column=1,
            )  # fmt: skip
        return named

    def _read_names(self, line: RawLine) -> tuple[int, list[int], RowBuilder]:
        """How many cells a row has, where the fields that we read stand, and their builder."""
        cells = split_cells(line, self._layout.delimiter)
        columns = self._layout.columns
        if len(set(cells)) != len(cells):
            raise StatementFault(FaultReason.MALFORMED, "two columns of one name", line=line.number)
        places, names = [], []
        for name, bank_name in columns.items():
            if bank_name in cells:
                places.append(cells.index(bank_name))
                names.append(name)
            elif name in {"bank_reference", "kind", "amount", "currency"}:
                raise StatementFault(
                    FaultReason.MALFORMED, f"no column {bank_name!r} for {name}", line=line.number
                )
        builder = RowBuilder(
            self._layout.conventions, tuple(names), self._channel, self._day, self._limits
        )
        return len(cells), places, builder


_NOTHING = Totals()


def read_head(cells: dict[str, str], layout: CsvLayout, channel: str, day: date) -> Claimed:
    conventions = layout.conventions
    if "channel" in cells:
        check_channel(cells["channel"], layout.channel or channel)
    claimed_day = None
    if "clearing_date" in cells:
        claimed_day = day_of(cells["clearing_date"], conventions)
        check_day(claimed_day, day)
    lines = count_of(cells["lines"], "number of lines") if "lines" in cells else None
    return Claimed(cells.get("statement_id"), claimed_day, lines)


def read_tail(cells: dict[str, str], layout: CsvLayout) -> tuple[str, ClaimedTotals]:
    conventions = layout.conventions
    currency = cells.get("currency", conventions.currency)

    def total(name: str) -> int | None:
        return total_of(cells[name], currency, conventions) if name in cells else None

    return currency, ClaimedTotals(
        lines=count_of(cells["lines"], "number of lines") if "lines" in cells else None,
        credits=total("credits"),
        debits=total("debits"),
        fees=total("fees"),
        hash_total=count_of(cells["hash_total"], "hash total") if "hash_total" in cells else None,
        net=total("net"),
    )


def split_cells(line: RawLine, delimiter: str) -> list[str]:
    if '"' not in line.text:
        return line.text.split(delimiter)
    try:
        return next(csv.reader([line.text], delimiter=delimiter, strict=True))
    except (csv.Error, StopIteration) as error:
        raise StatementFault(
            FaultReason.MALFORMED, f"quotes do not match: {error}", line=line.number,
            column=line.text.index('"') + 1,
        ) from error  # fmt: skip


def start_of(text: str, delimiter: str, place: int) -> int:
    """In which character, counted from 1, the cell of that number begins."""
    seen, quoted = 0, False
    for position, character in enumerate(text):
        if seen == place:
            return position + 1
        if character == '"':
            quoted = not quoted
        elif character == delimiter and not quoted:
            seen += 1
    return len(text) + 1
