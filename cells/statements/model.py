"""A line of a bank's statement in our words, what its file says of itself, and how it may be wrong.

Amounts are minor units as seen from us: positive is what the bank owes us for the line (it took a
purchase for us), negative what it paid out or takes back (refund, void, payout, fee). `fee` is
what it keeps for the line: positive is our cost, negative a fee given back. It settles
amount - fee.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum
from typing import NamedTuple


class LineKind(StrEnum):
    PURCHASE = "purchase"
    REFUND = "refund"
    VOID = "void"
    PAYOUT = "payout"
    # A fee of its own, not of one request (a month's rent, a scheme's bill).
    FEE = "fee"
    # One sum for many requests that the bank does not list: `reference` is the batch's.
    BATCH = "batch"


class LineStatus(StrEnum):
    """What the bank says became of it."""

    BOOKED = "booked"
    # Listed, though it had no effect.
    REJECTED = "rejected"
    # Listed, and to be booked on a later day.
    PENDING = "pending"


class StatementLine(NamedTuple):
    channel: str
    clearing_date: date
    # Where it stands in the file: the line of text, or, of XML, which line of ours it gave (from
    # 1). Unique in its statement.
    line_no: int
    # Ours, as the bank heard it; empty where its field was too short or it lost it.
    reference: str
    short_reference: str
    # The bank's own: what it called the request in its answer.
    bank_reference: str
    kind: LineKind
    amount: int
    fee: int
    currency: str
    status: LineStatus
    # UTC; None where the bank gives a day only.
    booked_at: datetime | None
    # The bank's reference of the sum in which this line was booked; empty: booked alone.
    batch: str = ""


class Totals(NamedTuple):
    """What lines of one currency add up to, each side for itself."""

    lines: int = 0
    # Minor units, both sides as positive numbers.
    credits: int = 0
    debits: int = 0
    fees: int = 0
    # The sum of each line's `hash_number`, modulo HASH_MODULUS: finds what changed though the
    # sums did not.
    hash_total: int = 0

    def plus(self, line: StatementLine) -> Totals:
        return Totals(
            self.lines + 1,
            self.credits + max(line.amount, 0),
            self.debits + max(-line.amount, 0),
            self.fees + line.fee,
            (self.hash_total + hash_number(line.bank_reference)) % HASH_MODULUS,
        )


HASH_MODULUS = 10**12


def hash_number(bank_reference: str) -> int:
    """The last twelve digits of a bank's reference, whatever stands between them."""
    return int(_NO_DIGITS.sub("", bank_reference)[-12:] or "0")


_NO_DIGITS = re.compile("[^0-9]+")


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a file says of itself and of its lines; None where its format has no place for it."""

    statement_id: str | None = None
    clearing_date: date | None = None
    lines: int | None = None
    # By currency; within, each number may be missing.
    totals: Mapping[str, ClaimedTotals] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClaimedTotals:
    lines: int | None = None
    credits: int | None = None
    debits: int | None = None
    fees: int | None = None
    hash_total: int | None = None
    # Credits less debits less fees.
    net: int | None = None


class FaultReason(StrEnum):
    """Why a statement is not believed, in order of precedence."""

    # Of the file.
    EMPTY = "EMPTY"
    TOO_LARGE = "TOO_LARGE"
    CHARSET = "CHARSET"
    HOSTILE_XML = "HOSTILE_XML"
    MALFORMED = "MALFORMED"
    TRUNCATED = "TRUNCATED"
    # Of a line.
    FIELD = "FIELD"
    AMOUNT = "AMOUNT"
    CURRENCY = "CURRENCY"
    # Of the whole.
    WRONG_CHANNEL = "WRONG_CHANNEL"
    WRONG_DAY = "WRONG_DAY"
    WRONG_COUNT = "WRONG_COUNT"
    WRONG_TOTAL = "WRONG_TOTAL"
    WRONG_HASH_TOTAL = "WRONG_HASH_TOTAL"
    # The same bytes were taken in for another day or channel.
    DUPLICATE = "DUPLICATE"
    # The day has a statement already, and this is another.
    ANOTHER_EDITION = "ANOTHER_EDITION"


class StatementFault(Exception):
    """A file is refused whole. Says where: line and column count from 1, 0 means the file."""

    def __init__(
        self, reason: FaultReason, message: str, *, file: str = "", line: int = 0, column: int = 0
    ) -> None:
        self.reason = reason
        self.message = message
        self.file = file
        self.line = line
        self.column = column
        super().__init__(reason, message)

    def __str__(self) -> str:
        # Whoever catches it on its way may add the place.
        return self.describe()

    def describe(self) -> str:
        place = self.file or "statement"
        if self.line:
            place += f":{self.line}"
            if self.column:
                place += f":{self.column}"
        return f"{place}: {self.reason}: {self.message}"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a file may be at most, so that a hostile one costs a bounded amount of work."""

    file_bytes_max: int = 8 * 1024**3
    lines_max: int = 50_000_000
    line_bytes_max: int = 4096
    field_characters_max: int = 256
    # Of XML.
    depth_max: int = 32
    token_bytes_max: int = 1024**2
