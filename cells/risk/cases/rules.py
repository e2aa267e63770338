"""What a verdict does to a request, and what may happen to cases and factors. Pure: commands over
the book.

The order inside a request's command is: what the same key made before is answered as it was; then
the verdict refuses; then the request's own rules. A case is used up in the commit that moves the
money, under the lock of its row, so it passes one request and no more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol, runtime_checkable

from cells.ledger.book import Book
from cells.ledger.model import (
    Accepted,
    Command,
    Idempotency,
    Key,
    Outcome,
    PlainCommand,
    Reason,
    Refused,
)
from cells.ledger.records import RecordType
from cells.orders.tables import ORDERS
from cells.risk.cases.model import (
    NO_TIME,
    TRANSITIONS,
    TRIES_MAX,
    Case,
    CaseEvent,
    CaseKind,
    CaseState,
    Conclusion,
    Factor,
    Verdict,
)
from cells.risk.cases.tables import CASES, FACTORS, RISK_DECISIONS
from cells.vault.model import KeyPurpose, KeyState, key_id_of
from cells.vault.tables import KEYS
from router.ids import Kind, derive
from router.risk.model import Action

# Reasons that are not rules'.
CHALLENGE_FAILED = "CHALLENGE_FAILED"
REVIEW_REJECTED = "REVIEW_REJECTED"
# So many wrong codes in a row lock a factor; each further one for twice as long.
FAILURES_MAX = 10
LOCK_S = 300
LOCK_MAX_S = 86_400


@runtime_checkable
class FindsItself(Protocol):
    """A command that finds what its own key made before, without an idempotency record."""

    def existing(self, book: Book) -> Outcome | None: ...


def case_ids(slot: int, operation: str, scope: str, key: str) -> tuple[str, str]:
    """Of a request's challenge and of its review: the same request finds them again, in any cell.

    One hash for both, for it is in the path of every payment.
    """
    challenge = derive(Kind.CHALLENGE, slot, operation, scope, key)
    return challenge, Kind.REVIEW + challenge[len(Kind.CHALLENGE) :]


def case_id(kind: CaseKind, slot: int, operation: str, scope: str, key: str) -> str:
    challenge, review = case_ids(slot, operation, scope, key)
    return challenge if kind == CaseKind.CHALLENGE else review


def factor_id(slot: int, user_id: str) -> str:
    return derive(Kind.FACTOR, slot, user_id)


def fingerprint(
    operation: str, user_id: str, subject_id: str, payee_id: str, amount: int, currency: str
) -> str:
    """What a case is bound to, beside its request's key."""
    said = json.dumps([operation, user_id, subject_id, payee_id, amount, currency])
    return hashlib.sha256(said.encode()).hexdigest()


def state_at(case: Case, now: datetime) -> CaseState:
    """What has run out is expired, though nobody wrote it down."""
    state = CaseState(case.state)
    if case.expires_at > now:
        return state
    return TRANSITIONS[state].get(CaseEvent.EXPIRE, state)


def can_answer(factor: Factor | None, challenge: Case | None) -> bool:
    """A factor answers challenges that are younger: who has stolen a session could enrol one."""
    if factor is None or not factor.secret_sealed:
        return False
    return challenge is None or factor.confirmed_at < challenge.created_at


def conclude(
    action: Action,
    challenge: CaseState | None,
    review: CaseState | None,
    *,
    answerable: bool,
) -> tuple[Conclusion, str]:
    """What the rules' action comes to, given the cases of this very request; and why, where that
    is no rule.

    rules        challenge   review      →
    any          failed      any         deny
    any          any         failed      deny
    deny         -           -           deny
    challenge    passed      -           allow
    challenge    other       -           challenge; a review where nobody could answer
    review       -           passed      allow
    review       -           other       review
    allow        -           -           allow
    """
    if review == CaseState.FAILED:
        return Conclusion.DENY, REVIEW_REJECTED
    if challenge == CaseState.FAILED:
        return Conclusion.DENY, CHALLENGE_FAILED
    if action == Action.CHALLENGE:
        if challenge == CaseState.PASSED:
            return Conclusion.ALLOW, ""
        if answerable:
            return Conclusion.CHALLENGE, ""
        action = Action.REVIEW
    if action == Action.REVIEW and review == CaseState.PASSED:
        return Conclusion.ALLOW, ""
    return Conclusion(action.value), ""


