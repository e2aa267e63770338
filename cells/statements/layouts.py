"""How a bank writes its statements: configuration, so that another bank of a known format needs
no code. Read with pydantic; what it does not know is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from cells.statements.model import LineKind, LineStatus

_STRICT = ConfigDict(extra="forbid")

# Fields of a row that a layout can name; the first three are looked for in every row.
REQUIRED = ("bank_reference", "kind", "amount")
OPTIONAL = ("reference", "short_reference", "fee", "currency", "status", "booked_at", "batch")
ROW_FIELDS = frozenset(REQUIRED + OPTIONAL)
HEAD_FIELDS = frozenset({"tag", "statement_id", "channel", "clearing_date", "lines"})
TAIL_FIELDS = frozenset(
    {"tag", "currency", "lines", "credits", "debits", "fees", "net", "hash_total"}
)


@checked(frozen=True, slots=True, config=_STRICT)
class Conventions:
    """What both text formats need to know of a bank's habits."""

    charset: Literal["utf-8", "ascii", "latin-1", "gb18030"] = "utf-8"
    # decimal: 12.34; minor: 1234, whatever the currency.
    amounts: Literal["decimal", "minor"] = "decimal"
    decimal_mark: Literal[".", ","] = "."
    # signed: as seen from us. inverted: as seen from the bank. by_kind: no sign, the kind gives it.
    signs: Literal["signed", "inverted", "by_kind"] = "signed"
    # The bank's words for ours.
    kinds: Mapping[str, LineKind] = field(default_factory=lambda: {k.value: k for k in LineKind})
    statuses: Mapping[str, LineStatus] = field(
        default_factory=lambda: {s.value: s for s in LineStatus}
    )
    # Of heads and tails.
    date_format: str = "%Y-%m-%d"
    # Of booked_at; without a zone in it, `time_zone` is meant.
    time_format: str = "%Y-%m-%dT%H:%M:%SZ"
    time_zone: str = "UTC"
    # Where no column says it.
    currency: str = ""

    def __post_init__(self) -> None:
        ZoneInfo(self.time_zone)


