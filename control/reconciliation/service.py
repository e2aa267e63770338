"""ReconciliationService: runs that operators ask for, cases that two people decide."""

from __future__ import annotations

import base64
import re
from datetime import date
from typing import Any

import grpc
from cellpay.control.v1 import reconciliation_pb2 as pb
from cellpay.control.v1 import reconciliation_pb2_grpc
from cellpay.money.v1.money_pb2 import Money
from google.protobuf.timestamp_pb2 import Timestamp

from control.audit import audit_put, audit_record
from control.fencing import asked
from control.reconciliation.model import Break, Case, Proposal, Run
from control.reconciliation.rules import No, decide, propose
from control.reconciliation.store import CaseStore
from control.service import check_reader, operator_of, page_of
from router.errors import Refusal, Violation, bad_request
from router.store.model import Store

_CHANNEL = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
_PAGE_SIZE_DEFAULT = 100
_PAGE_SIZE_MAX = 500
_PROPOSALS = {
    pb.ProposeResolutionRequest.RESOLUTION_ADJUST: Proposal.ADJUST,
    pb.ProposeResolutionRequest.RESOLUTION_DISMISS: Proposal.DISMISS,
}


class ReconciliationService(reconciliation_pb2_grpc.ReconciliationServiceServicer):
    def __init__(self, store: Store, cases: CaseStore) -> None:
        self._store = store
        self._cases = cases

    async def RequestRun(self, request: pb.RequestRunRequest, context: Any) -> pb.ReconciliationRun:
        action, detail = "reconcile.run", f"{request.channel[:64]} {request.clearing_date[:16]}"
        async with operator_of(self._store, context, action, detail, request.reason) as actor:
            _check_day(request.channel, request.clearing_date)
            await self._record(actor, action, detail, request.reason)
            work = self._cases.request(request.channel, request.clearing_date, actor)
            return _run_message(await asked(work))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Any) -> pb.ListRunsResponse:
        check_reader(context)
        runs = await asked(self._cases.runs(request.channel))
        page, token = page_of(runs, request.page_size, request.page_token, _run_key)
        return pb.ListRunsResponse(runs=[_run_message(run) for run in page], next_page_token=token)

    async def ListBreaks(
        self, request: pb.ListBreaksRequest, context: Any
    ) -> pb.ListBreaksResponse:
        check_reader(context)
        size = _size(request.page_size)
        after = _after(request.page_token)
        work = self._cases.breaks(
            request.channel, request.clearing_date, request.state, after, size + 1
        )
        found = await asked(work)
        page = found[:size]
        token = _token(page[-1]) if len(found) > size else ""
        return pb.ListBreaksResponse(
            breaks=[_break_message(item) for item in page], next_page_token=token
        )

    async def ListCases(self, request: pb.ListCasesRequest, context: Any) -> pb.ListCasesResponse:
        check_reader(context)
        size = _size(request.page_size)
        after = _after(request.page_token)
        work = self._cases.cases(request.channel, request.decided, after, size + 1)
        found = await asked(work)
        page = found[:size]
        token = _token(page[-1].of) if len(found) > size else ""
        return pb.ListCasesResponse(
            cases=[_case_message(item) for item in page], next_page_token=token
        )

    async def ProposeResolution(
        self, request: pb.ProposeResolutionRequest, context: Any
    ) -> pb.ReconciliationCase:
        proposal = _PROPOSALS.get(request.resolution)
        action, detail = "reconcile.propose", f"{request.break_id[:64]}: {proposal or 'nothing'}"
        async with operator_of(self._store, context, action, detail, request.reason) as actor:
            if proposal is None:
                raise bad_request([Violation("resolution", "must be given")])
            case = await self._find(request.break_id)
            _require(propose(case, proposal))
            audit_id = await self._record(actor, action, detail, request.reason)
            work = self._cases.propose(case, proposal, actor, request.reason, audit_id)
            return await self._after(await asked(work), case)

    async def DecideCase(
        self, request: pb.DecideCaseRequest, context: Any
    ) -> pb.ReconciliationCase:
        action = "reconcile.approve" if request.approve else "reconcile.reject"
        detail = request.break_id[:64]
        async with operator_of(self._store, context, action, detail, request.reason) as actor:
            case = await self._find(request.break_id)
            _require(decide(case, actor, approve=request.approve))
            detail = (
                f"{detail}: {case.proposal} {case.of.amount} {case.of.currency} of {case.maker}"
            )
            audit_id = await self._record(actor, action, detail, request.reason)
            work = self._cases.decide(
                case, actor, request.reason, audit_id, approve=request.approve
            )
            return await self._after(await asked(work), case)

    async def _record(self, actor: str, action: str, detail: str, reason: str) -> str:
        """Before the effect, which is in the database and names it."""
        record = audit_record(actor, action, detail, reason)
        await self._store.commit(expect={}, puts=audit_put(record))
        return record.audit_id

    async def _after(self, done: bool, case: Case) -> pb.ReconciliationCase:
        if not done:
            # `operator_of` records that it came to nothing.
            raise Refusal(
                grpc.StatusCode.ABORTED, "CASE_CHANGED", "the case changed just now; look again"
            )
        return _case_message(await self._find(case.of.break_id))

    async def _find(self, break_id: str) -> Case:
        case = await asked(self._cases.case(break_id))
        if case is None:
            raise Refusal(
                grpc.StatusCode.NOT_FOUND, "CASE_NOT_FOUND", f"{break_id[:64]!r} has no case"
            )
        return case


