"""What the console shows: documents of the control plane, gathered with the signed-in identity."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cellpay.control.v1 import access_pb2, control_pb2, drills_pb2, operations_pb2
from google.protobuf import json_format

from control.cellctl.console.life import life_of
from control.cellctl.session import Session
from control.cellctl.show import operation_document
from control.cellctl.status import status_document

_TIMEOUT_S = 5.0
_PAGE = 100
_OPERATION_CALLS = {
    "abort": ("AbortOperation", operations_pb2.AbortOperationRequest),
    "pause": ("PauseOperation", operations_pb2.PauseOperationRequest),
    "resume": ("ResumeOperation", operations_pb2.ResumeOperationRequest),
    "rollback": ("RollBackOperation", operations_pb2.RollBackOperationRequest),
}


class UnknownAct(Exception):
    """No such thing can be done to it."""


TRACE_PLACE = "{trace_id}"


@dataclass(frozen=True, slots=True)
class Sources:
    """The control plane as one identity sees it. Failed calls raise grpc.aio.AioRpcError."""

    data: Path
    # The name of a certificate of the mesh.
    identity: str
    # Where a trace is shown, with TRACE_PLACE for its ID; empty: nowhere.
    trace_url: str = ""

    def _session(self) -> Session:
        return Session.open(self.data)

    async def who(self) -> dict[str, Any]:
        async with self._session().access(self.identity) as access:
            said = await access.WhoAmI(access_pb2.WhoAmIRequest(), timeout=_TIMEOUT_S)
        return _plain(said)

    async def overview(self) -> dict[str, Any]:
        """All that the first page shows; parts that cannot be had say why."""
        parts: dict[str, Callable[[], Awaitable[Any]]] = {
            "mesh": lambda: status_document(self.data),
            "operations": self.operations,
            "approvals": self.approvals,
            "failover": self.failover_policy,
            "drills": self.drills,
        }
        found = await asyncio.gather(*(self._part(fetch) for fetch in parts.values()))
        return dict(zip(parts, found, strict=True))

    async def _part(self, fetch: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await fetch()
        except grpc.aio.AioRpcError as error:
            return {"error": f"{error.code().name}: {error.details()}"}
        except OSError as error:
            return {"error": str(error)}

    async def operations(self) -> list[dict[str, Any]]:
        async with self._session().control(self.identity) as control:
            found = await control.ListOperations(
                control_pb2.ListOperationsRequest(page_size=20), timeout=_TIMEOUT_S
            )
        return [operation_document(operation) for operation in found.operations]

    async def approvals(self) -> list[dict[str, Any]]:
        async with self._session().access(self.identity) as access:
            found = await access.ListApprovals(
                access_pb2.ListApprovalsRequest(page_size=20), timeout=_TIMEOUT_S
            )
        return [_plain(approval) for approval in found.approvals]

    async def failover_policy(self) -> dict[str, Any]:
        async with self._session().control(self.identity) as control:
            found = await control.GetFailoverPolicy(
                control_pb2.GetFailoverPolicyRequest(), timeout=_TIMEOUT_S
            )
        return _plain(found)

    async def drills(self) -> list[dict[str, Any]]:
        async with self._session().drills(self.identity) as drills:
            found = await drills.ListDrills(
                drills_pb2.ListDrillsRequest(page_size=20), timeout=_TIMEOUT_S
            )
        return [_plain(drill) for drill in found.drills]

    async def drill_report(self, name: str) -> str:
        """The report of a drill's last run, Markdown; empty when there is none here."""
        async with self._session().drills(self.identity) as drills:
            drill = await drills.GetDrill(drills_pb2.GetDrillRequest(name=name), timeout=_TIMEOUT_S)
        path = Path(drill.report) / "report.md" if drill.report else None
        if path is None:
            return ""
        with contextlib.suppress(OSError):
            return await asyncio.to_thread(path.read_text, encoding="utf-8")
        return ""

    async def audit(self, page_token: str) -> dict[str, Any]:
        async with self._session().control(self.identity) as control:
            found = await control.ListAuditRecords(
                control_pb2.ListAuditRecordsRequest(page_size=_PAGE, page_token=page_token),
                timeout=_TIMEOUT_S,
            )
        return {
            "records": [_plain(record) for record in found.records],
            "next_page_token": found.next_page_token,
        }

    async def verify_audit(self) -> dict[str, Any]:
        async with self._session().access(self.identity) as access:
            found = await access.VerifyAuditLog(
                access_pb2.VerifyAuditLogRequest(), timeout=10 * _TIMEOUT_S
            )
        return _plain(found)

    async def life(self, identifier: str) -> dict[str, Any]:
        """Whoever may read the control plane may look a payment up."""
        await self.who()
        async with self._session().database() as engine:
            found = await life_of(engine, identifier)
        found["traces"] = [
            {"trace_id": one, "url": self.trace_url.replace(TRACE_PLACE, one)}
            for one in found["traces"]
        ]
        return found

    async def operate(self, operation_id: str, act: str, reason: str) -> dict[str, Any]:
        if act not in _OPERATION_CALLS:
            raise UnknownAct(act)
        method, request = _OPERATION_CALLS[act]
        async with self._session().operations(self.identity) as operations:
            done = await getattr(operations, method)(
                request(operation_id=operation_id, reason=reason), timeout=_TIMEOUT_S
            )
        return operation_document(done)

    async def decide(self, approval_id: str, act: str, reason: str) -> dict[str, Any]:
        if act not in {"approve", "reject"}:
            raise UnknownAct(act)
        async with self._session().access(self.identity) as access:
            done = await access.DecideApproval(
                access_pb2.DecideApprovalRequest(
                    approval_id=approval_id, approve=act == "approve", reason=reason
                ),
                timeout=_TIMEOUT_S,
            )
        return _plain(done)


def _plain(message: Any) -> dict[str, Any]:
    """As JSON, with fields that are empty too."""
    found: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found