@checked(frozen=True, slots=True, config=_STRICT)
class CsvLayout:
    """Lines of cells: a head (when `head` names its cells), names of columns, rows, and tails (when
    `tail` names theirs), one a currency. A line is a record: no cell holds a line's end."""

    format: Literal["csv"] = "csv"
    delimiter: Literal[",", ";", "\t", "|"] = ","
    head_tag: str = "#statement"
    head: tuple[str, ...] = ("tag", "statement_id", "channel", "clearing_date")
    # Our field → the bank's name of the column.
    columns: Mapping[str, str] = field(
        default_factory=lambda: {name: name for name in REQUIRED + OPTIONAL}
    )
    tail_tag: str = "#total"
    tail: tuple[str, ...] = (
        "tag", "currency", "lines", "credits", "debits", "fees", "hash_total",
    )  # fmt: skip
    # What the bank calls the channel in the head, when not by our name.
    channel: str = ""
    conventions: Conventions = field(default_factory=Conventions)

    def __post_init__(self) -> None:
        _check_names(self.head, HEAD_FIELDS, "head")
        _check_names(self.tail, TAIL_FIELDS, "tail")
        _check_names(tuple(self.columns), ROW_FIELDS, "columns")
        _check_row(tuple(self.columns), self.conventions)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a field stands: bytes, the first being 1."""

    start: int
    length: int
    # Numbers are filled from the left, texts from the right.
    fill: str = " "
    align: Literal["left", "right"] = "left"


@checked(frozen=True, slots=True, config=_STRICT)
class FixedLayout:
    """Lines of one length, whose first bytes say which record each is."""

    format: Literal["fixed"] = "fixed"
    # Bytes of a line, its end not among them.
    length: int = 200
    head_tag: str = "H"
    row_tag: str = "D"
    tail_tag: str = "T"
    head: Mapping[str, Place] = field(
        default_factory=lambda: {
            "statement_id": Place(2, 32),
            "channel": Place(34, 32),
            "clearing_date": Place(66, 8),
        }
    )
    columns: Mapping[str, Place] = field(
        default_factory=lambda: {
            "reference": Place(2, 35),
            "short_reference": Place(37, 12),
            "bank_reference": Place(49, 24),
            "kind": Place(73, 1),
            "amount": Place(74, 16, "0", "right"),
            "fee": Place(90, 12, "0", "right"),
            "currency": Place(102, 3),
            "status": Place(105, 1),
            "booked_at": Place(106, 14),
            "batch": Place(120, 24),
        }
    )
    tail: Mapping[str, Place] = field(
        default_factory=lambda: {
            "currency": Place(2, 3),
            "lines": Place(5, 10, "0", "right"),
            "credits": Place(15, 18, "0", "right"),
            "debits": Place(33, 18, "0", "right"),
            "fees": Place(51, 18, "0", "right"),
            "hash_total": Place(69, 12, "0", "right"),
        }
    )
    channel: str = ""
    conventions: Conventions = field(
        default_factory=lambda: Conventions(
            charset="ascii",
            amounts="minor",
            signs="by_kind",
            kinds={
                "P": LineKind.PURCHASE, "R": LineKind.REFUND, "V": LineKind.VOID,
                "O": LineKind.PAYOUT, "F": LineKind.FEE, "B": LineKind.BATCH,
            },
            statuses={
                "B": LineStatus.BOOKED, "R": LineStatus.REJECTED, "P": LineStatus.PENDING,
            },
            date_format="%Y%m%d",
            time_format="%Y%m%d%H%M%S",
        )
    )  # fmt: skip

    def __post_init__(self) -> None:
        _check_names(tuple(self.head), HEAD_FIELDS, "head")
        _check_names(tuple(self.tail), TAIL_FIELDS, "tail")
        _check_names(tuple(self.columns), ROW_FIELDS, "columns")
        _check_row(tuple(self.columns), self.conventions)
        for places in (self.head, self.columns, self.tail):
            for name, place in places.items():
                if place.start < 1 or place.length < 1 or len(place.fill) != 1:
                    raise ValueError(f"{name} has no place")
                if place.start + place.length - 1 > self.length:
                    raise ValueError(f"{name} ends behind the line's {self.length} bytes")


@checked(frozen=True, slots=True, config=_STRICT)
class CamtLayout:
    """ISO 20022 camt.053, versions 02 to 08."""

    format: Literal["camt.053"] = "camt.053"
    # IBAN or other ID of our account; empty: the file has one account only.
    account: str = ""
    # The bank's transaction code → our kind: `PMNT-MCRD-POSP`, or a proprietary code. The rest is
    # told by family, reversal indicator and side.
    kinds: Mapping[str, LineKind] = field(default_factory=dict)
    # Which elements of Refs hold our reference, the first that is there.
    references: tuple[Literal["EndToEndId", "InstrId", "TxId", "MsgId", "PmtInfId"], ...] = (
        "EndToEndId", "InstrId",
    )  # fmt: skip
    # Where a charge does not say whether the amount holds it already (before version 08).
    charges: Literal["included", "separate"] = "included"
    # Opening balance and booked entries make the closing balance, or the file is refused.
    check_balances: bool = True
    # Of times that name no zone.
    time_zone: str = "UTC"

    def __post_init__(self) -> None:
        ZoneInfo(self.time_zone)


Layout = Annotated[CsvLayout | FixedLayout | CamtLayout, Field(discriminator="format")]
LAYOUT: TypeAdapter[CsvLayout | FixedLayout | CamtLayout] = TypeAdapter(Layout)


def _check_names(names: tuple[str, ...], known: frozenset[str], where: str) -> None:
    strange = sorted(set(names) - known)
    if strange:
        raise ValueError(f"{where} names {strange[0]!r}, which is none of {sorted(known)}")
    if len(set(names)) != len(names):
        raise ValueError(f"{where} names a field twice")


def _check_row(names: tuple[str, ...], conventions: Conventions) -> None:
    for name in REQUIRED:
        if name not in names:
            raise ValueError(f"columns lack {name}")
    if "currency" not in names and not conventions.currency:
        raise ValueError("neither columns nor conventions name the currency")
