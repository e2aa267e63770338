"""From the texts of a row to a StatementLine, and what both text formats share of reading a file:
lines of bounded length, their characters checked, no more of them than is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import BinaryIO, TypeVar
from zoneinfo import ZoneInfo

from cells.statements.layouts import Conventions
from cells.statements.model import (
    FaultReason,
    Limits,
    LineKind,
    LineStatus,
    StatementFault,
    StatementLine,
)
from cells.statements.money import exponent_of, minor_units, whole_minor_units

# Which way money goes where the bank writes no sign.
OUTWARD = frozenset({LineKind.REFUND, LineKind.VOID, LineKind.PAYOUT, LineKind.FEE})
_CONTROL = re.compile("[\x00-\x1f\x7f\x80-\x9f\u2028\u2029\ufeff]")
_INTEGER = re.compile(r"[0-9]{1,18}", re.ASCII)
_Word = TypeVar("_Word", LineKind, LineStatus)


@dataclass(frozen=True, slots=True)
class RawLine:
    number: int
    text: str


def raw_lines(file: BinaryIO, charset: str, limits: Limits, *, tabs: bool) -> Iterator[RawLine]:
    """Lines without their ends. A last line that has no end is TRUNCATED."""
    number = 0
    while raw := file.readline(limits.line_bytes_max + 1):
        number += 1
        if number == 1 and charset == "utf-8":
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if not raw.endswith(b"\n"):
            if len(raw) > limits.line_bytes_max:
                raise StatementFault(
                    FaultReason.TOO_LARGE,
                    f"a line has more than {limits.line_bytes_max} bytes", line=number,
                )  # fmt: skip
            raise StatementFault(
                FaultReason.TRUNCATED, "the file ends within a line", line=number, column=len(raw)
            )
        if number > limits.lines_max:
            raise StatementFault(
                FaultReason.TOO_LARGE, f"more than {limits.lines_max} lines", line=number
            )
        raw = raw.removesuffix(b"\n").removesuffix(b"\r")
        try:
            text = raw.decode(charset)
        except UnicodeDecodeError as error:
            raise StatementFault(
                FaultReason.CHARSET,
                f"byte 0x{raw[error.start]:02x} is not {charset}",
                line=number, column=error.start + 1,
            ) from error  # fmt: skip
        found = _CONTROL.search(text.replace("\t", " ") if tabs else text)
        if found:
            raise StatementFault(
                FaultReason.MALFORMED,
                f"character U+{ord(found.group()):04X} has no place in a statement",
                line=number, column=found.start() + 1,
            )  # fmt: skip
        yield RawLine(number, text)


class RowBuilder:
    """Makes lines of one statement. Raises StatementFault, whose column is the field's."""

    def __init__(
        self,
        conventions: Conventions,
        names: tuple[str, ...],
        channel: str,
        clearing_date: date,
        limits: Limits,
    ) -> None:
        self._conventions = conventions
        self._channel = channel
        self._day = clearing_date
        self._field_max = limits.field_characters_max
        self._places = {name: place for place, name in enumerate(names)}
        self._reference = self._places.get("reference")
        self._short = self._places.get("short_reference")
        self._bank = self._places["bank_reference"]
        self._kind = self._places["kind"]
        self._amount = self._places["amount"]
        self._fee = self._places.get("fee")
        self._currency = self._places.get("currency")
        self._status = self._places.get("status")
        self._booked = self._places.get("booked_at")
        self._batch = self._places.get("batch")
        self._zone = ZoneInfo(conventions.time_zone)
        # A day has 86,400 seconds, and strptime costs more than the rest of a row.
        self._time = lru_cache(maxsize=100_000)(self._parse_time)

    def build(self, line: int, texts: list[str], column_of: Callable[[int], int]) -> StatementLine:
        """`texts` stand in the order of `names`; `column_of` says where one begins."""
        at = self._bank
        try:
            if max(map(len, texts)) > self._field_max:
                at = max(range(len(texts)), key=lambda place: len(texts[place]))
                raise StatementFault(
                    FaultReason.TOO_LARGE, f"a field has more than {self._field_max} characters"
                )
            at = self._kind
            kind = self._word(self._conventions.kinds, texts[at], "kind")
            currency = self._conventions.currency
            if self._currency is not None:
                at = self._currency
                currency = texts[at]
                exponent_of(currency)
            fee = 0
            at = self._amount
            amount = self._signed(kind, texts[at], currency)
            if self._fee is not None and texts[self._fee]:
                at = self._fee
                fee = self._number(texts[at], currency)
            status = LineStatus.BOOKED
            if self._status is not None:
                at = self._status
                status = self._word(self._conventions.statuses, texts[at], "status")
            booked = None
            if self._booked is not None and texts[self._booked]:
                at = self._booked
                booked = self._time(texts[at])
            at = self._bank
            reference = "" if self._reference is None else texts[self._reference]
            short = "" if self._short is None else texts[self._short]
            if not (texts[at] or reference or short):
                raise StatementFault(FaultReason.FIELD, "a row names no reference at all")
        except StatementFault as fault:
            fault.line, fault.column = line, column_of(at)
            raise
        return StatementLine(
            self._channel, self._day, line, reference, short, texts[self._bank],
            kind, amount, fee, currency, status, booked,
            "" if self._batch is None else texts[self._batch],
        )  # fmt: skip

    def _word(self, words: Mapping[str, _Word], text: str, what: str) -> _Word:
        found = words.get(text)
        if found is None:
            raise StatementFault(FaultReason.FIELD, f"{text[:32]!r} is no {what} that we know")
        return found

    def _number(self, text: str, currency: str) -> int:
        if self._conventions.amounts == "minor":
            return whole_minor_units(text, currency)
        return minor_units(text, currency, decimal_mark=self._conventions.decimal_mark)

    def _signed(self, kind: LineKind, text: str, currency: str) -> int:
        amount = self._number(text, currency)
        match self._conventions.signs:
            case "inverted":
                amount = -amount
            case "by_kind" if kind in OUTWARD and not text.startswith(("+", "-")):
                amount = -amount
            case _:
                pass
        return amount

    def _parse_time(self, text: str) -> datetime:
        try:
            parsed = datetime.strptime(text, self._conventions.time_format)  # noqa: DTZ007
        except ValueError as error:
            raise StatementFault(FaultReason.FIELD, f"{text[:32]!r} is no time") from error
        if parsed.tzinfo is None:
            parsed = parsed.replace(tzinfo=self._zone)
        return parsed.astimezone(UTC)


def count_of(text: str, what: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise StatementFault(FaultReason.FIELD, f"{text[:32]!r} is no {what}")
    return int(text)


def day_of(text: str, conventions: Conventions) -> date:
    try:
        return datetime.strptime(text, conventions.date_format).date()  # noqa: DTZ007
    except ValueError as error:
        raise StatementFault(FaultReason.FIELD, f"{text[:32]!r} is no date") from error


def total_of(text: str, currency: str, conventions: Conventions) -> int:
    if conventions.amounts == "minor":
        return whole_minor_units(text, currency)
    return minor_units(text, currency, decimal_mark=conventions.decimal_mark)
