"""AccessService: role bindings, approvals, the audit chain. The gate has checked the caller."""

from __future__ import annotations

import time
from typing import Any

import grpc
from cellpay.control.v1 import access_pb2 as pb
from cellpay.control.v1 import access_pb2_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from control.access.rules import Role, roles_of, subject_problem
from control.access.store import (
    BINDINGS_PREFIX,
    Access,
    approval_policy_put,
    approvals_are_required,
    binding_put,
)
from control.approvals import store as approvals
from control.approvals.model import Event
from control.approvals.rules import No, decide, state_now
from control.audit import audit_put, audit_record, record_denial
from control.chain.store import verify_audit_log
from control.service import check_reason, page_of
from router.errors import Refusal, Violation, bad_request
from router.identity import Caller, caller_of
from router.store.model import Store

_ROLES = {
    pb.ROLE_VIEWER: Role.VIEWER,
    pb.ROLE_OPERATOR: Role.OPERATOR,
    pb.ROLE_APPROVER: Role.APPROVER,
    pb.ROLE_DRILL: Role.DRILL,
    pb.ROLE_RISK: Role.RISK,
}
_NUMBERS = {role: number for number, role in _ROLES.items()}


class AccessService(access_pb2_grpc.AccessServiceServicer):
    def __init__(self, store: Store, access: Access) -> None:
        self._store = store
        self._access = access

    async def WhoAmI(self, request: pb.WhoAmIRequest, context: Any) -> pb.WhoAmIResponse:
        caller = _caller(context)
        roles = roles_of(caller.spiffe_id, self._access.bindings)
        return pb.WhoAmIResponse(spiffe_id=caller.spiffe_id, roles=_numbers(roles))

    async def ListRoleBindings(
        self, request: pb.ListRoleBindingsRequest, context: Any
    ) -> pb.ListRoleBindingsResponse:
        bindings = await self._access.read()
        return pb.ListRoleBindingsResponse(
            bindings=[
                pb.RoleBinding(subject=subject, roles=_numbers(roles))
                for subject, roles in sorted(bindings.items())
            ]
        )

    async def SetRoleBinding(
        self, request: pb.SetRoleBindingRequest, context: Any
    ) -> pb.RoleBinding:
        check_reason(request.reason)
        subject = request.binding.subject
        violations = []
        problem = subject_problem(subject)
        if problem:
            violations.append(Violation("binding.subject", problem))
        unknown = [number for number in request.binding.roles if number not in _ROLES]
        if unknown:
            violations.append(Violation("binding.roles", f"there is no role {unknown[0]}"))
        if violations:
            raise bad_request(violations)
        roles = {_ROLES[number] for number in request.binding.roles}
        detail = f"{subject}: {', '.join(sorted(roles)) or 'the default'}"
        record = audit_record(_caller(context).spiffe_id, "access.bind", detail, request.reason)
        puts = binding_put(subject, roles) if roles else {}
        deletes = [] if roles else [BINDINGS_PREFIX + subject]
        await self._store.commit(expect={}, puts={**puts, **audit_put(record)}, deletes=deletes)
        return pb.RoleBinding(subject=subject, roles=_numbers(roles))

    async def GetApprovalPolicy(
        self, request: pb.GetApprovalPolicyRequest, context: Any
    ) -> pb.ApprovalPolicy:
        return pb.ApprovalPolicy(required=await approvals_are_required(self._store))

    async def SetApprovalPolicy(
        self, request: pb.SetApprovalPolicyRequest, context: Any
    ) -> pb.ApprovalPolicy:
        check_reason(request.reason)
        required = request.policy.required
        actor = _caller(context).spiffe_id
        record = audit_record(actor, "access.approvals", f"required={required}", request.reason)
        puts = {**approval_policy_put(required), **audit_put(record)}
        await self._store.commit(expect={}, puts=puts)
        return request.policy

    async def GetApproval(self, request: pb.GetApprovalRequest, context: Any) -> pb.Approval:
        return _message(await approvals.find(self._store, request.approval_id))

    async def ListApprovals(
        self, request: pb.ListApprovalsRequest, context: Any
    ) -> pb.ListApprovalsResponse:
        page, token = page_of(
            await approvals.list_approvals(self._store),
            request.page_size,
            request.page_token,
            lambda found: found.approval.approval_id,
        )
        return pb.ListApprovalsResponse(
            approvals=[_message(found) for found in page], next_page_token=token
        )

    async def DecideApproval(self, request: pb.DecideApprovalRequest, context: Any) -> pb.Approval:
        check_reason(request.reason)
        caller = _caller(context)
        found = await approvals.find(self._store, request.approval_id)
        event = Event.APPROVE if request.approve else Event.REJECT
        action = f"approval.{event}"
        after = decide(
            found.approval,
            caller.spiffe_id,
            event,
            alive=found.alive,
            now_ms=time.time_ns() // 1_000_000,
            note=request.reason,
        )
        if isinstance(after, No):
            why = f"denied: {after.reason}"
            detail = found.approval.approval_id
            record = audit_record(caller.spiffe_id, action, detail, request.reason, why)
            await record_denial(self._store, record)
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                after.reason,
                after.message,
                metadata={"approval_id": found.approval.approval_id},
            )
        if not await approvals.decided(self._store, found, after, action, request.reason):
            raise Refusal(
                grpc.StatusCode.ABORTED,
                "APPROVAL_CHANGED",
                f"{after.approval_id} was decided by another or ran out meanwhile",
            )
        return _message(found._replace(approval=after))

    async def VerifyAuditLog(
        self, request: pb.VerifyAuditLogRequest, context: Any
    ) -> pb.VerifyAuditLogResponse:
        verdict = await verify_audit_log(self._store, request.contains_sha256)
        return pb.VerifyAuditLogResponse(
            ok=verdict.broken is None,
            broken_audit_id=verdict.broken.audit_id if verdict.broken else "",
            problem=verdict.broken.problem if verdict.broken else "",
            records=verdict.records,
            unchained=verdict.unchained,
            head_sha256=verdict.head,
        )


def _caller(context: Any) -> Caller:
    caller = caller_of(context)
    assert caller is not None, "the gate lets nobody without an identity through"
    return caller


def _numbers(roles: Any) -> list[pb.Role.ValueType]:
    return sorted(_NUMBERS[role] for role in roles)


def _message(found: approvals.Found) -> pb.Approval:
    approval = found.approval
    state = state_now(approval, alive=found.alive)
    message = pb.Approval(
        approval_id=approval.approval_id,
        state=pb.Approval.State.Value(f"STATE_{state.upper()}"),
        action=approval.action,
        parameters=approval.parameters,
        sha256=approval.sha256,
        requester=approval.requester,
        approver=approval.approver,
        note=approval.note,
        create_time=_timestamp(approval.created_ms),
    )
    if approval.decided_ms:
        message.decide_time.CopyFrom(_timestamp(approval.decided_ms))
    return message


def _timestamp(time_ms: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMilliseconds(time_ms)
    return stamp
