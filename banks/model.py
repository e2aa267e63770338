"""What a bank is asked and what it says, whatever the tongue."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Operation(StrEnum):
    AUTHORISE = "authorise"
    CAPTURE = "capture"
    VOID = "void"
    REFUND = "refund"
    PAYOUT = "payout"
    QUERY = "query"


class Status(StrEnum):
    """What became of a request, in the bank's book."""

    APPROVED = "approved"
    DECLINED = "declined"
    # It was approved, and undone.
    REVERSED = "reversed"
    # The bank has it and works on it (tongues that answer later).
    PENDING = "pending"
    # Never heard of.
    ABSENT = "absent"


class Why(StrEnum):
    """Why the bank itself refused; a tongue has its own code for each."""

    NONE = "none"
    # Told to, with a code (Behaviour).
    TOLD = "told"
    MAINTENANCE = "maintenance"
    UNSUPPORTED = "unsupported"
    UNKNOWN_ORIGINAL = "unknown_original"
    # More than what is left of the original.
    OVER_AMOUNT = "over_amount"
    # The same reference with another content.
    DUPLICATE_DIFFERS = "duplicate_differs"
    # It was reversed, or asked for and called absent, before it came.
    CLOSED = "closed"
    # More than the account has (Behaviour.funds).
    NO_FUNDS = "no_funds"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as the bank understood it."""

    operation: Operation
    # By this the bank knows a repetition.
    reference: str
    # Minor units.
    amount: int
    currency: str
    # A card's or an account's number.
    instrument: str = field(default="", repr=False)
    # Of AUTHORISE: take the money at once.
    capture: bool = True
    # Of CAPTURE, VOID, REFUND, QUERY.
    original: str = ""
    # The short form of the reference, when the tongue carries both.
    short_reference: str = ""


@dataclass(frozen=True, slots=True)
class Said:
    """The bank's answer to a request, or what a query tells of another."""

    status: Status
    amount: int
    currency: str
    why: Why = Why.NONE
    # The code that Behaviour told; else the tongue finds one for `why`.
    code: str = ""
    bank_reference: str = ""
    # ISO 8601.
    clearing_date: str = ""
    # What a query asked for: of the original.
    of: str = ""
    operation: Operation | None = None
