"""SQL that reads a plain text statement as the parsers do, or marks a row as not understood.

A row that is not surely what the parser would make of it has no line number in the result; one such
row sends the whole file to the parser. What a layout or a file decides is quoted as text and never
becomes SQL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from cells.statements.layouts import Conventions, CsvLayout, FixedLayout
from cells.statements.model import Claimed, Limits
from cells.statements.money import exponent_of
from cells.statements.rows import OUTWARD

# No plain file holds them: what stands for NULL, and what parts the cells of a line that has none.
_NO_TEXT = "\x01"
_NO_DELIMITER = "\x02"
_DIRECTIVES = {
    "%Y": "[0-9]{4}", "%m": "[0-9]{2}", "%d": "[0-9]{2}",
    "%H": "[0-9]{2}", "%M": "[0-9]{2}", "%S": "[0-5][0-9]",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Selecting:
    query: str
    # Lines of the file before its first row.
    lines_before: int


def select_csv(
    path: Path, layout: CsvLayout, claimed: Claimed, channel: str, day: date, limits: Limits
) -> Selecting | None:
    """None where only the parser can read this layout."""
    before = 2 if layout.head else 1
    with path.open("rb") as file:
        for _ in range(before):
            names = file.readline(limits.line_bytes_max).decode("ascii").rstrip("\n")
    cells = names.split(layout.delimiter)
    fields = {
        name: f"c{cells.index(bank_name)}"
        for name, bank_name in layout.columns.items()
        if bank_name in cells
    }
    columns = ", ".join(f"'c{number}': 'VARCHAR'" for number in range(len(cells)))
    source = (
        f"read_csv({_text(str(path))}, auto_detect=false, header=false, quote='', escape='',"
        f" delim={_text(layout.delimiter)}, columns={{{columns}}}, null_padding=true,"
        f" nullstr={_text(_NO_TEXT)}, skip={before}, strict_mode=true, new_line='\\n',"
        f" max_line_size={limits.line_bytes_max})"
    )
    whole = f"c{len(cells) - 1} IS NOT NULL"
    is_row = f"c0 IS DISTINCT FROM {_text(layout.tail_tag)}"
    table = _Table(source, fields, whole, is_row, before)
    return _select(table, layout.conventions, claimed, channel, day, limits)


def select_fixed(
    path: Path, layout: FixedLayout, claimed: Claimed, channel: str, day: date, limits: Limits
) -> Selecting | None:
    fields = {}
    for name, place in layout.columns.items():
        part = f"substr(line, {place.start}, {place.length})"
        if place.align == "left":
            fields[name] = f"rtrim({part}, {_text(place.fill)})"
        elif name in {"amount", "fee"} and place.fill in "0 ":
            fields[name] = f"trim({part}, ' ')"
        else:
            return None
    source = (
        f"read_csv({_text(str(path))}, auto_detect=false, header=false, quote='', escape='',"
        f" delim={_text(_NO_DELIMITER)}, columns={{'line': 'VARCHAR'}},"
        f" nullstr={_text(_NO_TEXT)}, skip=1, strict_mode=true, new_line='\\n',"
        f" max_line_size={limits.line_bytes_max})"
    )
    whole = f"strlen(line) = {int(layout.length)} AND starts_with(line, {_text(layout.row_tag)})"
    is_row = (
        f"(starts_with(line, {_text(layout.row_tag)})"
        f" OR NOT starts_with(line, {_text(layout.tail_tag)}))"
    )
    table = _Table(source, fields, whole, is_row, 1)
    return _select(table, layout.conventions, claimed, channel, day, limits)


@dataclass(frozen=True, slots=True)
class _Table:
    """A file as DuckDB reads it, and the expressions that take it apart."""

    source: str
    # Our field → its text.
    fields: Mapping[str, str]
    # Whether a row has all its parts, and whether a line is a row and no tail.
    whole: str
    is_row: str
    lines_before: int


def _select(
    table: _Table,
    conventions: Conventions,
    claimed: Claimed,
    channel: str,
    day: date,
    limits: Limits,
) -> Selecting | None:
    fields = table.fields
    texts = {name: fields.get(name, "''") for name in _TEXTS}
    currency = fields.get("currency", _text(conventions.currency))
    booked = _time(fields.get("booked_at"), conventions, day)
    if booked is None:
        return None
    kind = _cases(fields["kind"], conventions.kinds)
    status = _cases(fields["status"], conventions.statuses) if "status" in fields else "'booked'"
    fee = _number("fee_text", "currency", claimed, conventions)
    fee = f"CASE WHEN fee_text = '' THEN 0 ELSE {fee} END"
    amount = _number("amount_text", "currency", claimed, conventions)
    outward = ", ".join(_text(one) for one in sorted(OUTWARD))
    match conventions.signs:
        case "inverted":
            signed = "-number"
        case "by_kind":
            signed = (
                f"CASE WHEN kind IN ({outward}) AND left(amount_text, 1) NOT IN ('+', '-')"
                " THEN -number ELSE number END"
            )
        case _:
            signed = "number"
    longest = f"greatest({', '.join(f'strlen({field})' for field in fields.values())})"
    known = ", ".join(_text(one) for one in sorted(claimed.totals)) or "''"
    good = (
        "is_whole AND kind IS NOT NULL AND status IS NOT NULL AND amount IS NOT NULL"
        f" AND fee IS NOT NULL AND currency IN ({known}) AND booked_good"
        " AND (reference <> '' OR short_reference <> '' OR bank_reference <> '')"
    )
    query = (
        f"SELECT {_text(channel)} AS channel, DATE {_text(day.isoformat())} AS clearing_date,"
        f" CASE WHEN {good} THEN n END AS line_no,"
        " reference, short_reference, bank_reference, kind, amount, fee, currency, status,"
        " booked_at, batch FROM ("
        f"  SELECT *, {signed} AS amount FROM ("
        f"   SELECT *, {amount} AS number, {fee} AS fee FROM ("
        f"    SELECT row_number() OVER () + {table.lines_before} AS n,"
        f"     {table.whole} AND {longest} <= {int(limits.field_characters_max)} AS is_whole,"
        f"     {table.is_row} AS is_row,"
        f"     {', '.join(f'{text} AS {name}' for name, text in texts.items())},"
        f"     {kind} AS kind, {fields['amount']} AS amount_text,"
        f"     {fields.get('fee', _text(''))} AS fee_text, {currency} AS currency,"
        f"     {status} AS status, {booked.value} AS booked_at, {booked.good} AS booked_good"
        f"    FROM {table.source}"
        "   ) WHERE is_row"
        "  )"
        " )"
    )
    return Selecting(query, table.lines_before)


_TEXTS = ("reference", "short_reference", "bank_reference", "batch")


@dataclass(frozen=True, slots=True)
class _Time:
    value: str
    good: str


def _time(field: str | None, conventions: Conventions, day: date) -> _Time | None:
    """None where the parser has to read times: other directives, or a zone that changes."""
    if field is None:
        return _Time("CAST(NULL AS TIMESTAMP)", "true")
    pattern = _pattern(conventions.time_format)
    shift = _shift_s(conventions.time_zone, day)
    if pattern is None or shift is None:
        return None
    parsed = f"try_strptime({field}, {_text(conventions.time_format)})"
    value = f"CASE WHEN {field} <> '' THEN {parsed} - INTERVAL {shift} SECOND END"
    good = (
        f"({field} = '' OR (regexp_full_match({field}, {_text(pattern)}) AND {parsed} IS NOT NULL"
    )
    if shift:
        # Elsewhere the zone may have had another offset.
        around = (day - timedelta(days=1), day + timedelta(days=2))
        good += f" AND {parsed} BETWEEN {_text(f'{around[0]}')} AND {_text(f'{around[1]}')}"
    return _Time(value, good + "))")


def _pattern(time_format: str) -> str | None:
    """A regular expression of what is surely of that format."""
    parts = re.findall(r"%.|[^%]+|%$", time_format)
    found = []
    for part in parts:
        if part.startswith("%"):
            if part not in _DIRECTIVES:
                return None
            found.append(_DIRECTIVES[part])
        else:
            found.append(re.escape(part))
    return "".join(found)


def _shift_s(zone_name: str, day: date) -> int | None:
    """Seconds that the zone was ahead of UTC, where that was so for all days around."""
    zone = ZoneInfo(zone_name)
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    offsets = {
        (noon + timedelta(hours=hours)).astimezone(zone).utcoffset() for hours in range(-72, 73, 6)
    }
    offset = offsets.pop()
    return int(offset.total_seconds()) if offset is not None and not offsets else None


def _cases(field: str, words: Mapping[str, str]) -> str:
    cases = " ".join(f"WHEN {_text(word)} THEN {_text(ours)}" for word, ours in words.items())
    return f"CASE {field} {cases} END"


def _number(field: str, currency: str, claimed: Claimed, conventions: Conventions) -> str:
    """Minor units as BIGINT, or NULL."""
    if conventions.amounts == "minor":
        return (
            f"CASE WHEN regexp_full_match({field}, '[+-]?[0-9]{{1,18}}')"
            f" THEN TRY_CAST(ltrim({field}, '+') AS BIGINT) END"
        )
    mark = conventions.decimal_mark
    cases = []
    for exponent in sorted({exponent_of(one) for one in claimed.totals}):
        of_it = [_text(one) for one in sorted(claimed.totals) if exponent_of(one) == exponent]
        cases.append(
            f"WHEN {currency} IN ({', '.join(of_it)}) THEN CASE"
            f" WHEN regexp_full_match({field}, '[+-]?[0-9]{{1,{18 - exponent}}}"
            + (f"[{mark}][0-9]{{{exponent}}}" if exponent else "")
            + f"') THEN TRY_CAST(ltrim(replace({field}, '{mark}', ''), '+') AS BIGINT) END"
        )
    return f"CASE {' '.join(cases)} END"


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
