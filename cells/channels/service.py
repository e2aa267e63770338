"""ReportsService: what banks say without being asked, and what people found out."""

from __future__ import annotations

from typing import Any

import grpc
from cellpay.channels.v1 import channels_pb2 as pb
from cellpay.channels.v1 import channels_pb2_grpc

from cells.answers import not_found
from cells.channels.attempts import ATTEMPTS, Attempt
from cells.channels.desk import Desk
from cells.channels.model import Answer, AnswerReason, Operation, Verdict
from cells.channels.writing import attempt_with_time
from cells.charges.tables import CHARGE_REFUNDS, CHARGES
from cells.ledger.model import Reason
from cells.payouts.tables import PAYOUTS
from cells.reading import ReadEngine, fetch_row
from cells.requests import Checker
from router.errors import Refusal
from router.ids import Kind, slot_of_id

VERDICTS = {
    pb.VERDICT_APPROVED: Verdict.APPROVED,
    pb.VERDICT_DECLINED: Verdict.DECLINED,
    pb.VERDICT_FAILED: Verdict.FAILED,
    pb.VERDICT_PENDING: Verdict.PENDING,
    pb.VERDICT_UNKNOWN: Verdict.UNKNOWN,
}
VERDICTS_OUT = {verdict: value for value, verdict in VERDICTS.items()}


class ReportsService(channels_pb2_grpc.ReportsServiceServicer):
    def __init__(self, engine: ReadEngine, desk: Desk) -> None:
        self._engine = engine
        self._desk = desk

    async def Report(self, request: pb.ReportRequest, context: Any) -> pb.ReportResponse:
        check = Checker()
        reference = check.identifier("reference", request.reference, Kind.ATTEMPT)
        channel = check.name("channel", request.channel)
        reason = AnswerReason.NONE
        if request.reason and request.reason not in AnswerReason.__members__:
            check.wrong("reason", "is none of ours")
        elif request.reason:
            reason = AnswerReason(request.reason)
        returned = request.verdict == pb.VERDICT_RETURNED
        if not returned and request.verdict not in VERDICTS:
            check.wrong("verdict", "must be given")
        for field in ("code", "bank_reference", "clearing_date"):
            check.text(field, getattr(request, field))
        check.done()
        found = await attempt_with_time(self._engine, slot_of_id(reference), reference)
        if found is None:
            raise not_found(Reason.ATTEMPT_NOT_FOUND, "attempt")
        attempt, now = found
        if attempt.channel != channel:
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "ATTEMPT_OF_ANOTHER_CHANNEL",
                "this attempt was made through another channel",
                metadata={"channel": attempt.channel},
            )
        if returned:
            await self._return(attempt, reason)
        else:
            answer = Answer(
                VERDICTS[request.verdict], reason, request.code, request.bank_reference,
                request.clearing_date,
            )  # fmt: skip
            await self._absorb(attempt, answer, (now - attempt.created_at).total_seconds())
        after = await fetch_row(self._engine, ATTEMPTS, attempt.slot, attempt.attempt_id)
        assert after is not None
        return pb.ReportResponse(
            attempt_state=after.state, owner_id=after.owner_id, dispute=after.dispute
        )

    async def _return(self, attempt: Attempt, reason: AnswerReason) -> None:
        payout = await fetch_row(self._engine, PAYOUTS, attempt.slot, attempt.owner_id)
        if payout is None:
            raise not_found(Reason.PAYOUT_NOT_FOUND, "payout of this attempt")
        await self._desk.paying.returned(payout, attempt, reason)

    async def _absorb(self, attempt: Attempt, answer: Answer, age_s: float) -> None:
        desk, engine = self._desk, self._engine
        match Operation(attempt.operation):
            case Operation.PAYOUT:
                payout = await fetch_row(engine, PAYOUTS, attempt.slot, attempt.owner_id)
                assert payout is not None
                await desk.paying.answer(payout, attempt, answer)
            case Operation.REFUND:
                refund = await fetch_row(engine, CHARGE_REFUNDS, attempt.slot, attempt.owner_id)
                assert refund is not None
                await desk.refunding.answer(refund, attempt, answer)
            case _:
                charge = await fetch_row(engine, CHARGES, attempt.slot, attempt.owner_id)
                assert charge is not None
                desk.charging.go_on(await desk.charging.answer(charge, attempt, answer, age_s))
