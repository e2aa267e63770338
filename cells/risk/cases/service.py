"""RiskService and ReviewsService: proto to model and back."""

from __future__ import annotations

from typing import Any

from cellpay.risk.v1 import risk_pb2 as pb
from cellpay.risk.v1 import risk_pb2_grpc
from sqlalchemy import func, select

from cells.answers import not_found, resource_of
from cells.ledger.model import Reason
from cells.ledger.worker import Lanes
from cells.reading import ReadEngine, fetch
from cells.requests import Checker, money, timeout_of, timestamp
from cells.resources import list_of_user
from cells.risk.cases.codes import is_code
from cells.risk.cases.factors import Factors
from cells.risk.cases.model import (
    TRIES_MAX,
    Case,
    CaseState,
    Conclusion,
    Factor,
    Operation,
    StoredDecision,
)
from cells.risk.cases.resetting import ResetFactor
from cells.risk.cases.rules import DecideReview, state_at
from cells.risk.cases.tables import CASES, RISK_DECISIONS, risk_cases
from router.ids import Kind, slot_of_id
from router.slots import slot_of_user

_STATES_OUT = {
    CaseState.OPEN: pb.Challenge.STATE_OPEN,
    CaseState.PASSED: pb.Challenge.STATE_PASSED,
    CaseState.USED: pb.Challenge.STATE_USED,
    CaseState.FAILED: pb.Challenge.STATE_FAILED,
    CaseState.EXPIRED: pb.Challenge.STATE_EXPIRED,
}
_OPERATIONS_OUT = {
    Operation.PAY: pb.OPERATION_PAY,
    Operation.TRANSFER: pb.OPERATION_TRANSFER,
    Operation.WITHDRAW: pb.OPERATION_WITHDRAW,
    Operation.CHARGE: pb.OPERATION_CHARGE,
    Operation.PAYOUT: pb.OPERATION_PAYOUT,
}
_ACTIONS_OUT = {
    Conclusion.CHALLENGE: pb.Decision.ACTION_CHALLENGE,
    Conclusion.REVIEW: pb.Decision.ACTION_REVIEW,
    Conclusion.DENY: pb.Decision.ACTION_DENY,
}


def _challenge_message(case: Case, state: CaseState) -> pb.Challenge:
    return pb.Challenge(
        challenge_id=case.case_id,
        user_id=case.user_id,
        state=_STATES_OUT[state],
        operation=_OPERATIONS_OUT[Operation(case.operation)],
        subject_id=case.subject_id,
        payee_id=case.payee_id,
        amount=money(case.currency, case.amount),
        tries_left=TRIES_MAX - case.tries if state == CaseState.OPEN else 0,
        create_time=timestamp(case.created_at),
        expire_time=timestamp(case.expires_at),
    )


def _factor_message(factor: Factor) -> pb.Factor:
    return pb.Factor(user_id=factor.user_id, confirm_time=timestamp(factor.confirmed_at))


def _decision_message(decision: StoredDecision) -> pb.Decision:
    return pb.Decision(
        decision_id=decision.decision_id,
        user_id=decision.user_id,
        operation=_OPERATIONS_OUT[Operation(decision.operation)],
        action=_ACTIONS_OUT[Conclusion(decision.action)],
        reasons=decision.reasons.split(",") if decision.reasons else [],
        subject_id=decision.subject_id,
        payee_id=decision.payee_id,
        amount=money(decision.currency, decision.amount),
        create_time=timestamp(decision.created_at),
    )


def _code(check: Checker, field: str, code: str) -> str:
    if not is_code(code):
        check.wrong(field, "must be six digits")
    return code


