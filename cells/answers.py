"""From what the ledger decided to what the caller hears: each reason is classified once, here."""

from __future__ import annotations

from typing import Any, assert_never

import grpc

from cells.ledger.model import Outcome, Reason, Refused
from router.errors import Refusal
from router.signing.call import IN_DOUBT
from router.signing.gate import in_doubt

# About as long as a cell that a slot has just come to is in doubt.
_SIGN_ANEW_AFTER_S = 10


def status_of(reason: Reason) -> grpc.StatusCode:
    """The gRPC status of a refusal. Worth a retry with the same input: UNAVAILABLE, ABORTED."""
    match reason:
        case Reason.NOT_OWNER | Reason.RISK_UNAVAILABLE:
            return grpc.StatusCode.UNAVAILABLE
        case Reason.RISK_DENIED:
            return grpc.StatusCode.PERMISSION_DENIED
        case (
            Reason.ORDER_NOT_FOUND
            | Reason.PAYMENT_NOT_FOUND
            | Reason.REFUND_NOT_FOUND
            | Reason.TRANSFER_NOT_FOUND
            | Reason.BRANCH_NOT_FOUND
            | Reason.DELIVERY_NOT_FOUND
            | Reason.CHARGE_NOT_FOUND
            | Reason.PAYOUT_NOT_FOUND
            | Reason.ATTEMPT_NOT_FOUND
            | Reason.INSTRUMENT_NOT_FOUND
            | Reason.MERCHANT_KEY_NOT_FOUND
            | Reason.ACCOUNT_NOT_FOUND
            | Reason.MERCHANT_NOT_FOUND
            | Reason.PAYER_NOT_FOUND
            | Reason.PAYEE_NOT_FOUND
            | Reason.CHALLENGE_NOT_FOUND
            | Reason.REVIEW_NOT_FOUND
            | Reason.FACTOR_NOT_FOUND
        ):
            return grpc.StatusCode.NOT_FOUND
        case (
            Reason.EXISTS_WITH_DIFFERENT_INPUT
            | Reason.EXISTS_WITH_DIFFERENT_KIND
            | Reason.EXISTS_WITH_DIFFERENT_AMOUNT
        ):
            return grpc.StatusCode.ALREADY_EXISTS
        case (
            Reason.ACCOUNT_CLOSED
            | Reason.ACCOUNT_NOT_EMPTY
            | Reason.MERCHANT_STAYS_OPEN
            | Reason.ORDER_CLOSED
            | Reason.ORDER_ALREADY_PAID
            | Reason.DELIVERY_NOT_DEAD
            | Reason.CHARGE_NOT_SUCCEEDED
            | Reason.PAYOUT_NOT_PAID
            | Reason.CURRENCY_MISMATCH
            | Reason.AMOUNT_MISMATCH
            | Reason.REFUND_EXCEEDS_PAYMENT
            | Reason.REFUND_EXCEEDS_CHARGE
            | Reason.NO_CHANNEL
            | Reason.ADJUSTMENT_NOT_ALLOWED
            | Reason.BRANCH_CANCELLED
            | Reason.BRANCH_CONFIRMED
            | Reason.NOTHING_TO_SETTLE
            | Reason.INSUFFICIENT_FUNDS
            | Reason.BALANCE_TOO_LARGE
            | Reason.INSTRUMENT_REMOVED
            | Reason.INSTRUMENT_EXPIRED
            | Reason.CHALLENGE_REQUIRED
            | Reason.UNDER_REVIEW
            | Reason.CHALLENGE_ENDED
            | Reason.REVIEW_ENDED
            | Reason.FACTOR_LOCKED
            | Reason.CODE_WRONG
            | Reason.MERCHANT_KEY_REVOKED
        ):
            return grpc.StatusCode.FAILED_PRECONDITION
        case Reason.INSTRUMENT_CHANGED | Reason.KEY_REPLACED | Reason.CASE_CHANGED:
            return grpc.StatusCode.ABORTED
        case _:
            assert_never(reason)


def resource_of(outcome: Outcome) -> Any:
    """What the command made or found. Raises Refusal when it was refused, or when it was found for
    somebody who may be replaying what he has overheard."""
    if isinstance(outcome, Refused):
        raise Refusal(
            status_of(outcome.reason),
            outcome.reason,
            outcome.message,
            metadata=dict(outcome.metadata),
        )
    if outcome.replayed and IN_DOUBT.get():
        # Perhaps a copy of what was signed and answered before the slot came here.
        raise in_doubt(_SIGN_ANEW_AFTER_S)
    return outcome.resource


def not_found(reason: Reason, what: str) -> Refusal:
    return Refusal(status_of(reason), reason, f"there is no such {what}")
