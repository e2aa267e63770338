"""Fixed-length statements: lines of one length, places counted in bytes. See layouts.FixedLayout.

A head first, rows, then one tail a currency. Every layout has all three: without a tail a file that
was cut at a line's end would pass for a whole one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from typing import BinaryIO

from cells.statements.layouts import FixedLayout, Place
from cells.statements.model import (
    Claimed,
    ClaimedTotals,
    FaultReason,
    Limits,
    StatementFault,
    StatementLine,
    Totals,
)
from cells.statements.rows import RowBuilder, count_of, day_of, raw_lines, total_of
from cells.statements.rules import check_channel, check_claims, check_day


class FixedReading:
    """One pass over a file. Believe nothing before it has ended without a StatementFault."""

    def __init__(
        self, file: BinaryIO, layout: FixedLayout, channel: str, day: date, limits: Limits
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
        names = tuple(layout.columns)
        places = [layout.columns[name] for name in names]
        builder = RowBuilder(layout.conventions, names, self._channel, self._day, self._limits)
        starts = [place.start for place in places]
        tails: dict[str, ClaimedTotals] = {}
        totals = self.totals
        last = 0
        for number, raw in self._records():
            last = number
            if number == 1:
                self._read_head(raw)
            elif raw.startswith(layout.row_tag.encode()) and not tails:
                texts = [self._text(raw, place, number) for place in places]
                row = builder.build(number, texts, starts.__getitem__)
                totals[row.currency] = totals.get(row.currency, _NOTHING).plus(row)
                yield row
            elif raw.startswith(layout.tail_tag.encode()):
                self._read_tail(raw, number, tails)
            else:
                raise StatementFault(
                    FaultReason.MALFORMED,
                    "a row behind the totals" if tails else "a record of no kind that we know",
                    line=number, column=1,
                )  # fmt: skip
        if not last:
            raise StatementFault(FaultReason.EMPTY, "the file is empty")
        if not tails:
            raise StatementFault(FaultReason.TRUNCATED, "the file ends without its totals")
        self.claimed = Claimed(
            self.claimed.statement_id, self.claimed.clearing_date, self.claimed.lines, tails
        )
        check_claims(self.claimed, totals, self._day)

    def _records(self) -> Iterator[tuple[int, bytes]]:
        charset = self._layout.conventions.charset
        for line in raw_lines(self._file, charset, self._limits, tabs=False):
            raw = line.text.encode(charset)
            if len(raw) != self._layout.length:
                raise StatementFault(
                    FaultReason.MALFORMED,
                    f"{len(raw)} bytes where every line has {self._layout.length}",
                    line=line.number, column=min(len(raw), self._layout.length) + 1,
                )  # fmt: skip
            yield line.number, raw

    def _text(self, raw: bytes, place: Place, number: int) -> str:
        part = raw[place.start - 1 : place.start - 1 + place.length]
        try:
            text = part.decode(self._layout.conventions.charset)
        except UnicodeDecodeError as error:
            # A character of several bytes that lies across the field's border.
            raise StatementFault(
                FaultReason.CHARSET, "a field cuts a character in two",
                line=number, column=place.start,
            ) from error  # fmt: skip
        if place.align == "right":
            return strip_fill(text, place.fill)
        return text.rstrip(place.fill)

    def _texts(self, raw: bytes, places: Mapping[str, Place], number: int) -> dict[str, str]:
        return {name: self._text(raw, place, number) for name, place in places.items()}

    def _read_head(self, raw: bytes) -> None:
        layout = self._layout
        if not raw.startswith(layout.head_tag.encode()):
            raise StatementFault(
                FaultReason.MALFORMED, f"the file does not begin with {layout.head_tag!r}",
                line=1, column=1,
            )  # fmt: skip
        texts = self._texts(raw, layout.head, 1)
        try:
            if "channel" in texts:
                check_channel(texts["channel"], layout.channel or self._channel)
            day = None
            if "clearing_date" in texts:
                day = day_of(texts["clearing_date"], layout.conventions)
                check_day(day, self._day)
            lines = count_of(texts["lines"], "number of lines") if "lines" in texts else None
        except StatementFault as fault:
            fault.line = 1
            raise
        self.claimed = Claimed(texts.get("statement_id"), day, lines)

    def _read_tail(self, raw: bytes, number: int, tails: dict[str, ClaimedTotals]) -> None:
        layout = self._layout
        conventions = layout.conventions
        texts = self._texts(raw, layout.tail, number)
        currency = texts.get("currency", conventions.currency)

        def total(name: str) -> int | None:
            return total_of(texts[name], currency, conventions) if name in texts else None

        def count(name: str) -> int | None:
            return count_of(texts[name], name) if name in texts else None

        try:
            if currency in tails:
                raise StatementFault(FaultReason.MALFORMED, f"two totals of {currency}")
            tails[currency] = ClaimedTotals(
                count("lines"), total("credits"), total("debits"), total("fees"),
                count("hash_total"), total("net"),
            )  # fmt: skip
        except StatementFault as fault:
            fault.line = number
            raise


_NOTHING = Totals()


def strip_fill(text: str, fill: str) -> str:
    """`-00012` is `-12`; all zeros are one zero. Spaces in front are fill whatever it is."""
    text = text.strip(" ")
    sign = text[:1] if text[:1] in {"-", "+"} else ""
    rest = text.removeprefix(sign).lstrip(fill)
    if fill == "0" and not rest.strip("0") and text:
        return "0"
    return sign + rest