def _require(no: No | None) -> None:
    if no is not None:
        raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, no.reason, no.message)


def _check_day(channel: str, day: str) -> None:
    violations = []
    if not _CHANNEL.fullmatch(channel):
        violations.append(Violation("channel", "is no name of a channel"))
    try:
        if date.fromisoformat(day).isoformat() != day:
            raise ValueError(day)
    except ValueError:
        violations.append(Violation("clearing_date", "must be a date such as 2026-11-23"))
    if violations:
        raise bad_request(violations)


def _size(asked: int) -> int:
    if asked < 0:
        raise bad_request([Violation("page_size", "must not be negative")])
    return min(asked or _PAGE_SIZE_DEFAULT, _PAGE_SIZE_MAX)


def _run_key(run: Run) -> str:
    return f"{run.clearing_date} {run.channel}"


def _token(item: Break) -> str:
    return base64.urlsafe_b64encode(f"{item.clearing_date} {item.break_id}".encode()).decode()


def _after(token: str) -> tuple[str, str]:
    if not token:
        return "", ""
    try:
        text = base64.urlsafe_b64decode(token.encode("ascii")).decode()
    except (ValueError, UnicodeError):
        text = ""
    day, space, break_id = text.partition(" ")
    if not space:
        raise bad_request([Violation("page_token", "is not a token we returned")])
    return day, break_id


def _run_message(run: Run) -> pb.ReconciliationRun:
    touched = Timestamp()
    touched.FromDatetime(run.touched_at)
    return pb.ReconciliationRun(
        channel=run.channel, clearing_date=run.clearing_date, version=run.version,
        state=run.state, reason=run.reason, lines=run.lines, requested_by=run.requested_by,
        touch_time=touched, open=run.open, cases=run.cases, adjusted=run.adjusted,
        matched_later=run.matched_later,
    )  # fmt: skip


def _break_message(item: Break) -> pb.ReconciliationBreak:
    values = item._asdict()
    amount = Money(currency=values.pop("currency"), minor_units=values.pop("amount"))
    return pb.ReconciliationBreak(amount=amount, **values)


def _case_message(case: Case) -> pb.ReconciliationCase:
    values = case._asdict()
    return pb.ReconciliationCase(of_break=_break_message(values.pop("of")), **values)
