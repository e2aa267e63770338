"""What whoever has signed in may do: each act is one call of the control API as them.

Roles, the second person and the audit log are there, as for `cellctl`; nothing is decided here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellpay.control.v1 import (
    access_pb2,
    control_pb2,
    operations_pb2,
    policies_pb2,
    reviews_pb2,
)
from cellpay.control.v1 import reconciliation_pb2 as recon_pb2
from google.protobuf import json_format

from control.access.headers import APPROVAL_HEADER
from control.cellctl.console.plain import plain
from control.cellctl.policies import force_breaker, set_level
from control.cellctl.session import Session
from control.cellctl.show import operation_document
from router.policies.model import checked_dependency

# Whoever acts would rather wait than not know what became of it.
_TIMEOUT_S = 15.0
_LEVELS = ("0", "1", "2", "3")
_OPERATION_CALLS = {
    "abort": ("AbortOperation", operations_pb2.AbortOperationRequest),
    "pause": ("PauseOperation", operations_pb2.PauseOperationRequest),
    "resume": ("ResumeOperation", operations_pb2.ResumeOperationRequest),
    "rollback": ("RollBackOperation", operations_pb2.RollBackOperationRequest),
}
_PROPOSALS = {
    "adjust": recon_pb2.ProposeResolutionRequest.RESOLUTION_ADJUST,
    "dismiss": recon_pb2.ProposeResolutionRequest.RESOLUTION_DISMISS,
}
# What waits for a second person: the call, its request, and what it answers.
_APPROVED_CALLS: dict[str, tuple[Any, Any]] = {
    "cellpay.control.v1.ControlService/StartOperation": (
        control_pb2.StartOperationRequest,
        control_pb2.Operation,
    ),
    "cellpay.control.v1.ControlService/SetFailoverPolicy": (
        control_pb2.SetFailoverPolicyRequest,
        control_pb2.FailoverPolicy,
    ),
    "cellpay.control.v1.AccessService/SetRoleBinding": (
        access_pb2.SetRoleBindingRequest,
        access_pb2.RoleBinding,
    ),
    "cellpay.control.v1.AccessService/SetApprovalPolicy": (
        access_pb2.SetApprovalPolicyRequest,
        access_pb2.ApprovalPolicy,
    ),
    "cellpay.control.v1.PolicyService/SetPolicy": (
        policies_pb2.SetPolicyRequest,
        policies_pb2.Policy,
    ),
    "cellpay.control.v1.PolicyService/DeletePolicy": (
        policies_pb2.DeletePolicyRequest,
        policies_pb2.DeletePolicyResponse,
    ),
}


class UnknownAct(Exception):
    """No such thing can be done to it."""


@dataclass(frozen=True, slots=True)
class Acts:
    """As one identity. Failed calls raise grpc.aio.AioRpcError, bad names ValueError."""

    data: Path
    # The name of a certificate of the mesh.
    identity: str

    def _session(self) -> Session:
        return Session.open(self.data)

    async def operate(self, operation_id: str, act: str, reason: str, cell: str) -> dict[str, Any]:
        if act not in _OPERATION_CALLS:
            raise UnknownAct(act)
        method, request = _OPERATION_CALLS[act]
        async with self._session().operations(self.identity) as operations:
            done = await getattr(operations, method)(
                request(operation_id=operation_id, reason=reason), timeout=_TIMEOUT_S
            )
        return operation_document(done)

    async def decide(self, approval_id: str, act: str, reason: str, cell: str) -> dict[str, Any]:
        if act == "carry-out":
            return await self._carry_out(approval_id)
        if act not in {"approve", "reject"}:
            raise UnknownAct(act)
        async with self._session().access(self.identity) as access:
            done = await access.DecideApproval(
                access_pb2.DecideApprovalRequest(
                    approval_id=approval_id, approve=act == "approve", reason=reason
                ),
                timeout=_TIMEOUT_S,
            )
        return plain(done)

    async def _carry_out(self, approval_id: str) -> dict[str, Any]:
        """Makes the call that was approved, as it was asked for: the gate lets no other one pass,
        and nobody but who asked."""
        async with self._session().control_channel(self.identity) as channel:
            found = plain(await self._approval(approval_id))
            if found["action"] not in _APPROVED_CALLS:
                raise UnknownAct(found["action"])
            request, answer = _APPROVED_CALLS[found["action"]]
            message = json_format.ParseDict(json.loads(found["parameters"]), request())
            call = channel.unary_unary(
                f"/{found['action']}",
                request_serializer=request.SerializeToString,
                response_deserializer=answer.FromString,
            )
            metadata = ((APPROVAL_HEADER, approval_id),)
            await call(message, timeout=_TIMEOUT_S, metadata=metadata)
            return plain(await self._approval(approval_id))

    async def _approval(self, approval_id: str) -> access_pb2.Approval:
        async with self._session().access(self.identity) as access:
            request = access_pb2.GetApprovalRequest(approval_id=approval_id)
            return await access.GetApproval(request, timeout=_TIMEOUT_S)

    async def force(self, dependency: str, act: str, reason: str, cell: str) -> dict[str, Any]:
        """Forces a breaker open or closed, or lets it go; of one cell, or of all when empty."""
        if act not in {"open", "closed", "auto"}:
            raise UnknownAct(act)
        checked_dependency(dependency)
        done = await force_breaker(
            self._session(), dependency, act, reason, await self._cell(cell), self.identity
        )
        return plain(done)

    async def degrade(self, where: str, act: str, reason: str, cell: str) -> dict[str, Any]:
        """`where`: mesh, or a cell's name."""
        if act not in _LEVELS:
            raise UnknownAct(act)
        of = "" if where == "mesh" else await self._cell(where)
        return plain(await set_level(self._session(), int(act), reason, of, self.identity))

    async def _cell(self, name: str) -> str:
        """A policy for a cell that is not there would be in force nowhere."""
        if name and name not in await self._session().cells(self.identity):
            raise ValueError(f"there is no cell {name[:64]!r}")
        return name

    async def failover(self, which: str, act: str, reason: str, cell: str) -> dict[str, Any]:
        """The kill switch of automatic failover."""
        if which != "automatic" or act not in {"on", "off"}:
            raise UnknownAct(act)
        policy = control_pb2.FailoverPolicy(automatic=act == "on")
        async with self._session().control(self.identity) as control:
            request = control_pb2.SetFailoverPolicyRequest(policy=policy, reason=reason)
            return plain(await control.SetFailoverPolicy(request, timeout=_TIMEOUT_S))

    async def reconcile(self, channel: str, day: str, reason: str, cell: str) -> dict[str, Any]:
        """Asks for a run."""
        async with self._session().reconciliation(self.identity) as service:
            request = recon_pb2.RequestRunRequest(channel=channel, clearing_date=day, reason=reason)
            return plain(await service.RequestRun(request, timeout=_TIMEOUT_S))

    async def resolve(self, break_id: str, act: str, reason: str, cell: str) -> dict[str, Any]:
        """The maker's proposal, or the checker's decision."""
        async with self._session().reconciliation(self.identity) as service:
            if act in _PROPOSALS:
                proposed = recon_pb2.ProposeResolutionRequest(
                    break_id=break_id, resolution=_PROPOSALS[act], reason=reason
                )
                done = await service.ProposeResolution(proposed, timeout=_TIMEOUT_S)
            elif act in {"approve", "reject"}:
                decided = recon_pb2.DecideCaseRequest(
                    break_id=break_id, approve=act == "approve", reason=reason
                )
                done = await service.DecideCase(decided, timeout=_TIMEOUT_S)
            else:
                raise UnknownAct(act)
        return plain(done)

    async def review(self, review_id: str, act: str, reason: str, cell: str) -> dict[str, Any]:
        """Lets a request go on, or ends it."""
        if act not in {"approve", "reject"}:
            raise UnknownAct(act)
        request = reviews_pb2.DecideReviewRequest(
            review_id=review_id, approve=act == "approve", reason=reason
        )
        async with self._session().reviews(self.identity) as service:
            return plain(await service.DecideReview(request, timeout=_TIMEOUT_S))
