"""ControlService: the control plane's API. Reads for every workload, writes for operators only."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import grpc
from cellpay.control.v1 import control_pb2 as pb
from cellpay.control.v1 import control_pb2_grpc

from control.audit import audit_put, audit_record, list_audit, record_denial
from control.health import Pulses, read_policy
from control.operations.api import OperationsService
from control.operations.messages import (
    cell_message,
    detail_of,
    gate_of,
    kind_name,
    operation_message,
    policy_message,
    policy_of,
    range_message,
    timestamp,
    wish_of,
)
from control.operations.model import Operation
from control.operations.service import read_operation, start_operation
from control.verdicts import FailoverPolicy
from control.view import View
from control.xds.server import XdsServer
from router.errors import Refusal, Violation, bad_request
from router.identity import Caller, caller_of
from router.store.model import (
    FAILOVER_POLICY_KEY,
    OPERATIONS_PREFIX,
    Store,
    StoreUnavailable,
)

T = TypeVar("T")

_READERS = frozenset({"operator", "service", "cell", "controller", "edge"})
_WRITERS = frozenset({"operator"})
_NOT_ALLOWED = "CALLER_NOT_ALLOWED"
_REASON_CHARACTERS_MAX = 512
_PAGE_SIZE_DEFAULT = 50
_PAGE_SIZE_MAX = 500
_PAGE_BYTES_MAX = 2 * 1024 * 1024


class ControlService(control_pb2_grpc.ControlServiceServicer):
    def __init__(
        self, store: Store, view: View, xds: XdsServer, pulses: Pulses | None = None
    ) -> None:
        self._store = store
        self._view = view
        self._xds = xds
        self._pulses = pulses or Pulses()

    def operations(self) -> OperationsService:
        """Its sibling, which asks this one who may do what."""
        return OperationsService(self._store, self._view, self._operator, check_reader)

    async def GetSlotMap(self, request: pb.GetSlotMapRequest, context: Any) -> pb.SlotMap:
        check_reader(context)
        if self._view.slot_map is None:
            raise _not_ready()
        return pb.SlotMap(
            ranges=[range_message(owned) for owned in self._view.slot_map.ranges],
            revision=self._view.revision,
        )

    async def ListCells(self, request: pb.ListCellsRequest, context: Any) -> pb.ListCellsResponse:
        check_reader(context)
        if self._view.slot_map is None:
            raise _not_ready()
        return pb.ListCellsResponse(
            cells=[
                cell_message(cell, self._view, self._pulses) for cell in sorted(self._view.declared)
            ]
        )

    async def StartOperation(self, request: pb.StartOperationRequest, context: Any) -> pb.Operation:
        action = f"operation.{kind_name(request.kind)}"
        async with self._operator(context, action, detail_of(request), request.reason) as actor:
            known = self._view.known()
            if known is None:
                raise _not_ready()
            wish = wish_of(request, known.regions)
            operation = await start_operation(
                self._store,
                known,
                self._view.revision,
                wish,
                actor,
                request.reason,
                gate=gate_of(request, wish),
            )
        return operation_message(operation)

    async def GetOperation(self, request: pb.GetOperationRequest, context: Any) -> pb.Operation:
        check_reader(context)
        operation, _ = await read_operation(self._store, request.operation_id)
        return operation_message(operation)

    async def ListOperations(
        self, request: pb.ListOperationsRequest, context: Any
    ) -> pb.ListOperationsResponse:
        check_reader(context)
        listing = await self._store.list(OPERATIONS_PREFIX)
        keys = sorted(listing.items, reverse=True)
        page, token = page_of(keys, request.page_size, request.page_token, lambda key: key)
        found = [Operation.from_json(listing.items[key].value) for key in page]
        return pb.ListOperationsResponse(
            operations=[operation_message(operation) for operation in found],
            next_page_token=token,
        )

    async def GetFailoverPolicy(
        self, request: pb.GetFailoverPolicyRequest, context: Any
    ) -> pb.FailoverPolicy:
        check_reader(context)
        return policy_message(await read_policy(self._store))

    async def SetFailoverPolicy(
        self, request: pb.SetFailoverPolicyRequest, context: Any
    ) -> pb.FailoverPolicy:
        detail = f"automatic={request.policy.automatic}"
        action = "policy.failover"
        async with self._operator(context, action, detail, request.reason) as actor:
            item = await self._store.get(FAILOVER_POLICY_KEY)
            before = FailoverPolicy.from_json(item.value) if item else FailoverPolicy()
            policy = policy_of(request.policy, before)
            record = audit_record(actor, action, policy.to_json(), request.reason)
            stored = await self._store.commit(
                expect={FAILOVER_POLICY_KEY: item.revision if item else 0},
                puts={FAILOVER_POLICY_KEY: policy.to_json(), **audit_put(record)},
            )
            if stored is None:
                raise Refusal(
                    grpc.StatusCode.ABORTED,
                    "POLICY_CHANGED",
                    "somebody changed the policy meanwhile; look at it, then try again",
                )
        return policy_message(policy)

    async def ListAuditRecords(
        self, request: pb.ListAuditRecordsRequest, context: Any
    ) -> pb.ListAuditRecordsResponse:
        check_reader(context)
        records = await list_audit(self._store)
        page, token = page_of(
            records, request.page_size, request.page_token, lambda record: record.audit_id,
            weight=lambda record: len(record.detail),
        )  # fmt: skip
        return pb.ListAuditRecordsResponse(
            records=[
                pb.AuditRecord(
                    audit_id=record.audit_id,
                    time=timestamp(record.time_ms),
                    actor=record.actor,
                    action=record.action,
                    detail=record.detail,
                    reason=record.reason,
                    verdict=record.verdict,
                )
                for record in page
            ],
            next_page_token=token,
        )

    async def ListSubscribers(
        self, request: pb.ListSubscribersRequest, context: Any
    ) -> pb.ListSubscribersResponse:
        check_reader(context)
        return pb.ListSubscribersResponse(
            subscribers=[
                pb.Subscriber(
                    node_id=item.node_id,
                    kind=item.kind,
                    acked_version=item.acked_version,
                    nacks=item.nacks,
                    last_nack=item.last_nack,
                )
                for item in self._xds.subscribers()
            ]
        )

    def _operator(
        self, context: Any, action: str, detail: str, reason: str
    ) -> AbstractAsyncContextManager[str]:
        return operator_of(self._store, context, action, detail, reason)


@asynccontextmanager
async def operator_of(
    store: Store, context: Any, action: str, detail: str, reason: str
) -> AsyncIterator[str]:
    """Gives the operator's SPIFFE ID to a write; whatever is refused is audited too."""
    caller = caller_of(context)
    try:
        if caller is None or caller.kind not in _WRITERS:
            raise _denied(caller)
        check_reason(reason)
        yield caller.spiffe_id
    except Refusal as refusal:
        why = "not an operator" if refusal.reason == _NOT_ALLOWED else refusal.reason
        name = caller.spiffe_id if caller else "nobody"
        record = audit_record(name, action, detail[:256], reason[:256], f"denied: {why}")
        await record_denial(store, record)
        raise


