"""What Cellpay says to a bank and what it hears, whatever the bank's own tongue.

The rule that all else follows (pitfall 21): no answer is not a failure. Only a bank that says so,
or a message that never left, makes an attempt fail; everything else is *unknown* until it is known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Operation(StrEnum):
    """What a channel can be asked for. Each request has a reference of its own."""

    # Reserves money on a card or account; with `capture` it is taken at once.
    AUTHORISE = "authorise"
    # Takes what was authorised, in part or whole.
    CAPTURE = "capture"
    # Undoes an authorisation or capture of the same day, known or not: a reversal.
    VOID = "void"
    # Gives back what was captured, in part or whole.
    REFUND = "refund"
    # Sends money to a card or account.
    PAYOUT = "payout"
    # Asks how the request named by `original` ended. Changes nothing.
    QUERY = "query"


class Verdict(StrEnum):
    """How a request ended, as far as is known."""

    # It has its effect.
    APPROVED = "approved"
    # The bank refused: no effect, now or later. Whoever asks elsewhere is refused there too.
    DECLINED = "declined"
    # No effect, now or later, for a reason that is the channel's own: another channel may be asked.
    FAILED = "failed"
    # The bank has it, and will answer by a callback, a query or a statement.
    PENDING = "pending"
    # Nobody knows: it may have its effect, or get it yet.
    UNKNOWN = "unknown"

    @property
    def is_final(self) -> bool:
        return self in {Verdict.APPROVED, Verdict.DECLINED, Verdict.FAILED}


class AnswerReason(StrEnum):
    """Why, in our words; the bank's own code stands beside it."""

    NONE = "NONE"
    # Refused for good (DECLINED).
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"
    INSTRUMENT_INVALID = "INSTRUMENT_INVALID"
    INSTRUMENT_EXPIRED = "INSTRUMENT_EXPIRED"
    INSTRUMENT_STOLEN = "INSTRUMENT_STOLEN"
    NOT_PERMITTED = "NOT_PERMITTED"
    SUSPECTED_FRAUD = "SUSPECTED_FRAUD"
    LIMIT_EXCEEDED = "LIMIT_EXCEEDED"
    AMOUNT_INVALID = "AMOUNT_INVALID"
    DO_NOT_HONOUR = "DO_NOT_HONOUR"
    # Of the channel (FAILED): it has had no effect.
    NOT_SENT = "NOT_SENT"
    CHANNEL_CLOSED = "CHANNEL_CLOSED"
    ISSUER_UNAVAILABLE = "ISSUER_UNAVAILABLE"
    CHANNEL_ERROR = "CHANNEL_ERROR"
    UNSUPPORTED = "UNSUPPORTED"
    # What a query may hear: the channel is sure that it never saw the original, and never will.
    NOT_FOUND = "NOT_FOUND"
    # Not known (UNKNOWN).
    TIMED_OUT = "TIMED_OUT"
    CONNECTION_LOST = "CONNECTION_LOST"
    # The answer cannot be trusted: a wrong MAC, signature, amount or reference.
    NOT_AUTHENTIC = "NOT_AUTHENTIC"
    MALFORMED = "MALFORMED"


@dataclass(frozen=True, slots=True)
class Card:
    """A card as the bank needs it. Lives in memory while a request is made, and nowhere else."""

    pan: str = field(repr=False)
    # YYMM, as ISO 8583 has it.
    expiry: str = field(repr=False)
    scheme: str
    holder: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class BankAccount:
    """An account at a bank, as payouts need it."""

    number: str = field(repr=False)
    # The bank's code in its clearing system (CNAPS, BIC, …).
    bank: str
    holder: str = field(default="", repr=False)


Instrument = Card | BankAccount


@dataclass(frozen=True, slots=True)
class Request:
    """One request to a bank. Sending it again is sending the same."""

    operation: Operation
    # Ours: an attempt's ID (router.ids, kind `att`). The bank de-duplicates by it.
    reference: str
    # Minor units; 0 for a query.
    amount: int
    # ISO 4217.
    currency: str
    # For authorisations and payouts.
    instrument: Instrument | None = None
    # Of AUTHORISE: take the money at once (a purchase).
    capture: bool = True
    # The reference of the request that capture, void, refund and query speak of, …
    original: str = ""
    # … and what the bank called it, when it said.
    original_bank_reference: str = ""
    # … and what it asked for: reversals repeat the amount of what they reverse.
    original_amount: int = 0
    # Shown on the customer's statement.
    merchant: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of a request. An adapter never raises for what a bank does."""

    verdict: Verdict
    reason: AnswerReason = AnswerReason.NONE
    # The bank's own code (ISO 8583's field 39, …).
    code: str = ""
    # What the bank calls it (RRN, serial number, …).
    bank_reference: str = ""
    # The day in whose statement it will stand (ISO 8601), when the bank said; else empty.
    clearing_date: str = ""
    # Whatever else may help a person; never a card's number.
    message: str = ""


@dataclass(frozen=True, slots=True)
class Heard:
    """What a bank says without being asked: a late answer, or a callback."""

    channel: str
    # Of the request that it speaks of.
    reference: str
    answer: Answer


@dataclass(frozen=True, slots=True)
class ChannelSettings:
    """A channel as configured: a new bank of a known kind is one of these, and no code."""

    # a-z, 0-9 and hyphens.
    name: str
    # The folder of cells/channels that speaks its tongue: iso8583, clearing, batch.
    kind: str
    # What the kind needs: addresses, the field specification, keys' files, time-outs. Each kind
    # reads its own with a pydantic TypeAdapter and refuses what it does not know.
    options: Mapping[str, object]
    # What it takes (ISO 4217).
    currencies: tuple[str, ...] = ()
    # Of cards it takes; for bank accounts, empty.
    schemes: tuple[str, ...] = ()


def short_reference(reference: str) -> str:
    """Twelve digits of base 32 for banks whose field is short (ISO 8583's RRN, field 37).

    60 bits of a hash: among a hundred million requests of a day, two alike are to be expected
    once in two hundred days; the bank then refuses the second as a duplicate of another amount.
    """
    digest = hashlib.sha256(reference.encode("ascii")).digest()
    number = int.from_bytes(digest[:8], "big") >> 4
    return "".join(_BASE32[(number >> (5 * place)) & 31] for place in reversed(range(12)))


_BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
