"""Reading purchases: good rows become exact amounts, bad rows name their line and what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from control.cellctl.demo import PURCHASES
from control.cellctl.failures import NotLoadable
from control.cellctl.load import Rejected, read_purchases, write_rejected

HEADER = "user_id,ordered_at,merchant_id,amount,currency\n"


def written(folder: Path, *rows: str) -> Path:
    path = folder / "purchases.csv"
    path.write_bytes(
        (HEADER + "".join(f"{row}\n" for row in rows)).encode("utf-8", "surrogateescape")
    )
    return path


@pytest.mark.parametrize(
    ("amount", "currency", "minor"),
    [("12.34", "USD", 1234), ("12", "USD", 1200), ("0.01", "USD", 1), ("500", "JPY", 500),
     ("1.234", "KWD", 1234), ("90071992547409.92", "USD", 2**53)],
)  # fmt: skip
def test_amounts_are_exact_in_the_currencys_minor_unit(
    tmp_path: Path, amount: str, currency: str, minor: int
) -> None:
    good, bad = read_purchases(written(tmp_path, f"ann,1997-01-01,shop,{amount},{currency}"))
    assert bad == []
    assert good[0].amount_minor == minor


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("ann,1997-01-01,shop,0.00,USD", "greater than zero"),
        ("ann,1997-01-01,shop,-1,USD", "greater than zero"),
        ("ann,1997-01-01,shop,90071992547409.93,USD", "2^53"),
        ("ann,1997-01-01,shop,1.234,USD", "more digits"),
        ("ann,1997-01-01,shop,0.5,JPY", "more digits"),
        ("ann,1997-01-01,shop,NaN,USD", "more digits"),
        ("ann,1997-01-01,shop,ten,USD", "no decimal number"),
        ("ann,1997-01-01,shop,1.00,XYZ", "ISO 4217"),
        ("ann,yesterday,shop,1.00,USD", "ISO 8601"),
        (",1997-01-01,shop,1.00,USD", "user_id"),
        (f"{'u' * 65},1997-01-01,shop,1.00,USD", "user_id"),
        ("ann,1997-01-01,ann,1.00,USD", "the same"),
        ("ann,1997-01-01,shop,1.00", "4 columns"),
        ("an\udcffn,1997-01-01,shop,1.00,USD", "printable"),
    ],
)
def test_a_bad_row_is_named_by_its_line_and_the_rest_goes_on(
    tmp_path: Path, row: str, why: str
) -> None:
    fine = "bob,1997-01-01,shop,1.00,USD"
    good, bad = read_purchases(written(tmp_path, fine, row, fine))
    assert [item.line for item in good] == [2, 4]
    assert [(item.line, why in item.reason) for item in bad] == [(3, True)]


def test_identical_rows_are_different_purchases_with_stable_keys(tmp_path: Path) -> None:
    row = "ann,1997-01-01,shop,1.00,USD"
    first, _ = read_purchases(written(tmp_path, row, row))
    second, _ = read_purchases(written(tmp_path, row, row, "bob,1997-01-01,shop,1.00,USD"))
    assert len({item.key for item in first}) == 2
    assert [item.key for item in first] == [item.key for item in second[:2]]


def test_a_file_with_another_header_is_refused_whole(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b,c\n1,2,3\n")
    with pytest.raises(NotLoadable, match="first line"):
        read_purchases(path)
    path.write_text("")
    with pytest.raises(NotLoadable):
        read_purchases(path)


def test_rejected_rows_go_to_a_side_file_in_the_order_of_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "side.csv"
    write_rejected(path, [Rejected(9, "late", ("z",)), Rejected(2, "early", ("a", "b"))])
    lines = path.read_text().splitlines()
    assert lines[0].startswith("line,reason,")
    assert lines[1:] == ["2,early,a,b", "9,late,z"]


def test_the_cdnow_sample_is_whole() -> None:
    good, bad = read_purchases(PURCHASES)
    assert len(good) + len(bad) == 6919
    assert len({item.user_id for item in good} | {item.row[0] for item in bad}) == 2357
    assert {item.reason.split()[1] for item in bad} == {"0.00"}
    assert sum(item.amount_minor for item in good) == 24_409_194