@dataclass(frozen=True, slots=True)
class Screened:
    """A request's command, with what risk says of it."""

    command: Command
    verdict: Verdict

    @property
    def slot(self) -> int:
        return self.command.slot

    @property
    def idempotency(self) -> Idempotency | None:
        return self.command.idempotency

    @property
    def resource_type(self) -> RecordType[Any]:
        return self.command.resource_type

    def other_slots(self) -> Iterable[int]:
        return self.command.other_slots()

    def reads(self) -> Iterable[Key]:
        yield from self.command.reads()
        for identifier in self.verdict.uses:
            yield Key(CASES, self.slot, identifier)
        if self.verdict.case is not None:
            yield Key(CASES, self.slot, self.verdict.case.case_id)
        if self.verdict.bound is not None:
            for identifier in self.verdict.bound.cases:
                yield Key(CASES, self.slot, identifier)

    def accounts(self, book: Book) -> Iterable[Key]:
        return self.command.accounts(book)

    def decide(self, book: Book) -> Outcome:
        before = self.command.existing(book) if isinstance(self.command, FindsItself) else None
        if before is not None:
            return before
        match self.verdict.conclusion:
            case Conclusion.ALLOW:
                return self._use(book) or self.command.decide(book)
            case Conclusion.DENY:
                return self._deny(book)
            case Conclusion.CHALLENGE | Conclusion.REVIEW:
                return self._wait(book)
            case Conclusion.UNAVAILABLE:
                return self._unjudged(book) or self.command.decide(book)

    def _unjudged(self, book: Book) -> Refused | None:
        """Nobody knows what the rules would say: small amounts go on, where policy says so."""
        bound = self.verdict.bound
        if bound is None:
            return _unavailable()
        for identifier in bound.cases:
            case = book.get(CASES, identifier)
            if case is not None and case.state == CaseState.FAILED:
                return _denied(case.decision_id, (_failure_of(case),))
        order = book.get(ORDERS, bound.order_id) if bound.order_id else None
        amount, currency = bound.amount, bound.currency
        if order is not None:
            amount, currency = order.amount, order.currency
        return None if amount <= bound.limits.get(currency, -1) else _unavailable()

    def _use(self, book: Book) -> Refused | None:
        for identifier in self.verdict.uses:
            case = book.get(CASES, identifier)
            state = TRANSITIONS[state_at(case, book.now)].get(CaseEvent.USE) if case else None
            if case is None or state is None:
                return _changed()
            book.put(CASES, case._replace(state=state, touched_at=book.now))
        return None

    def _deny(self, book: Book) -> Refused:
        decision = self.verdict.decision
        assert decision is not None, "a denial without its decision"
        book.put(RISK_DECISIONS, decision._replace(created_at=book.now))
        return _denied(decision.decision_id, self.verdict.reasons)

    def _wait(self, book: Book) -> Refused:
        wanted, decision = self.verdict.case, self.verdict.decision
        assert wanted is not None, "a case that is not said"
        assert decision is not None, "a case without its decision"
        known = book.get(CASES, wanted.case_id)
        if known is not None and known.fingerprint != wanted.fingerprint:
            return Refused(
                Reason.EXISTS_WITH_DIFFERENT_INPUT,
                "this idempotency key was used before, with other input",
                {"resource": known.case_id},
            )
        state = state_at(known, book.now) if known else None
        if known is not None and state == CaseState.OPEN:
            return _waits(known)
        if known is not None and state == CaseState.FAILED:
            return _denied(known.decision_id, (_failure_of(known),))
        if state in {CaseState.PASSED, CaseState.USED}:
            # Since it was read.
            return _changed()
        until = book.now + timedelta(seconds=self.verdict.ttl_s)
        opened = wanted._replace(
            state=CaseState.OPEN,
            expires_at=until,
            created_at=known.created_at if known else book.now,
            touched_at=book.now,
        )
        book.put(CASES, opened)
        book.put(RISK_DECISIONS, decision._replace(created_at=book.now))
        return _waits(opened)