def check_reason(reason: str) -> None:
    if not reason.strip():
        raise bad_request([Violation("reason", "must not be empty; it is kept in the audit log")])
    if len(reason) > _REASON_CHARACTERS_MAX:
        raise bad_request([Violation("reason", f"at most {_REASON_CHARACTERS_MAX} characters")])


def check_reader(context: Any) -> None:
    caller = caller_of(context)
    if caller is None or caller.kind not in _READERS:
        raise _denied(caller)


def _denied(caller: Caller | None) -> Refusal:
    return Refusal(
        grpc.StatusCode.PERMISSION_DENIED,
        _NOT_ALLOWED,
        "only operators may do this",
        metadata={"caller": caller.spiffe_id if caller else ""},
    )


def _not_ready() -> Refusal:
    return Refusal(
        grpc.StatusCode.UNAVAILABLE, "NO_SLOT_MAP", "the controller has not seen a slot map yet"
    )


def store_refusal(error: StoreUnavailable) -> Refusal:
    return Refusal(
        grpc.StatusCode.UNAVAILABLE,
        "ETCD_UNAVAILABLE",
        f"etcd does not answer ({error}); payments go on with the last map",
        retry_after_ms=1000,
    )


def page_of(
    items: Sequence[T],
    size: int,
    token: str,
    key: Callable[[T], str],
    weight: Callable[[T], int] = lambda item: 0,
) -> tuple[list[T], str]:
    """A page of a list that is sorted newest first, and the token of the next (AIP-158).

    `weight`: bytes of an item; an answer has no more than gRPC takes.
    """
    if size < 0:
        raise bad_request([Violation("page_size", "must not be negative")])
    size = min(size or _PAGE_SIZE_DEFAULT, _PAGE_SIZE_MAX)
    rest = list(items)
    if token:
        try:
            after = base64.urlsafe_b64decode(token.encode("ascii")).decode()
        except (ValueError, UnicodeError):
            raise bad_request([Violation("page_token", "is not a token we returned")]) from None
        rest = [item for item in rest if key(item) < after]
    page: list[T] = []
    total = 0
    for item in rest[:size]:
        total += weight(item)
        if page and total > _PAGE_BYTES_MAX:
            break
        page.append(item)
    more = len(rest) > len(page)
    return page, base64.urlsafe_b64encode(key(page[-1]).encode()).decode() if more else ""
