"""Two persons, roles and the audit log's chain, as operators meet them on a mesh that runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import grpc
import pytest
from cellpay.control.v1 import access_pb2
from cellpay.control.v1 import control_pb2 as pb

from control.cellctl.session import Session
from router.errors import details_of
from router.store.model import AUDIT_PREFIX
from tests.integration.test_control import cellctl, document

pytestmark = pytest.mark.mesh


def identifier_in(text: str) -> str:
    return next(word for word in text.split() if word.startswith("appr-"))


@pytest.fixture
async def two_persons(session: Session) -> AsyncIterator[Session]:
    """Approvals are on, and bob may approve, but not operate."""
    for arguments in (
        ("identity", "issue", "bob", "--role", "approver", "--role", "viewer"),
        ("approvals", "policy", "--on", "--reason", "a test"),
    ):
        done = cellctl(session, *arguments)
        assert done.returncode == 0, done.stderr
    yield session
    off = ("approvals", "policy", "--off", "--reason", "over", "--break-glass")
    assert cellctl(session, *off).returncode == 0


async def test_a_policy_changes_when_a_second_person_has_said_yes(two_persons: Session) -> None:
    wanted = ("approvals", "policy", "--on", "--reason", "stays on")
    held = cellctl(two_persons, *wanted)
    assert held.returncode == 1
    assert "APPROVAL_REQUIRED" in held.stderr
    identifier = identifier_in(held.stderr)
    own = cellctl(two_persons, "approvals", "approve", identifier, "--reason", "me")
    assert "APPROVAL_IS_YOUR_OWN" in own.stderr
    yes = ("approvals", "approve", identifier, "--reason", "seen", "--as", "bob")
    assert "approved" in cellctl(two_persons, *yes).stdout
    done = cellctl(two_persons, *wanted, "--approval", identifier)
    assert done.returncode == 0, done.stderr
    again = cellctl(two_persons, *wanted, "--approval", identifier)
    assert "APPROVAL_USED" in again.stderr
    (one,) = [
        item
        for item in document(two_persons, "approvals", "list")
        if item["approval_id"] == identifier
    ]
    assert one["state"] == "used"
    assert one["approver"].endswith("/operator/bob")
    verdicts = [item["verdict"] for item in document(two_persons, "audit")]
    assert any(identifier in verdict for verdict in verdicts)


async def test_a_region_takes_two_persons_and_a_cell_one(two_persons: Session) -> None:
    request = pb.StartOperationRequest(
        kind=pb.Operation.KIND_FAILOVER, region="region-c", reason="flood"
    )
    async with two_persons.control() as control:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await control.StartOperation(request, timeout=10)
        details = details_of(caught.value)
        assert details.reason == "APPROVAL_REQUIRED"
        assert details.metadata["approval_id"].startswith("appr-")
        one = pb.StartOperationRequest(kind=pb.Operation.KIND_RESTORE, cell="a", reason="one")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await control.StartOperation(one, timeout=10)
    assert details_of(caught.value).reason == "NOTHING_TO_MOVE", "it was not held"


async def test_an_approver_does_not_operate_and_strangers_are_no_identity(
    two_persons: Session,
) -> None:
    denied = cellctl(two_persons, "drain", "a", "--reason", "x", "--as", "bob")
    assert "CALLER_NOT_ALLOWED" in denied.stderr
    assert document(two_persons, "identity", "whoami", "--as", "bob")["roles"] == [
        "viewer",
        "approver",
    ]
    unknown = cellctl(two_persons, "status", "--as", "nobody")
    assert "no identity nobody" in unknown.stderr
    reserved = cellctl(two_persons, "identity", "issue", "cell-a", "--role", "operator")
    assert reserved.returncode != 0
    wrong = cellctl(two_persons, "roles", "set", "bob", "--role", "king", "--reason", "x")
    assert "no role" in wrong.stderr


async def test_operators_at_once_see_no_conflict_of_the_audit_log(session: Session) -> None:
    async def change(number: int) -> None:
        async with session.access() as access:
            binding = access_pb2.RoleBinding(
                subject=f"spiffe://cellpay.local/operator/n{number}",
                roles=[access_pb2.ROLE_VIEWER],
            )
            request = access_pb2.SetRoleBindingRequest(binding=binding, reason="at once")
            await access.SetRoleBinding(request, timeout=30)

    await asyncio.gather(*(change(number) for number in range(30)))
    verified = document(session, "audit", "verify")
    assert verified["ok"]
    async with session.control() as control:
        listed = await control.ListAuditRecords(pb.ListAuditRecordsRequest(page_size=100))
    assert sum(record.reason == "at once" for record in listed.records) == 30


async def test_a_record_that_was_changed_in_etcd_is_named(session: Session) -> None:
    before = document(session, "audit", "verify")
    async with session.store() as store:
        items = (await store.list(AUDIT_PREFIX)).items
        key = sorted(items)[len(items) // 2]
        kept = items[key].value
        forged = {**json.loads(kept), "actor": "spiffe://cellpay.local/operator/eve"}
        await store.commit(expect={}, puts={key: json.dumps(forged)})
        try:
            found = cellctl(session, "audit", "verify")
        finally:
            await store.commit(expect={}, puts={key: kept})
    assert found.returncode == 1
    assert key.removeprefix(AUDIT_PREFIX) in found.stderr.replace("\n", "")
    after = cellctl(session, "audit", "verify", "--contains", before["head"])
    assert after.returncode == 0, after.stderr
    missing = cellctl(session, "audit", "verify", "--contains", "0" * 64)
    assert missing.returncode == 1
    assert "rewritten" in missing.stderr


async def test_wrong_approvals_are_said_to_be_so(session: Session) -> None:
    assert "APPROVAL_NOT_FOUND" in (
        cellctl(session, "approvals", "approve", "appr-none", "--reason", "x").stderr
    )
    async with session.access() as access:
        for request in (
            access_pb2.SetRoleBindingRequest(reason="x"),
            access_pb2.SetRoleBindingRequest(
                binding=access_pb2.RoleBinding(subject="ann", roles=[access_pb2.ROLE_UNSPECIFIED]),
                reason="x",
            ),
            access_pb2.SetRoleBindingRequest(
                binding=access_pb2.RoleBinding(subject="spiffe://cellpay.local/operator/x")
            ),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await access.SetRoleBinding(request, timeout=10)
            assert details_of(caught.value).reason == "INVALID_REQUEST"
