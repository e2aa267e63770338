"""Policies on the mesh of real parts: written by operators, in force, shown by status."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc
import pytest
import pytest_asyncio
from cellpay.accounts.v1 import accounts_pb2
from cellpay.control.v1 import control_pb2, policies_pb2_grpc
from cellpay.control.v1 import policies_pb2 as pb
from cellpay.notifications.v1 import notifications_pb2
from cellpay.orders.v1 import orders_pb2
from cellpay.payments.v1 import payments_pb2

from cells.requests import money
from control.cellctl.session import Session
from router.client import CallPolicy, Mesh, connect_direct
from router.errors import details_of
from router.store.etcd import connect_etcd
from tests.integration.test_control import cellctl, document
from tests.integration.test_webhooks import receiving

pytestmark = pytest.mark.mesh
PATIENCE_S = 60.0
Policies: TypeAlias = "policies_pb2_grpc.PolicyServiceAsyncStub"
ONCE = CallPolicy(retries=False, timeout_s=30, attempt_timeout_s=30)
_CODE = grpc.StatusCode
# Of three cells: the cell, its worker and its relay; and a controller.
_PROCESSES = 10


@pytest_asyncio.fixture
async def policies(session: Session) -> AsyncIterator[Policies]:
    """Leaves no policy behind: the mesh is everybody's."""
    async with session.policies() as stub:
        yield stub
        for item in (await stub.ListPolicies(pb.ListPoliciesRequest())).policies:
            request = pb.DeletePolicyRequest(kind=item.kind, name=item.name, reason="a test ends")
            await stub.DeletePolicy(request)
        await _applied_everywhere(stub)


