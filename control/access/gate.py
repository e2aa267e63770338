"""The gate before every control service: a role for each call, a second person for some.

`GatedServer` stands where a server is given to generated code, so no service can be registered past
it, and no service needs to know of it. Whatever is refused here is in the audit log.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import structlog
from google.protobuf.json_format import MessageToDict

from control.access.denials import Denials
from control.access.headers import APPROVAL_HEADER, BREAK_GLASS_HEADER
from control.access.rules import (
    Role,
    goes_on_without_store,
    is_read,
    may_call,
    may_change,
    needs_second_person,
    roles_of,
)
from control.access.store import Access, approvals_are_required
from control.approvals import store as approvals
from control.approvals.clearance import BREAK_GLASS, Clearance, cleared
from control.approvals.model import Approval, State
from control.approvals.rules import No, action_hash, canonical, use
from control.audit import audit_record, new_id
from router.errors import Refusal
from router.guard import require_wellformed
from router.identity import Caller, caller_of
from router.store.model import Store

log = structlog.get_logger(__name__)

_YES = "yes"
_DETAIL_CHARACTERS_MAX = 512
_REASON_CHARACTERS_MAX = 256
_DOCUMENT_CHARACTERS_MAX = 8 * 1024

Behaviour = Callable[[Any, Any], Awaitable[Any]]


class Gate:
    def __init__(self, store: Store, access: Access, *, approval_ttl_s: int) -> None:
        """`store`: with the audit log's chain, which carries a clearance to the commit."""
        self._store = store
        self.access = access
        self._ttl_s = approval_ttl_s
        self.denials = Denials(store)

    async def pass_through(
        self, service: str, method: str, behaviour: Behaviour, request: Any, context: Any
    ) -> Any:
        """The call, if it may go. Raises Refusal."""
        require_wellformed(request)
        caller = caller_of(context)
        roles = await self._roles(service, method, caller)
        kind = getattr(request, "kind", "")
        if not (may_call(service, method, roles) and may_change(service, method, kind, roles)):
            raise await self._denied(service, method, caller, request)
        assert caller is not None, "nobody has a role"
        clearance = await self._clearance(service, method, caller, request, context)
        with cleared(clearance):
            return await behaviour(request, context)

    async def _roles(self, service: str, method: str, caller: Caller | None) -> frozenset[Role]:
        if caller is None:
            return frozenset()
        if goes_on_without_store(service, method):
            return roles_of(caller.spiffe_id, self.access.bindings)
        return roles_of(caller.spiffe_id, await self.access.read())

    async def _denied(
        self, service: str, method: str, caller: Caller | None, request: Any
    ) -> Refusal:
        name = caller.spiffe_id if caller else "nobody"
        action = f"{service.rpartition('.')[2]}.{method}"
        parameters = canonical(_parameters(request))[:_DETAIL_CHARACTERS_MAX]
        reason = getattr(request, "reason", "")[:_REASON_CHARACTERS_MAX]
        why = "denied: has no role for this"
        await self.denials.record(audit_record(name, action, parameters, reason, why))
        return Refusal(
            grpc.StatusCode.PERMISSION_DENIED,
            "CALLER_NOT_ALLOWED",
            f"{name} has no role that may call {action}",
            metadata={"caller": caller.spiffe_id if caller else ""},
        )

    async def _clearance(
        self, service: str, method: str, caller: Caller, request: Any, context: Any
    ) -> Clearance | None:
        if is_read(service, method):
            return None
        parameters = _parameters(request)
        if not needs_second_person(service, method, parameters):
            return None
        if not await approvals_are_required(self._store):
            return None
        headers = dict(context.invocation_metadata() or ())
        action, asked = f"{service}/{method}", canonical(_in_brief(parameters))
        if headers.get(BREAK_GLASS_HEADER) == _YES:
            log.critical(BREAK_GLASS, caller=caller.spiffe_id, action=action, parameters=asked)
            return Clearance(BREAK_GLASS, "", {}, {})
        sha256 = action_hash(action, asked)
        approval_id = str(headers.get(APPROVAL_HEADER, ""))
        if not approval_id:
            raise await self._ask(action, asked, sha256, caller, request)
        return await self._use(approval_id, sha256, caller)

    async def _ask(
        self, action: str, parameters: str, sha256: str, caller: Caller, request: Any
    ) -> Refusal:
        now_ms = time.time_ns() // 1_000_000
        approval = Approval(
            new_id("appr"), State.PENDING, action, parameters, sha256, caller.spiffe_id, now_ms
        )
        reason = getattr(request, "reason", "")[:_REASON_CHARACTERS_MAX]
        await approvals.ask(self._store, approval, self._ttl_s, reason)
        return Refusal(
            grpc.StatusCode.FAILED_PRECONDITION,
            "APPROVAL_REQUIRED",
            f"a second person must approve {approval.approval_id} within {self._ttl_s // 60} min; "
            "then make the same call with it",
            metadata={"approval_id": approval.approval_id, "sha256": sha256},
        )

    async def _use(self, approval_id: str, sha256: str, caller: Caller) -> Clearance:
        found = await approvals.find(self._store, approval_id)
        after = use(found.approval, caller.spiffe_id, sha256, alive=found.alive)
        if isinstance(after, No):
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                after.reason,
                after.message,
                metadata={"approval_id": approval_id},
            )
        mark = f"allowed: {approval_id} by {after.approver}"
        key = approvals.APPROVALS_PREFIX + approval_id
        return Clearance(mark, approval_id, found.expect, {key: after.to_json()})


def _parameters(request: Any) -> dict[str, Any]:
    found: dict[str, Any] = MessageToDict(request, preserving_proto_field_name=True)
    return found


def _in_brief(parameters: dict[str, Any]) -> dict[str, Any]:
    """A long document by its hash: it binds as well, and the approval is kept beside it in etcd."""
    document = parameters.get("document")
    if not isinstance(document, str) or len(document) <= _DOCUMENT_CHARACTERS_MAX:
        return parameters
    sha256 = hashlib.sha256(document.encode()).hexdigest()
    return {**parameters, "document": f"sha256:{sha256}, {len(document)} characters"}


class GatedServer:
    """Looks like a grpc.aio.Server to generated `add_…_to_server` functions."""

    def __init__(self, server: Any, gate: Gate) -> None:
        self._server = server
        self._gate = gate

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Generated code registers twice; the handlers below are the gated ones."""

    def add_registered_method_handlers(
        self, service_name: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        gated = {name: self._wrap(service_name, name, item) for name, item in handlers.items()}
        self._server.add_registered_method_handlers(service_name, gated)

    def _wrap(self, service: str, name: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        behaviour = handler.unary_unary
        if behaviour is None:
            raise TypeError(f"{service}/{name}: the gate knows no streams")

        async def gated(request: Any, context: Any) -> Any:
            return await self._gate.pass_through(service, name, behaviour, request, context)

        return grpc.unary_unary_rpc_method_handler(
            gated,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
