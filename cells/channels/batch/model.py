"""What stands in batch files, whatever their format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from cells.channels.model import BankAccount

FILE_BYTES_MAX = 64 * 1024**2
ITEMS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Item:
    """A payout as its file says it."""

    reference: str
    amount: int
    currency: str
    account: BankAccount


@dataclass(frozen=True, slots=True)
class Debtor:
    """Whose money goes: our account at the bank."""

    name: str
    account: str
    bank: str


@dataclass(frozen=True, slots=True)
class Result:
    """What a result file says of one reference."""

    reference: str
    # ISO 20022's transaction status (ACSC, RJCT, …), and reason (AC01, …).
    status: str
    reason: str = ""
    bank_reference: str = ""
    # Minor units; None where the file does not say.
    amount: int | None = None
    currency: str = ""
    # ISO 8601, or empty.
    clearing_date: str = ""


@dataclass(frozen=True, slots=True)
class Results:
    """A result file: of which of our files, and what it says of the whole of it."""

    message_id: str
    # Status and reason of the whole file; empty: only its items have one.
    status: str
    reason: str
    items: tuple[Result, ...]


class BadFile(ValueError):
    """A result file that is none. Says where."""


class Unwritable(ValueError):
    """A payout that the format has no place for; it has not been sent. Quotes nothing."""


class Format(Protocol):
    """pain.001, pacs.028 and pain.002, or lines of fixed length."""

    suffix: str

    def check(self, item: Item) -> None:
        """Raises Unwritable. Before it is gathered: one payout must not spoil the file of all."""
        ...

    def write_payouts(self, message_id: str, items: Sequence[Item], now: datetime) -> bytes: ...

    def write_queries(self, message_id: str, references: Sequence[str], now: datetime) -> bytes: ...

    def read_results(self, data: bytes) -> Results:
        """Raises BadFile."""
        ...