def _failure_of(case: Case) -> str:
    return CHALLENGE_FAILED if case.kind == CaseKind.CHALLENGE else REVIEW_REJECTED


def _unavailable() -> Refused:
    return Refused(Reason.RISK_UNAVAILABLE, "risk could not be asked in time; nothing was executed")


def _changed() -> Refused:
    return Refused(Reason.CASE_CHANGED, "the case has just changed; nothing was executed")


def _denied(decision_id: str, reasons: Iterable[str]) -> Refused:
    return Refused(
        Reason.RISK_DENIED,
        "the request was refused for its risk",
        {"decision_id": decision_id, "reasons": ",".join(reasons)},
        kept=True,
    )


def _waits(case: Case) -> Refused:
    if case.kind == CaseKind.CHALLENGE:
        return Refused(
            Reason.CHALLENGE_REQUIRED,
            "a second factor is asked for; answer the challenge, then make the same request again",
            {"challenge_id": case.case_id, "decision_id": case.decision_id,
             "reasons": case.reasons},
            kept=True,
        )  # fmt: skip
    return Refused(
        Reason.UNDER_REVIEW,
        "a person looks at it first; make the same request again later",
        {"review_id": case.case_id, "decision_id": case.decision_id, "reasons": case.reasons},
        kept=True,
    )


@dataclass(frozen=True, slots=True)
class AnswerChallenge(PlainCommand):
    """A code for a challenge. `step`: the time step whose code it is, by the factor as it was at
    `factor_version`; 0 when it is none of those that count now."""

    slot: int
    case_id: str
    user_id: str
    step: int
    factor_version: int
    # What was passed waits so long for its request.
    ttl_s: int
    idempotency = None
    resource_type = CASES

    def reads(self) -> Iterable[Key]:
        yield Key(CASES, self.slot, self.case_id)
        yield Key(FACTORS, self.slot, factor_id(self.slot, self.user_id))

    def decide(self, book: Book) -> Outcome:
        case = book.get(CASES, self.case_id)
        if case is None or case.kind != CaseKind.CHALLENGE or case.user_id != self.user_id:
            return Refused(Reason.CHALLENGE_NOT_FOUND, "there is no such challenge")
        factor = book.get(FACTORS, factor_id(self.slot, self.user_id))
        state = state_at(case, book.now)
        passed = state in {CaseState.PASSED, CaseState.USED}
        if passed and factor is not None and self.step and factor.last_step == self.step:
            return Accepted(case, replayed=True)
        if state != CaseState.OPEN:
            return Refused(Reason.CHALLENGE_ENDED, f"the challenge is {state}", {"state": state})
        if factor is None or not can_answer(factor, case):
            return Refused(
                Reason.FACTOR_NOT_FOUND, "the user had no second factor when it was asked for"
            )
        refused = _may_try(factor, book.now, self.factor_version)
        if refused:
            return refused
        if self.step <= factor.last_step:
            return self._wrong(book, case, factor)
        book.put(FACTORS, _right(factor, self.step, book.now))
        return Accepted(
            book.put(
                CASES,
                case._replace(
                    state=TRANSITIONS[state][CaseEvent.PASS],
                    expires_at=book.now + timedelta(seconds=self.ttl_s),
                    touched_at=book.now,
                ),
            )
        )

    def _wrong(self, book: Book, case: Case, factor: Factor) -> Refused:
        tries = case.tries + 1
        state = CaseState.OPEN
        if tries >= TRIES_MAX:
            state = TRANSITIONS[state][CaseEvent.FAIL]
        book.put(CASES, case._replace(state=state, tries=tries, touched_at=book.now))
        book.put(FACTORS, _wrong(factor, book.now))
        return _code_wrong(TRIES_MAX - tries)


