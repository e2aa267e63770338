"""What the ledger knows: accounts, entries, events, and how a command ends.

NamedTuples, not dataclasses: they are made by the ten thousand a second (style.md, habit 3).
Amounts are int minor units; times come from the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from cells.ledger.book import Book
    from cells.ledger.records import RecordType

# What a request may move at once: integers up to here are exact in every language's doubles.
MAX_AMOUNT_MINOR = 2**53
# What an account may hold: far from the end of a 64-bit column.
MAX_BALANCE_MINOR = 2**62
NO_FLOOR_MINOR = -(2**62)
# Where requests are refused for the sake of Cellpay's own accounts, which have no owner to refuse:
# what is under way beyond it still fits below MAX_BALANCE_MINOR.
SYSTEM_BALANCE_SOFT_MAX_MINOR = 2**61


class AccountKind(StrEnum):
    PERSON = "person"
    MERCHANT = "merchant"
    SYSTEM = "system"


class AccountState(StrEnum):
    OPEN = "open"
    CLOSED = "closed"


class Account(NamedTuple):
    """One account. `balance` is the sum of its entries."""

    slot: int
    account_id: str
    user_id: str
    currency: str
    purpose: str
    kind: str
    state: str
    balance: int
    # Frozen by a TCC try, still part of the balance.
    held: int
    # Credits promised to others' tries: the account may not close before they end.
    promised: int
    # Debits promised to refunds that wait for money: settlement leaves them alone.
    reserved: int
    # The lowest that balance - held may become.
    floor: int
    # Entries so far; the next one is sequence + 1.
    sequence: int
    created_at: datetime

    @property
    def available(self) -> int:
        return self.balance - self.held - self.floor


class Entry(NamedTuple):
    """One line of a posting. `epoch` proves which ownership wrote it (invariant 3)."""

    slot: int
    account_id: str
    sequence: int
    posting_id: str
    kind: str
    amount: int
    balance_after: int
    epoch: int
    created_at: datetime


class Event(NamedTuple):
    """What happened, to be told to the world after the commit."""

    slot: int
    event_id: str
    type: str
    # One line of JSON: {"id", "type", "slot", "merchant_id", "time", "data"}; before "data", where
    # traces are recorded, "traceparent".
    line: str


class EventBatch(NamedTuple):
    """An outbox row: events of one type that committed together, relayed as one message.

    One row for many: a row each, marked and published each, cost as much as the payments that
    they tell of (docs/decisions/0011-events-travel-in-batches.md).
    """

    # Of the first event; the others may be of any slot of the same commit.
    slot: int
    # The ID of the first event.
    batch_id: str
    type: str
    events: int
    # Their envelopes, a line each.
    lines: str
    created_at: datetime


class IdempotencyRecord(NamedTuple):
    """A request that had its effect: the same key finds it again, wherever the slot lives."""

    slot: int
    # scope (the home field's value) + U+001F + the caller's key
    idempotency_id: str
    method: str
    request_hash: bytes
    resource_id: str
    created_at: datetime


class Idempotency(NamedTuple):
    scope: str
    key: str
    method: str
    request_hash: bytes

    @property
    def idempotency_id(self) -> str:
        return f"{self.scope}\x1f{self.key}"


class Reason(StrEnum):
    """Why a command was refused, in order of precedence: the first that applies is answered."""

    NOT_OWNER = "NOT_OWNER"
    EXISTS_WITH_DIFFERENT_INPUT = "EXISTS_WITH_DIFFERENT_INPUT"
    # What risk says (cells/risk): before all that the books say.
    RISK_UNAVAILABLE = "RISK_UNAVAILABLE"
    RISK_DENIED = "RISK_DENIED"
    CHALLENGE_REQUIRED = "CHALLENGE_REQUIRED"
    UNDER_REVIEW = "UNDER_REVIEW"
    CASE_CHANGED = "CASE_CHANGED"
    CHALLENGE_NOT_FOUND = "CHALLENGE_NOT_FOUND"
    REVIEW_NOT_FOUND = "REVIEW_NOT_FOUND"
    FACTOR_NOT_FOUND = "FACTOR_NOT_FOUND"
    CHALLENGE_ENDED = "CHALLENGE_ENDED"
    REVIEW_ENDED = "REVIEW_ENDED"
    FACTOR_LOCKED = "FACTOR_LOCKED"
    CODE_WRONG = "CODE_WRONG"
    ORDER_NOT_FOUND = "ORDER_NOT_FOUND"
    PAYMENT_NOT_FOUND = "PAYMENT_NOT_FOUND"
    REFUND_NOT_FOUND = "REFUND_NOT_FOUND"
    TRANSFER_NOT_FOUND = "TRANSFER_NOT_FOUND"
    BRANCH_NOT_FOUND = "BRANCH_NOT_FOUND"
    DELIVERY_NOT_FOUND = "DELIVERY_NOT_FOUND"
    CHARGE_NOT_FOUND = "CHARGE_NOT_FOUND"
    PAYOUT_NOT_FOUND = "PAYOUT_NOT_FOUND"
    ATTEMPT_NOT_FOUND = "ATTEMPT_NOT_FOUND"
    INSTRUMENT_NOT_FOUND = "INSTRUMENT_NOT_FOUND"
    MERCHANT_KEY_NOT_FOUND = "MERCHANT_KEY_NOT_FOUND"
    ACCOUNT_NOT_FOUND = "ACCOUNT_NOT_FOUND"
    MERCHANT_NOT_FOUND = "MERCHANT_NOT_FOUND"
    PAYER_NOT_FOUND = "PAYER_NOT_FOUND"
    PAYEE_NOT_FOUND = "PAYEE_NOT_FOUND"
    EXISTS_WITH_DIFFERENT_KIND = "EXISTS_WITH_DIFFERENT_KIND"
    ACCOUNT_CLOSED = "ACCOUNT_CLOSED"
    ACCOUNT_NOT_EMPTY = "ACCOUNT_NOT_EMPTY"
    MERCHANT_STAYS_OPEN = "MERCHANT_STAYS_OPEN"
    ORDER_CLOSED = "ORDER_CLOSED"
    ORDER_ALREADY_PAID = "ORDER_ALREADY_PAID"
    DELIVERY_NOT_DEAD = "DELIVERY_NOT_DEAD"
    CHARGE_NOT_SUCCEEDED = "CHARGE_NOT_SUCCEEDED"
    PAYOUT_NOT_PAID = "PAYOUT_NOT_PAID"
    CURRENCY_MISMATCH = "CURRENCY_MISMATCH"
    AMOUNT_MISMATCH = "AMOUNT_MISMATCH"
    INSTRUMENT_REMOVED = "INSTRUMENT_REMOVED"
    INSTRUMENT_EXPIRED = "INSTRUMENT_EXPIRED"
    MERCHANT_KEY_REVOKED = "MERCHANT_KEY_REVOKED"
    REFUND_EXCEEDS_PAYMENT = "REFUND_EXCEEDS_PAYMENT"
    REFUND_EXCEEDS_CHARGE = "REFUND_EXCEEDS_CHARGE"
    NO_CHANNEL = "NO_CHANNEL"
    ADJUSTMENT_NOT_ALLOWED = "ADJUSTMENT_NOT_ALLOWED"
    BRANCH_CANCELLED = "BRANCH_CANCELLED"
    BRANCH_CONFIRMED = "BRANCH_CONFIRMED"
    EXISTS_WITH_DIFFERENT_AMOUNT = "EXISTS_WITH_DIFFERENT_AMOUNT"
    NOTHING_TO_SETTLE = "NOTHING_TO_SETTLE"
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"
    BALANCE_TOO_LARGE = "BALANCE_TOO_LARGE"
    # What the command was made of has changed meanwhile: it is made anew.
    INSTRUMENT_CHANGED = "INSTRUMENT_CHANGED"
    KEY_REPLACED = "KEY_REPLACED"


class Accepted(NamedTuple):
    """The command had its effect, now or, when `replayed`, before."""

    resource: Any
    replayed: bool = False


class Refused(NamedTuple):
    """The command did not do what it was asked for."""

    reason: Reason
    message: str
    metadata: Mapping[str, str] = {}
    # What it wrote stays, for it tells of the refusal: a case that waits, a wrong answer.
    kept: bool = False


Outcome = Accepted | Refused


class Key(NamedTuple):
    """One row that a command reads."""

    type: RecordType[Any]
    slot: int
    id: str


class Command(Protocol):
    """One request to the ledger. `decide` is pure: it reads and writes the book, nothing else.

    It may run again from the start (a retry of its group), so it carries every ID it mints.
    """

    @property
    def slot(self) -> int:
        """Its home: must be owned, chooses the lane."""
        ...

    @property
    def idempotency(self) -> Idempotency | None: ...

    @property
    def resource_type(self) -> RecordType[Any]:
        """What `idempotency` finds again."""
        ...

    def other_slots(self) -> Iterable[int]:
        """Further slots that it would write if this cell owns them."""
        ...

    def reads(self) -> Iterable[Key]:
        """Rows to load and lock, accounts excepted."""
        ...

    def accounts(self, book: Book) -> Iterable[Key]:
        """Accounts to load and lock, given the rows of `reads`."""
        ...

    def decide(self, book: Book) -> Outcome: ...


class PlainCommand:
    """What a command does not say, it does not need: other slots, rows, accounts."""

    __slots__ = ()

    def other_slots(self) -> Iterable[int]:
        return ()

    def reads(self) -> Iterable[Key]:
        return ()

    def accounts(self, book: Book) -> Iterable[Key]:
        return ()
