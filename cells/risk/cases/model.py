"""Cases, second factors and decisions as they are kept, and what a request is told of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple

# Replaced by the database's when a row is written.
NO_TIME = datetime.fromtimestamp(0, UTC)
TRIES_MAX = 5


class Operation(StrEnum):
    """As the fact `operation` says it."""

    PAY = "pay"
    TRANSFER = "transfer"
    WITHDRAW = "withdraw"
    CHARGE = "charge"
    PAYOUT = "payout"


class CaseKind(StrEnum):
    # A second factor answers it.
    CHALLENGE = "challenge"
    # A person decides it.
    REVIEW = "review"


class CaseState(StrEnum):
    OPEN = "open"
    # The request may go on, once.
    PASSED = "passed"
    # It went on.
    USED = "used"
    # Too many wrong answers, or a person said no: the request is denied.
    FAILED = "failed"
    EXPIRED = "expired"


class CaseEvent(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    USE = "use"
    EXPIRE = "expire"
    # The same request came again.
    REOPEN = "reopen"


# Anything absent is refused.
TRANSITIONS: Mapping[CaseState, Mapping[CaseEvent, CaseState]] = {
    CaseState.OPEN: {
        CaseEvent.PASS: CaseState.PASSED,
        CaseEvent.FAIL: CaseState.FAILED,
        CaseEvent.EXPIRE: CaseState.EXPIRED,
    },
    CaseState.PASSED: {
        CaseEvent.USE: CaseState.USED,
        # Whoever approved may think again, as long as it was not used.
        CaseEvent.FAIL: CaseState.FAILED,
        CaseEvent.EXPIRE: CaseState.EXPIRED,
    },
    CaseState.EXPIRED: {CaseEvent.REOPEN: CaseState.OPEN},
    CaseState.USED: {},
    CaseState.FAILED: {},
}


class Case(NamedTuple):
    """One for each kind and request: its ID is computed from the request's key."""

    slot: int
    case_id: str
    kind: str
    state: str
    user_id: str
    operation: str
    # The order of a payment, or of a charge for one; else empty.
    subject_id: str
    payee_id: str
    amount: int
    currency: str
    # Of the request that it is for, and of what that asked.
    idempotency_key: str
    fingerprint: str
    decision_id: str
    # With commas between.
    reasons: str
    rules: str
    # JSON: what was known of the request.
    facts: str
    # Wrong answers so far.
    tries: int
    # Of a review: the operator, the record of the audit log, and why.
    decided_by: str
    audit_id: str
    note: str
    expires_at: datetime
    created_at: datetime
    touched_at: datetime


class Factor(NamedTuple):
    """A user's second factor, one each. What was confirmed counts; what is pending does not yet."""

    slot: int
    factor_id: str
    user_id: str
    # Base 64; empty when there is none.
    secret_sealed: str
    pending_sealed: str
    # The versions of the slot's field keys that sealed these; 0 for none.
    secret_key: int
    pending_key: int
    # The time step of the code used last: no code counts twice (RFC 6238, 5.2).
    last_step: int
    # Wrong codes since the last right one; too many lock it for a while.
    failures: int
    locked_until: datetime
    # One higher whenever a secret changes.
    version: int
    confirmed_at: datetime
    created_at: datetime
    touched_at: datetime


class StoredDecision(NamedTuple):
    """A decision other than allow."""

    slot: int
    decision_id: str
    user_id: str
    operation: str
    action: str
    subject_id: str
    payee_id: str
    amount: int
    currency: str
    # With commas between.
    reasons: str
    rules: str
    without: str
    rules_version: int
    model_version: str
    created_at: datetime


class Conclusion(StrEnum):
    """What is done with a request, after rules and cases."""

    ALLOW = "allow"
    CHALLENGE = "challenge"
    REVIEW = "review"
    DENY = "deny"
    # The engine did not answer in time, and policy says that this does not go on without it.
    UNAVAILABLE = "unavailable"


class Bound(NamedTuple):
    """What an operation may move when risk does not answer, by currency."""

    limits: Mapping[str, int]
    amount: int
    currency: str
    # Says amount and currency, where the request does not.
    order_id: str
    # Cases of this request: what failed does not go on, answer or no answer.
    cases: tuple[str, ...]


class Verdict(NamedTuple):
    """What goes into a request's command."""

    conclusion: Conclusion
    reasons: tuple[str, ...] = ()
    # Of what is not allowed.
    decision: StoredDecision | None = None
    # Of a challenge or a review: as it is to be opened, and for how long.
    case: Case | None = None
    ttl_s: int = 0
    # Cases that were passed for this very request, to be used up by it.
    uses: tuple[str, ...] = ()
    # Of UNAVAILABLE: what goes on nevertheless.
    bound: Bound | None = None