def _may_try(factor: Factor, now: datetime, version: int) -> Refused | None:
    if factor.locked_until > now:
        return Refused(
            Reason.FACTOR_LOCKED,
            "too many wrong codes; the second factor is locked for a while",
            {"retry_after_s": str(int((factor.locked_until - now).total_seconds()) + 1)},
        )
    return _changed() if factor.version != version else None


def _right(factor: Factor, step: int, now: datetime) -> Factor:
    return factor._replace(last_step=step, failures=0, locked_until=NO_TIME, touched_at=now)


def _wrong(factor: Factor, now: datetime) -> Factor:
    failures = factor.failures + 1
    locked = factor.locked_until
    if failures >= FAILURES_MAX:
        seconds = min(LOCK_S << min(failures - FAILURES_MAX, 16), LOCK_MAX_S)
        locked = now + timedelta(seconds=seconds)
    return factor._replace(failures=failures, locked_until=locked, touched_at=now)


def _code_wrong(tries_left: int | None = None) -> Refused:
    metadata = {} if tries_left is None else {"tries_left": str(tries_left)}
    return Refused(Reason.CODE_WRONG, "the code is wrong", metadata, kept=True)


@dataclass(frozen=True, slots=True)
class DecideReview(PlainCommand):
    """A person says yes or no; the same record of the audit log says it once."""

    slot: int
    case_id: str
    approve: bool
    decided_by: str
    audit_id: str
    note: str
    ttl_s: int
    idempotency = None
    resource_type = CASES

    def reads(self) -> Iterable[Key]:
        return (Key(CASES, self.slot, self.case_id),)

    def decide(self, book: Book) -> Outcome:
        case = book.get(CASES, self.case_id)
        if case is None or case.kind != CaseKind.REVIEW:
            return Refused(Reason.REVIEW_NOT_FOUND, "there is no such review")
        if case.audit_id == self.audit_id:
            return Accepted(case, replayed=True)
        state = state_at(case, book.now)
        event = CaseEvent.PASS if self.approve else CaseEvent.FAIL
        following = TRANSITIONS[state].get(event)
        if following is None:
            return Refused(Reason.REVIEW_ENDED, f"the review is {state}", {"state": state})
        until = book.now + timedelta(seconds=self.ttl_s) if self.approve else case.expires_at
        return Accepted(
            book.put(
                CASES,
                case._replace(
                    state=following, decided_by=self.decided_by, audit_id=self.audit_id,
                    note=self.note, expires_at=until, touched_at=book.now,
                ),
            )
        )  # fmt: skip


def _not_primary(book: Book, slot: int, version: int) -> Refused | None:
    """A secret is sealed by the slot's primary key only, so that an old one can be retired."""
    key = book.get(KEYS, key_id_of(slot, KeyPurpose.FIELD, version))
    if key is None or key.state != KeyState.PRIMARY:
        return Refused(Reason.KEY_REPLACED, "the key was replaced; nothing was executed")
    return None


def _key(slot: int, version: int) -> Key:
    return Key(KEYS, slot, key_id_of(slot, KeyPurpose.FIELD, version))


