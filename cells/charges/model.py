"""Charges, their refunds and their states."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class ChargePurpose(StrEnum):
    # The money stays in the user's balance.
    TOP_UP = "top_up"
    # It pays an order of the user's in the same commit.
    ORDER = "order"


class IfOrderEnded(StrEnum):
    """What becomes of the money when its order was paid or closed meanwhile."""

    KEEP = "keep"
    GIVE_BACK = "give_back"


class ChargeState(StrEnum):
    # An attempt is under way: sent, pending or unknown.
    PROCESSING = "processing"
    # Unknown for too long: it is being undone, and its VOID is repeated until the bank answers.
    REVERSING = "reversing"
    # The bank took the money, and the user has it.
    SUCCEEDED = "succeeded"
    # The bank has not taken it, or gave it back.
    FAILED = "failed"


class ChargeEvent(StrEnum):
    # The bank has taken the money.
    APPROVED = "approved"
    # No bank has, or will.
    REFUSED = "refused"
    # This channel failed cleanly; another one is asked.
    REROUTED = "rerouted"
    # The attempt is unknown for too long.
    OVERDUE = "overdue"
    # The bank approved the VOID.
    REVERSED = "reversed"


# Anything absent is refused.
TRANSITIONS: Mapping[ChargeState, Mapping[ChargeEvent, ChargeState]] = {
    ChargeState.PROCESSING: {
        ChargeEvent.APPROVED: ChargeState.SUCCEEDED,
        ChargeEvent.REFUSED: ChargeState.FAILED,
        ChargeEvent.REROUTED: ChargeState.PROCESSING,
        ChargeEvent.OVERDUE: ChargeState.REVERSING,
    },
    ChargeState.REVERSING: {
        # The bank will not undo what it says has its effect: then it has it.
        ChargeEvent.APPROVED: ChargeState.SUCCEEDED,
        ChargeEvent.REFUSED: ChargeState.FAILED,
        # The VOID had no effect and nothing else is known: another one.
        ChargeEvent.OVERDUE: ChargeState.REVERSING,
        ChargeEvent.REVERSED: ChargeState.FAILED,
    },
    ChargeState.SUCCEEDED: {},
    ChargeState.FAILED: {},
}
OPEN_CHARGES = (ChargeState.PROCESSING, ChargeState.REVERSING)


class RefundState(StrEnum):
    # The user's money is on hold; no bank has been asked, or one failed cleanly.
    HELD = "held"
    # An attempt is under way. It is never voided: it is asked about until it is known.
    SENDING = "sending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class RefundEvent(StrEnum):
    SENT = "sent"
    APPROVED = "approved"
    # The channel failed cleanly, and may be asked again later.
    FAILED = "failed"
    # Refused for good, or failed too often.
    REFUSED = "refused"


REFUND_TRANSITIONS: Mapping[RefundState, Mapping[RefundEvent, RefundState]] = {
    RefundState.HELD: {
        RefundEvent.SENT: RefundState.SENDING,
        RefundEvent.REFUSED: RefundState.FAILED,
    },
    RefundState.SENDING: {
        RefundEvent.APPROVED: RefundState.SUCCEEDED,
        RefundEvent.FAILED: RefundState.HELD,
        RefundEvent.REFUSED: RefundState.FAILED,
    },
    RefundState.SUCCEEDED: {},
    RefundState.FAILED: {},
}


class RefundCause(StrEnum):
    REQUESTED = "requested"
    # The order that the charge was for was paid or closed meanwhile.
    ORDER_ENDED = "order_ended"


class Charge(NamedTuple):
    slot: int
    charge_id: str
    user_id: str
    purpose: str
    # Of the order that it pays; else empty.
    order_id: str
    merchant_id: str
    if_order_ended: str
    instrument_id: str
    amount: int
    currency: str
    # Refunded or promised to a refund that is under way.
    refunded: int
    state: str
    # Why it failed: an AnswerReason, or one of rules.py.
    reason: str
    # The latest authorisation, how many there were, and the latest VOID of it.
    attempt_id: str
    attempts: int
    void_id: str
    # What it paid, if it did.
    payment_id: str
    created_at: datetime


class ChargeRefund(NamedTuple):
    slot: int
    refund_id: str
    charge_id: str
    user_id: str
    cause: str
    # The channel that took the money, and its attempt.
    channel: str
    original_id: str
    amount: int
    currency: str
    state: str
    # The caller's words.
    reason: str
    # Why it failed: an AnswerReason.
    failure: str
    attempt_id: str
    attempts: int
    created_at: datetime
    touched_at: datetime
