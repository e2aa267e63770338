"""PolicyService: policies for operators to write and for every workload to read."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import grpc
from cellpay.control.v1 import policies_pb2 as pb
from cellpay.control.v1 import policies_pb2_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from control.audit import audit_put, audit_record
from control.policies.history import Change, archive_put, detail_of
from control.policies.model import Report, StoredPolicy
from control.policies.risk import RiskWriter
from control.policies.rules import check, key_of
from control.policies.store import (
    delete_policy,
    list_changes,
    list_policies,
    list_reports,
    read_document,
    read_policy,
    write_policy,
)
from control.service import check_reader, operator_of, page_of
from router.errors import Refusal, Violation, bad_request
from router.policies.model import RISK_KINDS, PolicyKind
from router.policies.risk import Reference
from router.policies.rules import InvalidPolicy, Policy, envelope, policy_key
from router.redaction import without_pans
from router.risk.artefact import RiskModel
from router.risk.features import FeatureSet
from router.risk.lists import RiskList
from router.risk.model import RuleSet
from router.store.model import Store

_PAGE_SIZE_DEFAULT = 100
_PAGE_SIZE_MAX = 500
# gRPC's default takes 4 MiB, and a document may have half of one.
_PAGE_BYTES_MAX = 2 * 1024 * 1024


class PolicyService(policies_pb2_grpc.PolicyServiceServicer):
    def __init__(self, store: Store, cells: Callable[[], Collection[str]]) -> None:
        """`cells`: those that are declared now."""
        self._store = store
        self._cells = cells
        self._risk = RiskWriter(store)

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Any) -> pb.Policy:
        check_reader(context)
        with _answering_violations():
            key = key_of(request.kind, request.name)
        policy = await read_policy(self._store, key)
        if request.revision and (policy is None or policy.revision != request.revision):
            return policy_message(await self._as_it_was(request))
        if policy is None:
            raise _not_found(request.kind, request.name)
        return policy_message(policy)

    async def _as_it_was(self, request: pb.GetPolicyRequest) -> StoredPolicy:
        for change in await list_changes(self._store, request.kind, request.name):
            document = await read_document(self._store, change)
            if change.revision == request.revision and document is not None:
                return StoredPolicy(
                    change.kind, change.name, document, change.revision, change.reason,
                    change.actor, change.time_ms,
                )  # fmt: skip
        raise Refusal(
            grpc.StatusCode.NOT_FOUND,
            "POLICY_REVISION_NOT_FOUND",
            f"{request.kind}/{request.name} was not written at revision {request.revision}, or"
            " that document is kept no more",
        )

    async def ListPolicyChanges(
        self, request: pb.ListPolicyChangesRequest, context: Any
    ) -> pb.ListPolicyChangesResponse:
        check_reader(context)
        found = await list_changes(self._store, request.kind, request.name)
        # As digits they sort as they were made.
        page, token = page_of(
            found, request.page_size, request.page_token, lambda item: f"{item.revision:020}"
        )
        return pb.ListPolicyChangesResponse(
            changes=[change_message(item) for item in page], next_page_token=token
        )

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
        page = _fitting(found[:size])
        token = _token(page[-1]) if len(found) > len(page) else ""
        return pb.ListPoliciesResponse(
            policies=[policy_message(policy) for policy in page], next_page_token=token
        )

    async def SetPolicy(self, request: pb.SetPolicyRequest, context: Any) -> pb.Policy:
        action = f"policy.{request.kind[:32]}.set"
        detail = detail_of(request.kind, request.name[:64], request.document)
        # Of what is refused: it may be a card's number in the wrong place.
        shown = without_pans(f"{request.name[:64]}: {request.document[:256]}")
        async with operator_of(self._store, context, action, shown, request.reason) as actor:
            with _answering_violations():
                key = key_of(request.kind, request.name)
                policy = check(request.kind, request.name, request.document, self._cells())
            stamp = time.time_ns() // 1_000_000
            value = envelope(request.document, reason=request.reason, actor=actor, time_ms=stamp)
            record = audit_put(audit_record(actor, action, detail, request.reason))
            written = await self._write(request, policy, {key: value, **record})
            if written is None:
                raise await self._changed(key, request.kind, request.name)
        return policy_message(
            StoredPolicy(
                request.kind, request.name, request.document, written, request.reason, actor, stamp
            )
        )

    async def _write(
        self, request: pb.SetPolicyRequest, policy: Policy, puts: Mapping[str, str]
    ) -> int | None:
        """The new revision, or the one that stays; None when it is another than was asked for."""
        revision = request.revision if request.HasField("revision") else None
        if not isinstance(policy.document, RuleSet | RiskList | FeatureSet | RiskModel):
            if request.validate_only:
                return revision or 0
            return await write_policy(
                self._store, policy_key(policy.kind, policy.name), revision, puts
            )
        archived = archive_put(policy.kind, policy.name, request.document)
        with _answering_violations():
            return await self._risk.write(
                Reference(policy.kind, policy.name), policy.document, revision,
                {**puts, **archived}, check_only=request.validate_only,
            )  # fmt: skip

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
            record = audit_put(audit_record(actor, action, detail, request.reason))
            kind = PolicyKind(request.kind)
            if kind in RISK_KINDS:
                of = Reference(kind, request.name)
                done = await self._risk.write(of, None, revision, record) is not None
            else:
                done = await delete_policy(self._store, key, revision, record)
            if not done:
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


def _fitting(page: list[StoredPolicy]) -> list[StoredPolicy]:
    """As many of them as an answer takes; one at the least."""
    total = 0
    for number, policy in enumerate(page):
        total += len(policy.document)
        if number and total > _PAGE_BYTES_MAX:
            return page[:number]
    return page


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


def change_message(change: Change) -> pb.PolicyChange:
    stamp = Timestamp()
    stamp.FromMilliseconds(change.time_ms)
    return pb.PolicyChange(
        kind=change.kind,
        name=change.name,
        revision=change.revision,
        deleted=change.deleted,
        actor=change.actor,
        reason=change.reason,
        time=stamp,
        cleared_by=change.cleared_by,
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
