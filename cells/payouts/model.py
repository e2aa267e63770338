"""Payouts and their states."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class PayoutKind(StrEnum):
    # A person's balance to their own card or account.
    WITHDRAWAL = "withdrawal"
    # What a merchant has earned.
    MERCHANT = "merchant"


class PayoutState(StrEnum):
    # The money is on hold; no bank has been asked, or the last one failed cleanly.
    HELD = "held"
    # An attempt is under way. It cannot be undone: it is asked about until it is known.
    SENDING = "sending"
    PAID = "paid"
    FAILED = "failed"
    # The bank sent it back after it had paid.
    RETURNED = "returned"


class PayoutEvent(StrEnum):
    SENT = "sent"
    APPROVED = "approved"
    # The channel failed cleanly: another one may be asked.
    FAILED = "failed"
    # Refused for good, or no channel takes it.
    REFUSED = "refused"
    RETURNED = "returned"


# Anything absent is refused. The hold lives in HELD and SENDING, and nowhere else.
TRANSITIONS: Mapping[PayoutState, Mapping[PayoutEvent, PayoutState]] = {
    PayoutState.HELD: {
        PayoutEvent.SENT: PayoutState.SENDING,
        PayoutEvent.REFUSED: PayoutState.FAILED,
    },
    PayoutState.SENDING: {
        PayoutEvent.APPROVED: PayoutState.PAID,
        PayoutEvent.FAILED: PayoutState.HELD,
        PayoutEvent.REFUSED: PayoutState.FAILED,
    },
    PayoutState.PAID: {PayoutEvent.RETURNED: PayoutState.RETURNED},
    PayoutState.FAILED: {},
    PayoutState.RETURNED: {},
}


class Payout(NamedTuple):
    slot: int
    payout_id: str
    user_id: str
    kind: str
    instrument_id: str
    amount: int
    currency: str
    state: str
    # Why it failed: an AnswerReason, or NO_CHANNEL.
    reason: str
    # The caller's words, shown to the receiver where the bank can.
    description: str
    # The latest, and how many there were.
    attempt_id: str
    attempts: int
    # Of the attempt that is under way, or paid.
    channel: str
    created_at: datetime
    touched_at: datetime