@dataclass(frozen=True, slots=True)
class EnrolFactor(PlainCommand):
    """A new secret, to be confirmed. To replace a factor takes a code of it: `step`, as above."""

    slot: int
    user_id: str
    pending_sealed: str
    pending_key: int
    step: int
    # Of the factor as it was when it was read; 0 for none.
    factor_version: int
    idempotency = None
    resource_type = FACTORS

    def reads(self) -> Iterable[Key]:
        yield Key(FACTORS, self.slot, factor_id(self.slot, self.user_id))
        yield _key(self.slot, self.pending_key)

    def decide(self, book: Book) -> Outcome:
        refused = _not_primary(book, self.slot, self.pending_key)
        if refused:
            return refused
        identifier = factor_id(self.slot, self.user_id)
        factor = book.get(FACTORS, identifier) or Factor(
            self.slot, identifier, self.user_id, "", "", 0, 0, 0, 0, NO_TIME, 0, NO_TIME,
            book.now, book.now,
        )  # fmt: skip
        refused = _may_try(factor, book.now, self.factor_version)
        if refused:
            return refused
        if factor.secret_sealed:
            if self.step <= factor.last_step:
                book.put(FACTORS, _wrong(factor, book.now))
                return _code_wrong()
            factor = _right(factor, self.step, book.now)
        return Accepted(
            book.put(
                FACTORS,
                factor._replace(
                    pending_sealed=self.pending_sealed, pending_key=self.pending_key,
                    version=factor.version + 1, touched_at=book.now,
                ),
            )
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ConfirmFactor(PlainCommand):
    """The app has the new secret: from now on it counts, and the one before no more."""

    slot: int
    user_id: str
    step: int
    factor_version: int
    idempotency = None
    resource_type = FACTORS

    def reads(self) -> Iterable[Key]:
        return (Key(FACTORS, self.slot, factor_id(self.slot, self.user_id)),)

    def decide(self, book: Book) -> Outcome:
        factor = book.get(FACTORS, factor_id(self.slot, self.user_id))
        if factor is None:
            return Refused(Reason.FACTOR_NOT_FOUND, "the user has no second factor")
        if not factor.pending_sealed:
            if factor.secret_sealed and self.step and factor.last_step == self.step:
                return Accepted(factor, replayed=True)
            return Refused(Reason.FACTOR_NOT_FOUND, "no second factor waits to be confirmed")
        refused = _may_try(factor, book.now, self.factor_version)
        if refused:
            return refused
        if not self.step:
            book.put(FACTORS, _wrong(factor, book.now))
            return _code_wrong()
        return Accepted(
            book.put(
                FACTORS,
                _right(factor, self.step, book.now)._replace(
                    secret_sealed=factor.pending_sealed, secret_key=factor.pending_key,
                    pending_sealed="", pending_key=0, version=factor.version + 1,
                    confirmed_at=book.now,
                ),
            )
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ResealFactor(PlainCommand):
    """The same secrets under the slot's primary key: a step of the rotation of keys."""

    # As it is to be, sealed for the row whose `version` is one less.
    factor: Factor
    idempotency = None
    resource_type = FACTORS

    @property
    def slot(self) -> int:
        return self.factor.slot

    def reads(self) -> Iterable[Key]:
        yield Key(FACTORS, self.slot, self.factor.factor_id)
        for version in {self.factor.secret_key, self.factor.pending_key} - {0}:
            yield _key(self.slot, version)

    def decide(self, book: Book) -> Outcome:
        known = book.get(FACTORS, self.factor.factor_id)
        if known is None or known.version != self.factor.version - 1:
            return _changed()
        for version in {self.factor.secret_key, self.factor.pending_key} - {0}:
            refused = _not_primary(book, self.slot, version)
            if refused:
                return refused
        return Accepted(
            book.put(
                FACTORS,
                known._replace(
                    secret_sealed=self.factor.secret_sealed,
                    pending_sealed=self.factor.pending_sealed,
                    secret_key=self.factor.secret_key, pending_key=self.factor.pending_key,
                    version=self.factor.version, touched_at=book.now,
                ),
            )
        )  # fmt: skip
