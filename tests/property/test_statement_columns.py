"""The two ways from a text statement to columns agree, and no bytes get past both."""

from __future__ import annotations

import csv
import io
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cells.statements import columns
from cells.statements.columns import Converted, Resources, convert
from cells.statements.layouts import CamtLayout, Conventions, CsvLayout, FixedLayout
from cells.statements.model import (
    Limits,
    LineKind,
    LineStatus,
    StatementFault,
    StatementLine,
    Totals,
)
from cells.statements.reading import AnyLayout, read_lines
from tests.unit.test_statements import FIXED

DAY = date(2026, 11, 23)
SMALL = Limits(file_bytes_max=200_000, lines_max=1000)
VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "camt053"
NAMES = (
    "reference", "short_reference", "bank_reference", "kind", "amount", "fee", "currency",
    "status", "booked_at", "batch",
)  # fmt: skip

_reference = st.text("ABC019-_ /.'", max_size=12)
_kind = st.sampled_from(LineKind)
_digits = st.integers(-(10**9), 10**9)


@st.composite
def csv_statements(draw: st.DrawFn) -> str:
    """A good statement of two currencies, one without minor units."""
    rows, totals = [], dict[str, Totals]()
    for number in range(draw(st.integers(0, 6))):
        currency = draw(st.sampled_from(["CNY", "JPY"]))
        kind = draw(_kind)
        amount = draw(_digits)
        fee = draw(st.integers(-999, 999))
        line = StatementLine(
            "east", DAY, number, draw(_reference).strip(), "", f"R{draw(_reference).strip()}",
            kind, amount, fee, currency, LineStatus.BOOKED, None,
        )  # fmt: skip
        totals[currency] = totals.get(currency, Totals()).plus(line)
        booked = draw(st.sampled_from(["", "2026-11-23T10:00:00Z", "2024-02-29T23:59:59Z"]))
        rows.append(
            (line.reference, "", line.bank_reference, kind, _decimal(amount, currency),
             _decimal(fee, currency) if fee else "", currency, "booked", booked, "")
        )  # fmt: skip
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["#statement", "S1", "east", DAY.isoformat()])
    writer.writerow(NAMES)
    writer.writerows(rows)
    totals.setdefault("CNY", Totals())
    for currency, total in totals.items():
        writer.writerow(
            ["#total", currency, total.lines, _decimal(total.credits, currency),
             _decimal(total.debits, currency), _decimal(total.fees, currency), total.hash_total]
        )  # fmt: skip
    return text.getvalue()


def _decimal(amount: int, currency: str) -> str:
    if currency == "JPY":
        return str(amount)
    whole, part = divmod(abs(amount), 100)
    return f"{'-' if amount < 0 else ''}{whole}.{part:02d}"