async def _eventually(what: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if answer := await what():
                return answer
            await asyncio.sleep(0.02)


async def _reports(stub: Policies) -> dict[str, pb.PolicyReport]:
    found = await stub.ListPolicyReports(pb.ListPolicyReportsRequest())
    return {item.process: item for item in found.reports}


async def _applied_everywhere(stub: Policies) -> None:
    """Each process tells of every policy's revision as it is in etcd now."""

    async def true() -> bool:
        listed = (await stub.ListPolicies(pb.ListPoliciesRequest())).policies
        wanted = {(item.kind, item.name, item.revision) for item in listed}
        reports = await _reports(stub)
        applied = [
            {(item.kind, item.name, item.revision) for item in report.applied}
            for report in reports.values()
        ]
        return len(reports) == _PROCESSES and all(item == wanted for item in applied)

    await _eventually(true)


async def _set(
    stub: Policies, kind: str, name: str, text: dict[str, Any], **fields: Any
) -> pb.Policy:
    done = await stub.SetPolicy(
        pb.SetPolicyRequest(
            kind=kind, name=name, document=json.dumps(text), reason="a test", **fields
        )
    )
    await _applied_everywhere(stub)
    return done


async def _refused(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


@asynccontextmanager
async def _home_of(session: Session, user_id: str) -> AsyncIterator[Mesh]:
    """The user's home cell, directly and without retries."""
    found = document(session, "route", user_id)
    async with connect_direct(found["address"], session.tls("client"), policy=ONCE) as mesh:
        yield mesh


async def test_two_edits_of_one_policy_do_not_overwrite_each_other(
    policies: Policies,
) -> None:
    text = {"level": 0}
    first = await _set(policies, "degradation", "two", text, revision=0)
    assert (await _refused(_set(policies, "degradation", "two", text, revision=0))).code() == (
        _CODE.ABORTED
    )
    second = await _set(policies, "degradation", "two", {"level_max": 2}, revision=first.revision)
    error = await _refused(_set(policies, "degradation", "two", text, revision=first.revision))
    details = details_of(error)
    assert (error.code(), details.reason) == (_CODE.ABORTED, "POLICY_CHANGED")
    assert details.metadata["revision"] == str(second.revision)
    request = pb.DeletePolicyRequest(
        kind="degradation", name="two", reason="r", revision=first.revision
    )
    assert (await _refused(policies.DeletePolicy(request))).code() == _CODE.ABORTED
    got = await policies.GetPolicy(pb.GetPolicyRequest(kind="degradation", name="two"))
    assert json.loads(got.document) == {"level_max": 2}
    assert (got.reason, got.revision) == ("a test", second.revision)
    assert got.actor.startswith("spiffe://cellpay.local/operator/")


@pytest.mark.parametrize(
    ("kind", "name", "text", "fields"),
    [
        ("limits", "x", "{", {"document"}),
        ("limits", "x", '{"a": 1, "redis_away": "b"}', {"document.a", "document.redis_away"}),
        ("limits", "x", '{"cells": ["a", "zz"]}', {"document.cells"}),
        ("weather", "X", "{}", {"kind", "name"}),
    ],
)
async def test_a_wrong_policy_is_refused_whole_and_audited(
    session: Session,
    policies: Policies,
    kind: str,
    name: str,
    text: str,
    fields: set[str],
) -> None:
    request = pb.SetPolicyRequest(kind=kind, name=name, document=text, reason="wrong on purpose")
    error = await _refused(policies.SetPolicy(request))
    assert error.code() == _CODE.INVALID_ARGUMENT
    assert {item.field for item in details_of(error).violations} == fields
    async with session.control() as control:
        newest = (await control.ListAuditRecords(control_pb2.ListAuditRecordsRequest())).records[0]
    assert newest.action == f"policy.{kind}.set"
    assert newest.verdict.startswith("denied")


async def test_only_operators_write_and_a_reason_is_required(
    session: Session, policies: Policies
) -> None:
    request = pb.SetPolicyRequest(kind="limits", name="x", document="{}", reason="r")
    async with session.policies("client") as stranger:
        assert (await _refused(stranger.SetPolicy(request))).code() == _CODE.PERMISSION_DENIED
        deletion = pb.DeletePolicyRequest(kind="limits", name="x", reason="r")
        assert (await _refused(stranger.DeletePolicy(deletion))).code() == _CODE.PERMISSION_DENIED
        await stranger.ListPolicies(pb.ListPoliciesRequest())
    request.reason = " "
    assert (await _refused(policies.SetPolicy(request))).code() == _CODE.INVALID_ARGUMENT
    request.reason, request.validate_only = "r", True
    assert (await policies.SetPolicy(request)).name == "x"
    assert not (await policies.ListPolicies(pb.ListPoliciesRequest())).policies


async def test_what_somebody_writes_past_the_service_is_an_alarm_and_changes_nothing(
    session: Session, policies: Policies
) -> None:
    await _set(policies, "degradation", "mesh", {"level": 1})
    store = connect_etcd(session.state.address("etcd"))
    try:
        await store.commit(expect={}, puts={"/cellpay/policies/degradation/mesh": '{"level": 9}'})
        await _applied_everywhere(policies)
    finally:
        await store.close()
    for report in (await _reports(policies)).values():
        assert all(item.alarm for item in report.applied)
        assert report.degradation_level == (1 if report.cell else 0)
    status = document(session, "status")
    assert [item["alarm"] != "" for item in status["policies"]] == [True]


async def test_status_shows_which_version_each_process_applied(
    session: Session, policies: Policies
) -> None:
    done = await _set(policies, "limits", "shown", {"concurrency": {}})
    status = document(session, "status")
    assert {"kind": "limits", "name": "shown", "revision": done.revision, "alarm": ""} in (
        status["policies"]
    )
    reports = {item["process"]: item for item in status["policy_reports"]}
    assert reports["b-1"]["applied"][0]["revision"] == str(done.revision)
    assert reports["b-1"]["concurrency_limit"] == 64
    text = cellctl(session, "status").stdout
    assert "limits/shown" in text
    assert "at most 64 calls at once" in text


async def test_cellctl_writes_shows_forces_and_takes_back(session: Session) -> None:
    def run(*arguments: str) -> str:
        done = cellctl(session, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("policy", "set", "limits", "hand", '{"concurrency": {}}', "--reason", "a test")
    (listed,) = document(session, "policy", "list", "limits")
    assert json.loads(run("policy", "get", "limits", "hand")) == {"concurrency": {}}
    stale = cellctl(
        session, "policy", "set", "limits", "hand", "{}", "--reason", "r", "--revision", "1"
    )
    assert stale.returncode == 1
    assert "POLICY_CHANGED" in stale.stderr
    wrong = cellctl(session, "policy", "set", "limits", "hand", '{"x": 1}', "--reason", "r")
    assert "document.x" in wrong.stderr
    revision = str(listed["revision"])
    run("policy", "delete", "limits", "hand", "--reason", "a test", "--revision", revision)
    run("policy", "force", "webhooks", "open", "--reason", "a test")
    run("degrade", "2", "--reason", "a test", "--cell", "b")

    async def in_force() -> bool:
        reports = {i["process"]: i for i in document(session, "status")["policy_reports"]}
        forced = [i for i in reports["a-relay"]["breakers"] if i["dependency"] == "webhooks"]
        return forced == [{"dependency": "webhooks", "state": "STATE_OPEN", "forced": True}] and [
            reports[name]["degradation_level"] for name in ("a-1", "b-1")
        ] == [0, 2]

    await _eventually(in_force)
    assert "degradation level 2" in run("status")
    run("policy", "force", "webhooks", "auto", "--reason", "a test")
    for kind, name in (("breakers", "webhooks"), ("degradation", "cell-b")):
        run("policy", "delete", kind, name, "--reason", "a test")
    assert "automatic failover: on" in run("policy")


async def _paid(mesh: Mesh, payer: str, merchant: str) -> payments_pb2.Payment:
    for user, kind in (
        (payer, accounts_pb2.Account.KIND_PERSON),
        (merchant, accounts_pb2.Account.KIND_MERCHANT),
    ):
        await mesh.accounts.OpenAccount(
            accounts_pb2.OpenAccountRequest(user_id=user, currency="USD", kind=kind)
        )
    await mesh.accounts.Deposit(accounts_pb2.DepositRequest(user_id=payer, amount=money("USD", 9)))
    order = await mesh.orders.CreateOrder(
        orders_pb2.CreateOrderRequest(payer_id=payer, merchant_id=merchant, amount=money("USD", 3))
    )
    return await mesh.payments.Pay(payments_pb2.PayRequest(order_id=order.order_id))


async def test_refunds_are_switched_off_and_payments_go_on(
    session: Session, mesh: Mesh, policies: Policies
) -> None:
    payment = await _paid(mesh, "pol-ann", "pol-shop")
    await _set(policies, "degradation", "mesh", {"level": 3})
    request = payments_pb2.RefundPaymentRequest(payment_id=payment.payment_id)
    error = await _refused(mesh.payments.RefundPayment(request))
    details = details_of(error)
    assert (error.code(), details.reason) == (_CODE.UNAVAILABLE, "FEATURE_DEGRADED")
    assert details.metadata["feature"] == "refunds"
    assert details.retry_after_ms
    assert (await _paid(mesh, "pol-ann", "pol-shop")).payment_id != payment.payment_id
    await _set(policies, "degradation", "mesh", {"level": 0})
    assert (await mesh.payments.RefundPayment(request)).refund_id


async def test_a_user_over_his_rate_is_refused_and_others_are_not(
    session: Session, policies: Policies
) -> None:
    method = "cellpay.accounts.v1.AccountsService/OpenAccount"
    rate = {"by": "user", "per_s": 0.01, "burst": 2, "methods": [method]}
    await _set(policies, "limits", "rates", {"rates": [rate]})

    def opening(user_id: str) -> accounts_pb2.OpenAccountRequest:
        return accounts_pb2.OpenAccountRequest(user_id=user_id, currency="USD")

    async with _home_of(session, "rate-ann") as home:
        for _ in range(2):
            await home.accounts.OpenAccount(opening("rate-ann"))
        error = await _refused(home.accounts.OpenAccount(opening("rate-ann")))
        details = details_of(error)
        assert (error.code(), details.reason) == (_CODE.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        assert details.retry_after_ms is not None
        assert details.retry_after_ms > 1000
    async with _home_of(session, "rate-bob") as home:
        await home.accounts.OpenAccount(opening("rate-bob"))


async def test_while_notification_is_deferred_events_wait_and_then_all_arrive(
    mesh: Mesh, policies: Policies
) -> None:
    async with receiving() as receiver:
        await mesh.accounts.OpenAccount(
            accounts_pb2.OpenAccountRequest(
                user_id="wait-shop", currency="USD", kind=accounts_pb2.Account.KIND_MERCHANT
            )
        )
        await mesh.notifications.SetEndpoint(
            notifications_pb2.SetEndpointRequest(
                merchant_id="wait-shop", url=receiver.url + "/hook", secret=b"s" * 32
            )
        )
        await _set(policies, "degradation", "mesh", {"level": 2})
        paid = {(await _paid(mesh, "wait-ann", "wait-shop")).payment_id for _ in range(3)}
        await asyncio.sleep(1.0)
        assert receiver.received == []
        await _set(policies, "degradation", "mesh", {"level": 0})

        async def arrived() -> bool:
            bodies = b"".join(item.body for item in receiver.received)
            return all(payment_id.encode() in bodies for payment_id in paid)

        await _eventually(arrived)


async def test_a_channels_terms_and_its_forced_breaker_are_in_force_in_every_cell(
    policies: Policies, session: Session
) -> None:
    fees = [{"currency": "USD", "tiers": [{"rate_ppm": 20_000}]}]
    text = {"channel": "bank-a", "amounts": {"USD": {}}, "fees": fees}
    error = await _refused(_set(policies, "channels", "bank-a", text | {"fees": []}))
    assert [item.field for item in details_of(error).violations] == ["document.fees"]
    await _set(policies, "channels", "bank-a", text)
    result = cellctl(session, "policy", "force", "channel:bank-a", "open", "--reason", "a test")
    assert result.returncode == 0, result.stderr

    async def forced() -> bool:
        found = [
            (breaker.state, breaker.forced)
            for process, report in (await _reports(policies)).items()
            for breaker in report.breakers
            if breaker.dependency == "channel:bank-a" and not process.endswith("-relay")
        ]
        # Of three cells, the cell and its worker.
        expected = (pb.PolicyReport.Breaker.STATE_OPEN, True)
        return len(found) == 6 and set(found) == {expected}

    await _eventually(forced)
