"""PolicyService: policies for operators to write and for every workload to read."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Collection
from typing import Any

import grpc
from cellpay.control.v1 import policies_pb2 as pb
from cellpay.control.v1 import policies_pb2_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from control.audit import audit_put, audit_record
from control.policies.model import Report, StoredPolicy
from control.policies.rules import check, key_of
from control.policies.store import (
    delete_policy,
    list_policies,
    list_reports,
    read_policy,
    write_policy,
)
from control.service import check_reader, operator_of
from router.errors import Refusal, Violation, bad_request
from router.policies.rules import InvalidPolicy, envelope
from router.store.model import Store

_PAGE_SIZE_DEFAULT = 100
_PAGE_SIZE_MAX = 500


class PolicyService(policies_pb2_grpc.PolicyServiceServicer):
    def __init__(self, store: Store, cells: Callable[[], Collection[str]]) -> None:
        """`cells`: those that are declared now."""
        self._store = store
        self._cells = cells

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Any) -> pb.Policy:
        check_reader(context)
        with _answering_violations():
            key = key_of(request.kind, request.name)
        policy = await read_policy(self._store, key)
        if policy is None:
            raise _not_found(request.kind, request.name)
        return policy_message(policy)

    async def ListPolicies(
        self, request: pb.ListPoliciesRequest, context: Any
    ) -> pb.ListPoliciesResponse:
        check_reader(context)
        if request.page_size < 0:
            raise bad_request([Violation("page_size", "must not be negative")])
        size = min(request.page_size or _PAGE_SIZE_DEFAULT, _PAGE_SIZE_MAX)
        after = _after(request.page_token)
        found = [
            policy
            for policy in await list_policies(self._store)
            if request.kind in {"", policy.kind} and (policy.kind, policy.name) > after
        ]
        page = found[:size]
        token = _token(page[-1]) if len(found) > size else ""
        return pb.ListPoliciesResponse(
            policies=[policy_message(policy) for policy in page], next_page_token=token
        )

    async def SetPolicy(self, request: pb.SetPolicyRequest, context: Any) -> pb.Policy:
        action = f"policy.{request.kind[:32]}.set"
        detail = f"{request.name[:64]}: {request.document}"
        revision = request.revision if request.HasField("revision") else None
        async with operator_of(self._store, context, action, detail, request.reason) as actor:
            with _answering_violations():
                key = key_of(request.kind, request.name)
                check(request.kind, request.name, request.document, self._cells())
            stamp = time.time_ns() // 1_000_000
            value = envelope(request.document, reason=request.reason, actor=actor, time_ms=stamp)
            written = revision or 0
            if not request.validate_only:
                record = audit_record(actor, action, detail, request.reason)
                done = await write_policy(self._store, key, value, revision, audit_put(record))
                if done is None:
                    raise await self._changed(key, request.kind, request.name)
                written = done
        return policy_message(
            StoredPolicy(
                request.kind, request.name, request.document, written, request.reason, actor, stamp
            )
        )

    async def DeletePolicy(
        self, request: pb.DeletePolicyRequest, context: Any
    ) -> pb.DeletePolicyResponse:
        action = f"policy.{request.kind[:32]}.delete"
        detail = request.name[:64]
        async with operator_of(self._store, context, action, detail, request.reason) as actor:
            with _answering_violations():
                key = key_of(request.kind, request.name)
            if request.HasField("revision") and request.revision <= 0:
                raise bad_request([Violation("revision", "must be above zero, or not be set")])
            policy = await read_policy(self._store, key)
            if policy is None:
                raise _not_found(request.kind, request.name)
            revision = request.revision if request.HasField("revision") else policy.revision
            record = audit_record(actor, action, detail, request.reason)
            if not await delete_policy(self._store, key, revision, audit_put(record)):
                raise await self._changed(key, request.kind, request.name)
        return pb.DeletePolicyResponse()

    async def ListPolicyReports(
        self, request: pb.ListPolicyReportsRequest, context: Any
    ) -> pb.ListPolicyReportsResponse:
        check_reader(context)
        reports = await list_reports(self._store)
        return pb.ListPolicyReportsResponse(reports=[report_message(item) for item in reports])

    async def _changed(self, key: str, kind: str, name: str) -> Refusal:
        """Two edits met: this one was made from something that is there no more."""
        now = await read_policy(self._store, key)
        what = f"is at revision {now.revision}, by {now.actor}" if now else "is not there"
        return Refusal(
            grpc.StatusCode.ABORTED,
            "POLICY_CHANGED",
            f"{kind}/{name} {what}: read it again, then change it",
            metadata={
                "kind": kind,
                "name": name,
                "revision": str(now.revision if now else 0),
                "actor": now.actor if now else "",
            },
        )


class _answering_violations:
    """Turns what is wrong with a policy into a BadRequest."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InvalidPolicy):
            raise bad_request(error.violations) from None


def _not_found(kind: str, name: str) -> Refusal:
    return Refusal(
        grpc.StatusCode.NOT_FOUND, "POLICY_NOT_FOUND", f"there is no policy {kind}/{name}"
    )


def _token(policy: StoredPolicy) -> str:
    return base64.urlsafe_b64encode(f"{policy.kind}/{policy.name}".encode()).decode()


def _after(token: str) -> tuple[str, str]:
    if not token:
        return ("", "")
    try:
        kind, _, name = base64.urlsafe_b64decode(token.encode("ascii")).decode().partition("/")
    except (ValueError, UnicodeError):
        raise bad_request([Violation("page_token", "is not a token we returned")]) from None
    return (kind, name)


def policy_message(policy: StoredPolicy) -> pb.Policy:
    stamp = Timestamp()
    stamp.FromMilliseconds(policy.time_ms)
    return pb.Policy(
        kind=policy.kind,
        name=policy.name,
        document=policy.document,
        revision=policy.revision,
        reason=policy.reason,
        actor=policy.actor,
        update_time=stamp if policy.time_ms else None,
        alarm=policy.alarm,
    )


def report_message(report: Report) -> pb.PolicyReport:
    return pb.PolicyReport(
        process=report.process,
        cell=report.cell,
        applied=[
            pb.PolicyReport.Applied(kind=kind, name=name, revision=revision, alarm=alarm)
            for kind, name, revision, alarm in report.applied
        ],
        breakers=[
            pb.PolicyReport.Breaker(
                dependency=dependency,
                state=pb.PolicyReport.Breaker.State.Value(f"STATE_{state.upper()}"),
                forced=forced,
            )
            for dependency, (state, forced) in sorted(report.breakers.items())
        ],
        degradation_level=report.degradation_level,
        features=report.features,
        concurrency_limit=report.concurrency_limit,
        refused=report.refused,
    )