def both_ways(raw: bytes, layout: AnyLayout) -> tuple[Converted | str, list[Any] | str]:
    """What convert makes of it, and what the parser alone makes of it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(raw)
        try:
            parsed: list[Any] | str = list(read_lines(path, layout, "east", DAY, SMALL))
        except StatementFault as fault:
            parsed = fault.reason.value
        into = Path(folder) / "out.parquet"
        try:
            converted: Converted | str = convert(path, layout, "east", DAY, into, SMALL, ONE)
        except StatementFault as fault:
            return fault.reason.value, parsed
        assert isinstance(parsed, list), f"columns took what the parser refuses: {parsed}"
        assert rows_of(into) == [
            tuple(one.replace(tzinfo=None) if hasattr(one, "tzinfo") else one for one in line)
            for line in parsed
        ]
        return converted, parsed


ONE = Resources(memory_limit="128MB", threads=1)


def rows_of(path: Path) -> list[Any]:
    with duckdb.connect() as database:
        return database.execute(f"SELECT * FROM read_parquet('{path}') ORDER BY line_no").fetchall()


@settings(max_examples=15)
@given(csv_statements())
def test_a_good_file_goes_by_columns_and_gives_the_parsers_lines(text: str) -> None:
    converted, parsed = both_ways(text.encode(), CsvLayout())
    assert isinstance(converted, Converted)
    assert converted.way == "columns"
    assert converted.lines == len(parsed)


_MUTATIONS = [
    ("2026-11-23T10:00:00Z", "2026-11-23T10:00:60Z"), ("T10", "T24"), ("-23T", "-31T"),
    (",CNY,", ",CNY ,"), (",CNY,", ",cny,"), ("\n", "\n\n"), ("\n", "\r\n"), (",", ",,"), (",", ""),
    (".", ","), (".", ""), (".", "e"), ("0", "0"), ("1", "+1"), ("booked", "Booked"),
    ("#total", " #total"), ("#total", "#totals"), ("#total", ""), ("R", '"'), ("R", "'"),
    ("-", "--"), ("-", "+"), ("purchase", "refund"), ("\n#total,CNY", "\n#total,USD"), ("S1", ""),
    ("2024-02-29", "2023-02-29"), ("R", "\t"), ("R", "\x00"), ("R", "\u00e9"), ("A", "1"),
]  # fmt: skip


@settings(max_examples=40)
@given(
    csv_statements(),
    st.lists(st.tuples(st.sampled_from(_MUTATIONS), st.integers(0, 30)), min_size=1, max_size=2),
    st.integers(0, 40),
)
def test_a_changed_file_has_one_fate_on_both_ways(
    text: str, changes: list[tuple[tuple[str, str], int]], cut: int
) -> None:
    for (old, new), which in changes:
        parts = text.split(old)
        if len(parts) > 1:
            at = which % (len(parts) - 1) + 1
            text = old.join(parts[:at]) + new + old.join(parts[at:])
    raw = text.encode()
    if cut > 35:
        raw = raw[: -(cut - 35)]
    converted, parsed = both_ways(raw, CsvLayout())
    if isinstance(converted, str):
        # The totals and the count may both be wrong; either is named.
        assert isinstance(parsed, str)


@given(st.binary(max_size=400))
def test_no_bytes_crash_a_parser(raw: bytes) -> None:
    for layout in (CsvLayout(), FixedLayout(), CamtLayout()):
        _, parsed = both_ways(raw, layout)
        assert isinstance(parsed, str), "noise is no statement"


@given(
    st.sampled_from(["iso-sample-v02.xml", "swiss-batch-v08.xml"]),
    st.integers(0, 10_000),
    st.sampled_from(["", "<", "&amp;", "<a>", "</Ntry>", "\x00", "9", "-", "<!DOCTYPE a>", "]]>"]),
    st.integers(0, 60),
)
def test_no_change_of_an_xml_file_crashes_its_parser(
    name: str, at: int, insert: str, remove: int
) -> None:
    text = (VECTORS / name).read_text(encoding="utf-8")
    at %= len(text)
    both_ways((text[:at] + insert + text[at + remove :]).encode(), CamtLayout())


def test_a_tab_is_no_character_of_a_cell_unless_it_parts_them() -> None:
    """The fast way took it once."""
    text = "bank_reference,kind,amount,currency\n1\t2,purchase,1.00,CNY\n#total,CNY,1\n"
    layout = CsvLayout(head=(), tail=("tag", "currency", "lines"))
    assert both_ways(text.encode(), layout) == ("MALFORMED", "MALFORMED")
    tabs = CsvLayout(head=(), tail=("tag", "currency", "lines"), delimiter="\t")
    converted, _ = both_ways(text.replace("\t", " ").replace(",", "\t").encode(), tabs)
    assert isinstance(converted, Converted)
    assert converted.way == "columns"


def test_times_of_a_zone_are_shifted_alike_on_both_ways() -> None:
    layout = CsvLayout(
        conventions=Conventions(time_format="%Y-%m-%d %H:%M:%S", time_zone="Asia/Shanghai"),
        head=(), tail=("tag", "currency", "lines"),
    )  # fmt: skip
    text = (
        "bank_reference,kind,amount,currency,booked_at\n"
        "1,purchase,1.00,CNY,2026-11-23 01:00:00\n#total,CNY,1\n"
    )
    converted, _ = both_ways(text.encode(), layout)
    assert isinstance(converted, Converted)
    assert converted.way == "columns"
    far, _ = both_ways(text.replace("2026", "1988").encode(), layout)
    assert isinstance(far, Converted)
    assert far.way == "lines", "of that year the zone had another offset"


def test_fixed_goes_by_columns_too() -> None:
    converted, parsed = both_ways(FIXED.encode(), FixedLayout())
    assert isinstance(converted, Converted)
    assert (converted.way, len(parsed)) == ("columns", 2)
    for old, new in (
        ("att_1", "att 1"),
        ("B2026", "X2026"),
        ("P00", "P-0"),
        ("D", "Q"),
        ("CNY", "EUR"),
    ):
        both_ways(FIXED.replace(old, new).encode(), FixedLayout())


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.integers(0, len(FIXED) - 1), st.sampled_from("0129 +-.APRVOFBXDTHC\n'e")),
        min_size=1,
        max_size=3,
    )
)
def test_a_changed_file_of_fixed_length_has_one_fate_on_both_ways(
    changes: list[tuple[int, str]],
) -> None:
    text = list(FIXED)
    for at, character in changes:
        text[at] = character
    both_ways("".join(text).encode(), FixedLayout())


def test_what_only_the_parser_takes_goes_by_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "#statement,S1,east,2026-11-23\n" + ",".join(NAMES) + "\n"
        'a,,"R,1",purchase,1,,CNY,booked,,\n#total,CNY,1,1,0,0,1\n'
    )
    converted, _ = both_ways(text.encode(), CsvLayout())
    assert isinstance(converted, Converted)
    assert converted.way == "lines"
    monkeypatch.setattr(columns, "_TAIL_BYTES", 30)
    both_ways(text.encode(), CsvLayout())
