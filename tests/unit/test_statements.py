"""Statements of all three formats: what is read of good ones, and where bad ones are refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from cells.statements.layouts import LAYOUT, CamtLayout, Conventions, CsvLayout, FixedLayout
from cells.statements.model import FaultReason, Limits, LineKind, LineStatus, StatementFault
from cells.statements.money import minor_units, whole_minor_units
from cells.statements.reading import AnyLayout, read_lines, reading_of

DAY = date(2026, 11, 23)
VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "camt053"

CSV = """\
#statement,ST-7,east,2026-11-23
reference,short_reference,bank_reference,kind,amount,fee,currency,status,booked_at
att_1,ABC,R-000000000011,purchase,12.34,0.05,CNY,booked,2026-11-23T10:00:00Z
att_2,,R-000000000022,refund,-2.00,,CNY,booked,2026-11-23T10:00:01Z
"att_3",,R-000000000033,payout,-500,0,JPY,pending,
#total,CNY,2,12.34,2.00,0.05,33
#total,JPY,1,0,500,0,33
"""


def fixed_line(*parts: tuple[int, str], length: int = 200) -> str:
    line = [" "] * length
    for start, text in parts:
        line[start - 1 : start - 1 + len(text)] = text
    assert len(line) == length
    return "".join(line) + "\n"


FIXED = (
    fixed_line((1, "HST-7"), (34, "east"), (66, "20261123"))
    + fixed_line(
        (1, "Datt_1"), (37, "ABC"), (49, "R-000000000011"), (73, "P"), (74, "0000000000001234"),
        (90, "000000000005"), (102, "CNY"), (105, "B"), (106, "20261123100000"),
    )
    + fixed_line(
        (1, "Datt_2"), (49, "R-000000000022"), (73, "R"), (74, "0000000000000200"),
        (90, "000000000000"), (102, "CNY"), (105, "B"),
    )
    + fixed_line(
        (1, "TCNY"), (5, "0000000002"), (15, f"{1234:018}"), (33, f"{200:018}"), (51, f"{5:018}"),
        (69, f"{33:012}"),
    )
)  # fmt: skip


def read(text: str | bytes, layout: AnyLayout, limits: Limits | None = None):  # type: ignore[no-untyped-def]
    raw = text.encode() if isinstance(text, str) else text
    return list(reading_of(io.BytesIO(raw), layout, "east", DAY, limits or Limits()))


def fault_of(text: str | bytes, layout: AnyLayout, limits: Limits | None = None) -> StatementFault:
    with pytest.raises(StatementFault) as caught:
        read(text, layout, limits)
    return caught.value


def test_csv_gives_exact_lines() -> None:
    first, second, third = read(CSV, CsvLayout())
    assert (first.amount, first.fee, first.currency) == (1234, 5, "CNY")
    assert (first.channel, first.clearing_date, first.line_no) == ("east", DAY, 3)
    assert first.booked_at == datetime(2026, 11, 23, 10, tzinfo=UTC)
    assert (second.kind, second.amount, second.fee) == (LineKind.REFUND, -200, 0)
    assert (third.reference, third.amount, third.status) == ("att_3", -500, LineStatus.PENDING)
    assert third.booked_at is None


def test_fixed_gives_the_same_lines_as_csv() -> None:
    first, second = read(FIXED, FixedLayout())
    assert first._replace(line_no=3) == read(CSV, CsvLayout())[0]
    assert (second.amount, second.fee, second.booked_at) == (-200, 0, None)


@pytest.mark.parametrize(
    ("change", "reason", "line", "column"),
    [
        (lambda text: "", FaultReason.EMPTY, 0, 0),
        (lambda text: text.replace("2026-11-23\n", "2026-11-24\n"), FaultReason.WRONG_DAY, 1, 0),
        (lambda text: text.replace("east", "west"), FaultReason.WRONG_CHANNEL, 1, 0),
        (lambda text: text.replace("#statement", "#stmt"), FaultReason.MALFORMED, 1, 1),
        (lambda text: text.replace("kind,", "sort,"), FaultReason.MALFORMED, 2, 0),
        (lambda text: text.replace("12.34,0", "12.345,0"), FaultReason.AMOUNT, 3, 35),
        (lambda text: text.replace("12.34,0", "1e3,0"), FaultReason.AMOUNT, 3, 35),
        (lambda text: text.replace("12.34,0", "NaN,0"), FaultReason.AMOUNT, 3, 35),
        (lambda text: text.replace("12.34,0", "\uff11\uff12,0"), FaultReason.AMOUNT, 3, 35),
        (lambda text: text.replace("12.34,0", f"{'9' * 18},0"), FaultReason.AMOUNT, 3, 35),
        (lambda text: text.replace("-2.00", "2.00"), FaultReason.WRONG_TOTAL, 0, 0),
        (lambda text: text.replace("0.05,CNY", "0.05,CNX"), FaultReason.CURRENCY, 3, 46),
        (lambda text: text.replace("refund", "gift"), FaultReason.FIELD, 4, 23),
        (lambda text: text.replace("T10:00:01Z", "T25:00:01Z"), FaultReason.FIELD, 4, 0),
        (lambda text: text.replace("att_2,,R-000000000022", ",,"), FaultReason.FIELD, 4, 3),
        (lambda text: text.replace('"att_3"', '"att_3'), FaultReason.MALFORMED, 5, 1),
        (lambda text: text.replace("att_2,", "att_2\x00,"), FaultReason.MALFORMED, 4, 6),
        (lambda text: text.replace("att_2,", "att\r_2,"), FaultReason.MALFORMED, 4, 4),
        (lambda text: text.replace("att_2,", "att_2,x,"), FaultReason.MALFORMED, 4, 0),
        (lambda text: text.encode().replace(b"att_2", b"att\xff2"), FaultReason.CHARSET, 4, 4),
        (lambda text: text.encode("utf-16"), FaultReason.CHARSET, 1, 1),
        (lambda text: text[: text.index("#total")], FaultReason.TRUNCATED, 0, 0),
        (lambda text: text[:-1], FaultReason.TRUNCATED, 7, 0),
        (lambda text: text[:200], FaultReason.TRUNCATED, 4, 0),
        (lambda text: text.replace("#total,JPY,1,0,500,0,33\n", ""), FaultReason.WRONG_COUNT, 0, 0),
        (lambda text: text.replace("#total,CNY,2", "#total,CNY,3"), FaultReason.WRONG_COUNT, 0, 0),
        (lambda text: text.replace("12.34,2.00", "12.33,2.00"), FaultReason.WRONG_TOTAL, 0, 0),
        (lambda text: text.replace("0.05,33", "0.06,33"), FaultReason.WRONG_TOTAL, 0, 0),
        (lambda text: text.replace("0.05,33", "0.05,34"), FaultReason.WRONG_HASH_TOTAL, 0, 0),
        (lambda text: text.replace("0022", "0023"), FaultReason.WRONG_HASH_TOTAL, 0, 0),
        (lambda text: text + text.splitlines()[-1] + "\n", FaultReason.MALFORMED, 8, 0),
        (lambda text: text + text.splitlines()[3] + "\n", FaultReason.MALFORMED, 8, 0),
        (lambda text: text.replace("att_1", "x" * 300), FaultReason.TOO_LARGE, 3, 1),
        (lambda text: text.replace("att_1", "x" * 5000), FaultReason.TOO_LARGE, 3, 0),
    ],
)  # fmt: skip
def test_csv_is_refused_whole_and_says_where(
    change: Callable[[str], str | bytes], reason: FaultReason, line: int, column: int
) -> None:
    fault = fault_of(change(CSV), CsvLayout())
    assert fault.reason is reason, str(fault)
    if line:
        assert fault.line == line, str(fault)
    if column:
        assert fault.column == column, str(fault)


@pytest.mark.parametrize(
    ("change", "reason", "line"),
    [
        (lambda text: text.replace("20261123 ", "20261122 "), FaultReason.WRONG_DAY, 1),
        (lambda text: text[1:], FaultReason.MALFORMED, 1),
        (lambda text: text.replace("Datt_2", "Xatt_2"), FaultReason.MALFORMED, 3),
        (lambda text: text.replace("Datt_2 ", "Datt_2"), FaultReason.MALFORMED, 3),
        (lambda text: text.replace("0001234", "00012.4"), FaultReason.AMOUNT, 2),
        (lambda text: text[: text.rindex("TCNY")], FaultReason.TRUNCATED, 0),
        (lambda text: text.replace("TCNY0000000002", "TCNY0000000001"), FaultReason.WRONG_COUNT, 0),
        (lambda text: text.replace("att_1", "\xe4tt_1"), FaultReason.CHARSET, 2),
        (lambda text: text + "Z" * 199 + "\n", FaultReason.MALFORMED, 5),
    ],
)
def test_fixed_is_refused_whole_and_says_where(
    change: Callable[[str], str], reason: FaultReason, line: int
) -> None:
    fault = fault_of(change(FIXED), FixedLayout())
    assert (fault.reason, fault.line) == (reason, line), str(fault)


def test_a_layout_of_another_bank_is_configuration() -> None:
    layout = LAYOUT.validate_python(
        {
            "format": "csv", "delimiter": ";", "head": [],
            "columns": {
                "bank_reference": "Nr", "kind": "Art", "amount": "Betrag", "booked_at": "am",
            },
            "tail": ["tag", "lines", "net"], "tail_tag": "SUMME",
            "conventions": {
                "charset": "latin-1", "decimal_mark": ",", "signs": "by_kind", "currency": "EUR",
                "kinds": {"Kauf": "purchase", "Gutschrift": "refund"},
                "time_format": "%d.%m.%Y %H:%M", "time_zone": "Europe/Berlin",
            },
        }
    )  # fmt: skip
    text = (
        "Art;Nr;Betrag;am;Händler\r\nKauf;1;10,5;23.11.2026 10:00;Bäcker\r\n"
        "Gutschrift;2;3,00;23.11.2026 10:00;\r\nSUMME;2;7,50;;\r\n"
    )
    first, second = read(text.encode("latin-1"), layout)
    assert (first.amount, second.amount, first.currency) == (1050, -300, "EUR")
    assert first.booked_at == datetime(2026, 11, 23, 9, tzinfo=UTC)
    wrong = text.replace("10,5", "1.050").encode("latin-1")
    assert fault_of(wrong, layout).reason is FaultReason.AMOUNT


@pytest.mark.parametrize(
    "settings",
    [
        {"format": "csv", "columns": {"kind": "k", "amount": "a"}},
        {"format": "csv", "columns": {"kind": "k", "amount": "a", "bank_reference": "b"}},
        {"format": "csv", "tail": ["tag", "sum"]},
        {"format": "fixed", "length": 100},
        {"format": "mt940"},
        {"format": "csv", "conventions": {"time_zone": "Mars/Base"}},
        {"format": "csv", "delimeter": ";"},
    ],
)
def test_a_layout_that_cannot_work_is_refused_when_it_is_read(settings: dict[str, object]) -> None:
    with pytest.raises((ValidationError, KeyError)):
        LAYOUT.validate_python(settings)


@pytest.mark.parametrize(
    ("text", "currency", "number"),
    [
        ("12.3", "CNY", 1230), ("-0.01", "CNY", -1), ("500", "JPY", 500), ("500.00", "JPY", 500),
        ("1.5", "KWD", 1500), ("+7", "USD", 700),
        ("9007199254740993.01", "CNY", 900719925474099301),
    ],
)  # fmt: skip
def test_money_is_exact(text: str, currency: str, number: int) -> None:
    assert minor_units(text, currency) == number


@pytest.mark.parametrize(
    "text", ["", ".5", "1.", "1,5", "1_000", " 1", "1 ", "--1", "0x1", "٣", "inf"]
)
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(StatementFault):
        minor_units(text, "CNY")
    with pytest.raises(StatementFault):
        whole_minor_units(text.replace("1", "x"), "CNY")


def test_the_limits_of_a_file_hold() -> None:
    assert fault_of(CSV, CsvLayout(), Limits(lines_max=3)).reason is FaultReason.TOO_LARGE
    endless = b"#statement," + b"a" * 10_000_000
    assert fault_of(endless, CsvLayout()).reason is FaultReason.TOO_LARGE


def test_the_fault_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "east-20261123.csv"
    path.write_text(CSV.replace("12.34,0", "12.345,0"), encoding="utf-8")
    with pytest.raises(StatementFault, match=r"^east-20261123\.csv:3:35: AMOUNT: "):
        list(read_lines(path, CsvLayout(), "east", DAY))
    with pytest.raises(StatementFault, match=r"^east-20261123\.csv: TOO_LARGE: "):
        list(read_lines(path, CsvLayout(), "east", DAY, Limits(file_bytes_max=10)))


def test_a_byte_order_mark_is_no_part_of_the_first_cell() -> None:
    assert len(read(b"\xef\xbb\xbf" + CSV.encode(), CsvLayout())) == 3


def test_signs_as_seen_from_the_bank_are_turned() -> None:
    layout = CsvLayout(conventions=Conventions(signs="inverted"))
    text = CSV.replace("12.34,0", "-12.34,0").replace("-2.00", "2.00").replace("-500", "500")
    assert [line.amount for line in read(text, layout)] == [1234, -200, -500]


def test_camt_of_version_02_as_the_standard_shows_it() -> None:
    path = VECTORS / "iso-sample-v02.xml"
    first, second, third = read_lines(path, CamtLayout(), "east", date(2010, 10, 18))
    assert (first.reference, first.amount, first.currency) == (
        "MUELL/FINP/RA12345", 10_567_850, "SEK",
    )  # fmt: skip
    assert first.booked_at == datetime(2010, 10, 18, 12, 15, tzinfo=UTC)
    assert (second.kind, second.reference, second.amount) == (
        LineKind.BATCH, "FINP-0055/001", -20_000_000,
    )  # fmt: skip
    assert (third.reference, third.bank_reference) == ("AAAASS1085FINPSS", "AAAASESS-FP-CONF-FX")


def test_camt_of_version_08_with_a_batch_and_charges() -> None:
    lines = list(read_lines(VECTORS / "swiss-batch-v08.xml", CamtLayout(), "east", DAY))
    assert [(line.kind.value, line.amount, line.fee) for line in lines] == [
        ("purchase", 10_000, 100), ("purchase", 20_000, 0), ("refund", -1_900, 0),
        ("payout", -5_000, 25), ("void", -835, 0), ("fee", -500, 0),
    ]  # fmt: skip
    assert sum(line.amount - line.fee for line in lines) == 121_640 - 100_000
    assert [line.line_no for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {line.batch for line in lines[:3]} == {"20261123001000000042"}
    assert lines[1].reference == "", "NOTPROVIDED is no reference"


SWISS = (VECTORS / "swiss-batch-v08.xml").read_text(encoding="utf-8")
LONG = "y" * 3_000_000
BOMB = '<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
OUTSIDE = '<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.replace("<Document", BOMB + "<Document"), FaultReason.HOSTILE_XML),
        (lambda text: text.replace("<Document", OUTSIDE + "<Document"), FaultReason.HOSTILE_XML),
        (lambda text: text.replace("<Document", "<?evil do?><Document"), FaultReason.HOSTILE_XML),
        (lambda text: text.replace("<Stmt>", "<Stmt>" + "<a>" * 100), FaultReason.HOSTILE_XML),
        (lambda text: text.replace("<Ntry>", "<Ntry>" + "<a/>" * 9000, 1), FaultReason.HOSTILE_XML),
        (lambda text: text.replace("<Stmt>", f"<Stmt x='{LONG}'>"), FaultReason.HOSTILE_XML),
        (lambda text: text.replace("<NtryRef>", "<NtryRef>" + LONG), FaultReason.HOSTILE_XML),
        (lambda text: text.replace("QRR-0001", "&unknown;"), FaultReason.MALFORMED),
        (lambda text: text.encode("utf-16"), FaultReason.CHARSET),
        (lambda text: text.replace('"UTF-8"', '"ISO-8859-1"'), FaultReason.CHARSET),
        (lambda text: text.encode().replace(b"QRR-0001", b"QRR-\xff01"), FaultReason.MALFORMED),
        (lambda text: "", FaultReason.EMPTY),
        (lambda text: "PK\x03\x04", FaultReason.MALFORMED),
        (lambda text: text[: len(text) // 2], FaultReason.TRUNCATED),
        (lambda text: text.replace("camt.053.001.08", "camt.052.001.08"), FaultReason.MALFORMED),
        (lambda text: text.replace("<Document xmlns", "<Document x"), FaultReason.MALFORMED),
        (lambda text: text.replace("23T23:59:59", "22T23:59:59"), FaultReason.WRONG_DAY),
        (lambda text: text.replace("1216.40", "1216.41"), FaultReason.WRONG_TOTAL),
        (lambda text: text.replace("<Sum>343.60", "<Sum>343.61"), FaultReason.WRONG_TOTAL),
        (lambda text: text.replace("<NbOfNtries>4", "<NbOfNtries>5"), FaultReason.WRONG_COUNT),
        (lambda text: text.replace(">200.00<", ">201.00<"), FaultReason.WRONG_TOTAL),
        (lambda text: text.replace(">200.00<", ">2e2<"), FaultReason.AMOUNT),
        (lambda text: text.replace(">200.00<", ">-200.00<"), FaultReason.AMOUNT),
        (lambda text: text.replace("<Cd>BOOK</Cd>", "<Cd>MAYBE</Cd>"), FaultReason.FIELD),
        (lambda text: text.replace(">DBIT<", ">BOTH<"), FaultReason.FIELD),
        (lambda text: text.replace("Acct>", "Owner>"), FaultReason.WRONG_CHANNEL),
    ],
)  # fmt: skip
def test_camt_is_refused_whole(change: Callable[[str], str | bytes], reason: FaultReason) -> None:
    fault = fault_of(change(SWISS), CamtLayout())
    assert fault.reason is reason, str(fault)


def test_of_two_statements_the_configured_account_is_read() -> None:
    other = SWISS[SWISS.index("    <Stmt>") : SWISS.index("  </BkToCstmrStmt>")]
    other = other.replace("CH9300762011623852957", "CH5604835012345678009")
    text = SWISS.replace("  </BkToCstmrStmt>", other + "  </BkToCstmrStmt>")
    assert fault_of(text, CamtLayout()).reason is FaultReason.MALFORMED
    assert len(read(text, CamtLayout(account="CH5604835012345678009"))) == 6
    missing = fault_of(text, CamtLayout(account="CH00"))
    assert missing.reason is FaultReason.WRONG_CHANNEL


def test_a_charge_of_the_whole_batch_is_a_line_of_its_own() -> None:
    charge = "<Chrgs><Rcrd><Amt Ccy='CHF'>4.00</Amt><ChrgInclInd>true</ChrgInclInd></Rcrd></Chrgs>"
    text = (
        SWISS.replace("<NtryDtls>\n          <Btch>", charge + "<NtryDtls>\n          <Btch>")
        .replace('Ccy="CHF">280.00', 'Ccy="CHF">276.00')
        .replace("1216.40", "1212.40").replace("343.60", "339.60").replace(">280.00", ">276.00")
    )  # fmt: skip
    fees = [line for line in read(text, CamtLayout()) if line.kind is LineKind.FEE]
    assert [(line.amount, line.batch) for line in fees] == [
        (-400, "20261123001000000042"), (-500, ""),
    ]  # fmt: skip
