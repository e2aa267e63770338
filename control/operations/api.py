"""OperationsService: plan, pause, resume, abort, take back; which cells there are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
from cellpay.control.v1 import control_pb2, operations_pb2_grpc
from cellpay.control.v1 import operations_pb2 as pb

from control.audit import audit_put, audit_record
from control.operations.holding import HOLD_DEFAULT_S, HOLD_MAX_S, release
from control.operations.messages import kind_name, operation_message, plan_message, wish_of
from control.operations.model import Request
from control.operations.service import abort_operation, planned, request_of, roll_back
from control.operations.waves import Known
from control.view import View
from router.errors import Refusal, Violation, bad_request
from router.slots import SLOT_COUNT
from router.store.model import DECLARED_CELLS_PREFIX, Store

# Gives the operator's name to a write, and audits what is refused: context, action, detail, reason.
Authorise = Callable[[Any, str, str, str], AbstractAsyncContextManager[str]]

_CELL_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")


class OperationsService(operations_pb2_grpc.OperationsServiceServicer):
    def __init__(
        self, store: Store, view: View, operator: Authorise, reader: Callable[[Any], None]
    ) -> None:
        self._store = store
        self._view = view
        self._operator = operator
        self._reader = reader

    async def PlanOperation(
        self, request: pb.PlanOperationRequest, context: Any
    ) -> pb.OperationPlan:
        self._reader(context)
        known = self._known()
        if kind_name(request.operation.kind) == "unknown":
            raise bad_request([Violation("operation.kind", "must be one that can be started")])
        plan = planned(wish_of(request.operation, known.regions), known)
        return plan_message(plan, known, self._view.revision)

    async def PauseOperation(
        self, request: pb.PauseOperationRequest, context: Any
    ) -> control_pb2.Operation:
        return await self._ask(request, context, Request.PAUSE)

    async def ResumeOperation(
        self, request: pb.ResumeOperationRequest, context: Any
    ) -> control_pb2.Operation:
        return await self._ask(request, context, Request.RESUME)

    async def AbortOperation(
        self, request: pb.AbortOperationRequest, context: Any
    ) -> control_pb2.Operation:
        hold_s = request.hold_s if request.HasField("hold_s") else HOLD_DEFAULT_S
        operation_id, reason = request.operation_id, request.reason
        async with self._operator(context, "operation.abort", operation_id, reason) as actor:
            if not 0 <= hold_s <= HOLD_MAX_S:
                raise bad_request([Violation("hold_s", f"must be 0 to {HOLD_MAX_S}")])
            operation = await abort_operation(self._store, operation_id, actor, reason, hold_s)
        return operation_message(operation)

    async def _ask(self, request: Any, context: Any, what: Request) -> control_pb2.Operation:
        action, detail = f"operation.{what}", request.operation_id
        async with self._operator(context, action, detail, request.reason) as actor:
            operation = await request_of(
                self._store, request.operation_id, what, actor, request.reason
            )
        return operation_message(operation)

    async def RollBackOperation(
        self, request: pb.RollBackOperationRequest, context: Any
    ) -> control_pb2.Operation:
        detail = request.operation_id
        async with self._operator(context, "operation.rollback", detail, request.reason) as actor:
            operation = await roll_back(
                self._store,
                self._known(),
                self._view.revision,
                request.operation_id,
                actor,
                request.reason,
            )
        return operation_message(operation)

    async def DeclareCell(self, request: pb.DeclareCellRequest, context: Any) -> control_pb2.Cell:
        async with self._operator(context, "cell.declare", request.cell, request.reason) as actor:
            key = DECLARED_CELLS_PREFIX + request.cell
            item = await self._store.get(key)
            before = json.loads(item.value) if item else {"removed": True}
            document = _declared(request, before)
            record = audit_record(
                actor, "cell.declare", f"{request.cell} {json.dumps(document)}", request.reason
            )
            stored = await self._store.commit(
                expect={key: item.revision if item else 0},
                puts={key: json.dumps(document), **audit_put(record)},
            )
            if stored is None:
                raise Refusal(
                    grpc.StatusCode.ABORTED,
                    "CELL_CHANGED",
                    f"somebody changed cell {request.cell} meanwhile; look at it, then try again",
                )
        return control_pb2.Cell(
            cell=request.cell,
            region=document["region"],
            capacity=document.get("capacity", 0),
            surge=document.get("surge", 0),
        )

    async def ReleaseFailover(
        self, request: pb.ReleaseFailoverRequest, context: Any
    ) -> control_pb2.Cell:
        cell = request.cell
        async with self._operator(context, "failover.release", cell, request.reason) as actor:
            await release(self._store, cell, actor, request.reason)
        return control_pb2.Cell(cell=cell, region=self._view.declared.get(cell, ""))

    def _known(self) -> Known:
        known = self._view.known()
        if known is None:
            raise Refusal(
                grpc.StatusCode.UNAVAILABLE,
                "NO_SLOT_MAP",
                "the controller has not seen a slot map yet",
            )
        return known


def _declared(request: pb.DeclareCellRequest, before: dict[str, Any]) -> dict[str, Any]:
    """What is to be stored of the cell. Raises Refusal."""
    violations = []
    if not _CELL_NAME.fullmatch(request.cell):
        wrong = "a lower-case letter, then letters, digits or dashes; 32 at most"
        violations.append(Violation("cell", wrong))
    new = bool(before.get("removed"))
    if new and not request.region:
        violations.append(Violation("region", "a new cell needs one"))
    if not new and request.region not in ("", before["region"]):
        wrong = f"the cell is in {before['region']}; cells do not change regions"
        violations.append(Violation("region", wrong))
    limits = ("capacity", "surge")
    masked = tuple(request.update_mask.paths)
    violations += [
        Violation("update_mask", f"{path[:64]!r} is none of {', '.join(limits)}")
        for path in masked
        if path not in limits
    ]
    violations += [
        Violation(name, f"must be 0 (no limit) to {SLOT_COUNT} slots")
        for name in limits
        if not 0 <= getattr(request, name) <= SLOT_COUNT
    ]
    if violations:
        raise bad_request(violations)
    document: dict[str, Any] = {"region": request.region if new else before["region"]}
    for name in limits:
        given = new or not masked or name in masked
        value = getattr(request, name) if given else before.get(name, 0)
        if value:
            document[name] = value
    return document
