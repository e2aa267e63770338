"""`cellpay_policy_*`: the failover policy, and the policies that are JSON documents in etcd."""

from __future__ import annotations

import json
from typing import Any

import grpc
from cellpay.control.v1 import control_pb2
from tf import schema
from tf.types import NormalizedJson, Unknown

from cellpay_provider.plane import reason_of, told
from cellpay_provider.resource import (
    DEFAULT_REASON,
    REASON,
    Bool,
    MeshResource,
    Number,
    String,
    computed,
    optional,
    required,
)

try:
    from cellpay.control.v1 import policies_pb2, policies_pb2_grpc
except ImportError:
    # A control plane of before the policies' service: it has the failover policy alone.
    policies_pb2 = policies_pb2_grpc = None

_KINDS = (
    "traffic", "breakers", "degradation", "limits", "keys", "channels", "choice",
    "risk-rules", "risk-lists", "risk-features", "risk-model",
)  # fmt: skip


class Document(NormalizedJson):
    """JSON, spelt as Terraform's jsonencode spells it: an import then shows no difference."""

    def encode(self, value: Any) -> Any:
        if value is None or value is Unknown:
            return value
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class FailoverPolicy(MeshResource):
    """Whether the mesh may fail over by itself. There is one; destroyed, it is as it was before."""

    @classmethod
    def get_name(cls) -> str:
        return "policy_failover"

    @classmethod
    def get_schema(cls) -> schema.Schema:
        return schema.Schema(
            version=1,
            attributes=[
                required("automatic", Bool(), "False: the kill switch."),
                optional("reason", String(), DEFAULT_REASON, REASON),
                computed("previous", Bool(), "What it was before."),
            ],
        )

    def _get(self) -> Any:
        request = control_pb2.GetFailoverPolicyRequest()
        return self.plane.call(self.plane.control.GetFailoverPolicy, request)

    def _set(self, automatic: bool, reason: str) -> None:
        """Only what is ours: other fields of the policy stay as they are."""
        policy = self._get()
        if policy.automatic != automatic:
            policy.automatic = automatic
            request = control_pb2.SetFailoverPolicyRequest(policy=policy, reason=reason)
            self.plane.call(self.plane.control.SetFailoverPolicy, request)

    def create(self, ctx: Any, planned: dict[str, Any]) -> dict[str, Any] | None:
        with told(ctx.diagnostics, "the failover policy"):
            previous = self._get().automatic
            self._set(planned["automatic"], planned["reason"])
            return {**planned, "previous": previous}
        return None

    def read(self, ctx: Any, current: dict[str, Any]) -> dict[str, Any] | None:
        with told(ctx.diagnostics, "the failover policy"):
            return {**current, "automatic": self._get().automatic}
        return current

    def update(
        self, ctx: Any, current: dict[str, Any], planned: dict[str, Any]
    ) -> dict[str, Any] | None:
        with told(ctx.diagnostics, "the failover policy"):
            self._set(planned["automatic"], planned["reason"])
            return {**planned, "previous": current["previous"]}
        return current

    def delete(self, ctx: Any, current: dict[str, Any]) -> dict[str, Any] | None:
        with told(ctx.diagnostics, "the failover policy"):
            self._set(current["previous"], current["reason"])
            return None
        return current

    def import_(self, ctx: Any, id: str) -> dict[str, Any] | None:
        with told(ctx.diagnostics, "the failover policy"):
            automatic = self._get().automatic
            return {"automatic": automatic, "reason": DEFAULT_REASON, "previous": automatic}
        return None


class DocumentPolicy(MeshResource):
    """A policy of a kind, by name. Changed by compare-and-set on the revision of the last read."""

    kind = ""

    @classmethod
    def get_name(cls) -> str:
        return f"policy_{cls.kind.replace('-', '_')}"

    @classmethod
    def get_schema(cls) -> schema.Schema:
        return schema.Schema(
            version=1,
            attributes=[
                required("name", String(), "Lower case letters, digits, hyphens.", replace=True),
                required("document", Document(), "Its JSON: jsonencode({…})."),
                optional("reason", String(), DEFAULT_REASON, REASON),
                computed("revision", Number(), "etcd's, of its last change."),
            ],
        )

    @property
    def _stub(self) -> Any:
        return policies_pb2_grpc.PolicyServiceStub(self.plane.channel)

    def _get(self, name: str) -> Any | None:
        try:
            request = policies_pb2.GetPolicyRequest(kind=self.kind, name=name)
            return self.plane.call(self._stub.GetPolicy, request)
        except grpc.RpcError as error:
            if reason_of(error) == "POLICY_NOT_FOUND":
                return None
            raise

    def _set(self, planned: dict[str, Any], revision: int) -> dict[str, Any]:
        document = Document().encode(planned["document"])
        request = policies_pb2.SetPolicyRequest(
            kind=self.kind, name=planned["name"], document=document, revision=revision,
            reason=planned["reason"],
        )  # fmt: skip
        policy = self.plane.call(self._stub.SetPolicy, request)
        return {**planned, "revision": policy.revision}

    def _state(self, policy: Any, reason: str) -> dict[str, Any]:
        return {
            "name": policy.name,
            "document": Document().decode(policy.document),
            "reason": reason,
            "revision": policy.revision,
        }

    def create(self, ctx: Any, planned: dict[str, Any]) -> dict[str, Any] | None:
        with told(ctx.diagnostics, f"{self.kind} policy {planned['name']}"):
            return self._set(planned, 0)
        return None

    def read(self, ctx: Any, current: dict[str, Any]) -> dict[str, Any] | None:
        with told(ctx.diagnostics, f"{self.kind} policy {current['name']}"):
            policy = self._get(current["name"])
            return None if policy is None else self._state(policy, current["reason"])
        return current

    def plan(self, ctx: Any, current: dict[str, Any] | None, planned: dict[str, Any]) -> Any:
        return {**planned, "revision": Unknown} if ctx.changed_fields else planned

    def update(
        self, ctx: Any, current: dict[str, Any], planned: dict[str, Any]
    ) -> dict[str, Any] | None:
        with told(ctx.diagnostics, f"{self.kind} policy {planned['name']}"):
            return self._set(planned, int(current["revision"]))
        return current

    def delete(self, ctx: Any, current: dict[str, Any]) -> dict[str, Any] | None:
        with told(ctx.diagnostics, f"{self.kind} policy {current['name']}"):
            if self._get(current["name"]) is not None:
                request = policies_pb2.DeletePolicyRequest(
                    kind=self.kind, name=current["name"], revision=int(current["revision"]),
                    reason=current["reason"],
                )  # fmt: skip
                self.plane.call(self._stub.DeletePolicy, request)
            return None
        return current

    def import_(self, ctx: Any, id: str) -> dict[str, Any] | None:
        with told(ctx.diagnostics, f"{self.kind} policy {id}"):
            policy = self._get(id)
            if policy is None:
                raise ValueError(f"there is no {self.kind} policy {id!r}")
            return self._state(policy, DEFAULT_REASON)
        return None


def document_policies() -> list[type[DocumentPolicy]]:
    """One resource a kind, where the control plane's protos know policies."""
    if policies_pb2 is None:
        return []
    return [
        type(f"{kind.title().replace('-', '')}Policy", (DocumentPolicy,), {"kind": kind})
        for kind in _KINDS
    ]