class RiskService(risk_pb2_grpc.RiskServiceServicer):
    def __init__(self, engine: ReadEngine, factors: Factors) -> None:
        self._engine = engine
        self._factors = factors

    async def GetChallenge(self, request: pb.GetChallengeRequest, context: Any) -> pb.Challenge:
        check = Checker()
        identifier = check.identifier("challenge_id", request.challenge_id, Kind.CHALLENGE)
        check.done()
        columns = [risk_cases.c[name] for name in CASES.fields]
        statement = select(func.now(), *columns).where(
            risk_cases.c.slot == slot_of_id(identifier), risk_cases.c.case_id == identifier
        )
        rows = await fetch(self._engine, statement)
        if not rows:
            raise not_found(Reason.CHALLENGE_NOT_FOUND, "challenge")
        case = Case(*rows[0][1:])
        return _challenge_message(case, state_at(case, rows[0][0]))

    async def AnswerChallenge(
        self, request: pb.AnswerChallengeRequest, context: Any
    ) -> pb.Challenge:
        check = Checker()
        identifier = check.identifier("challenge_id", request.challenge_id, Kind.CHALLENGE)
        code = _code(check, "code", request.code)
        check.done()
        case = await self._factors.answer(identifier, code, timeout_of(context))
        return _challenge_message(case, CaseState(case.state))

    async def EnrollFactor(
        self, request: pb.EnrollFactorRequest, context: Any
    ) -> pb.EnrollFactorResponse:
        check = Checker()
        user_id = check.name("user_id", request.user_id)
        if request.code:
            _code(check, "code", request.code)
        label = check.text("label", request.label)
        check.done()
        uri = await self._factors.enrol(user_id, request.code, label, timeout_of(context))
        return pb.EnrollFactorResponse(otpauth_uri=uri)

    async def ConfirmFactor(self, request: pb.ConfirmFactorRequest, context: Any) -> pb.Factor:
        check = Checker()
        user_id = check.name("user_id", request.user_id)
        code = _code(check, "code", request.code)
        check.done()
        return _factor_message(await self._factors.confirm(user_id, code, timeout_of(context)))

    async def GetFactor(self, request: pb.GetFactorRequest, context: Any) -> pb.Factor:
        check = Checker()
        user_id = check.name("user_id", request.user_id)
        check.done()
        factor = await self._factors.find(user_id)
        if factor is None or not factor.secret_sealed:
            raise not_found(Reason.FACTOR_NOT_FOUND, "second factor")
        return _factor_message(factor)

    async def ListDecisions(
        self, request: pb.ListDecisionsRequest, context: Any
    ) -> pb.ListDecisionsResponse:
        listed, following = await list_of_user(
            self._engine, RISK_DECISIONS, "user_id", request, context
        )
        return pb.ListDecisionsResponse(
            decisions=[_decision_message(item) for item in listed], next_page_token=following
        )


class ReviewsService(risk_pb2_grpc.ReviewsServiceServicer):
    def __init__(self, lanes: Lanes, approved_ttl_s: int) -> None:
        self._lanes = lanes
        self._approved_ttl_s = approved_ttl_s

    async def DecideReview(self, request: pb.DecideReviewRequest, context: Any) -> pb.Review:
        check = Checker()
        identifier = check.identifier("review_id", request.review_id, Kind.REVIEW)
        decided_by = check.text("decided_by", request.decided_by)
        audit_id = check.name("audit_id", request.audit_id)
        reason = check.text("reason", request.reason)
        check.done()
        command = DecideReview(
            slot_of_id(identifier), identifier, request.approve, decided_by, audit_id, reason,
            self._approved_ttl_s,
        )  # fmt: skip
        case: Case = resource_of(await self._lanes.submit(command, timeout_of(context)))
        return pb.Review(
            review_id=case.case_id,
            user_id=case.user_id,
            state=case.state,
            expire_time=timestamp(case.expires_at),
        )

    async def ResetFactor(self, request: pb.ResetFactorRequest, context: Any) -> pb.Factor:
        check = Checker()
        user_id = check.name("user_id", request.user_id)
        check.done()
        command = ResetFactor(slot_of_user(user_id), user_id)
        resource_of(await self._lanes.submit(command, timeout_of(context)))
        return pb.Factor(user_id=user_id)
