"""The console's pages as their data: flow, channels, breakers, reconciliation, reports, acts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping

import pytest
from cellpay.payments.v1 import payments_pb2

from control.cellctl.console.accounts import add_account
from control.cellctl.session import Session
from control.mesh import ca
from router.client import Mesh
from router.identity import spiffe_id
from tests.chaos.outside import reached
from tests.integration.test_api import key, opened, ordered
from tests.integration.test_charges_api import carded, charge_of
from tests.integration.test_control import cellctl
from tests.integration.test_reconciliation_cases import CHANNEL, DAY, desk_of
from tests.integration.visiting import PASSWORD, Visitor, a_drill_that_ran

pytestmark = pytest.mark.mesh
# A bank that is not there: what is done to its breaker troubles no other test.
NOBODYS = "channel:console-bank"
_WAIT_S = 60


async def _paid(mesh: Mesh) -> None:
    payer, shop = await opened(mesh, 5_000), await opened(mesh, kind=2)
    order = await ordered(mesh, payer, shop, 1_200)
    await mesh.payments.Pay(payments_pb2.PayRequest(order_id=order.order_id, idempotency_key=key()))


async def test_flow_is_told_by_cell_and_by_range_of_slots(browser: Visitor, mesh: Mesh) -> None:
    await browser.sign_in("vera")
    async with asyncio.timeout(_WAIT_S):
        while True:
            await _paid(mesh)
            flow = (await browser.get("/api/overview"))[1]["flow"]
            busy = [item for item in flow["cells"] if item["payments_per_s"]]
            if busy and any(item["requests_per_s"] for item in flow["ranges"]):
                break
    assert {item["cell"] for item in flow["cells"]} == {"a", "b", "c"}
    assert all(item["success_percent"] == 100 and item["p99_ms"] > 0 for item in busy)
    for item in flow["ranges"]:
        first, last = map(int, item["slots"].split("-"))
        assert last - first == 63
        assert bool(item["cells"]) == bool(item["requests_per_s"])


async def test_who_has_no_role_sees_nothing(browser: Visitor, session: Session) -> None:
    # A certificate of the mesh, of a kind that has no role at its control plane.
    ca.issue(session.data / "tls", "nora", spiffe_id("merchant", "nora"))
    add_account(session.data, "nora", "nora", PASSWORD)
    assert await browser.sign_in("nora") == 200
    assert (await browser.get("/api/me"))[1]["roles"] == []
    overview = (await browser.get("/api/overview"))[1]
    for part, found in overview.items():
        assert found["error"].startswith("PERMISSION_DENIED"), part
    for path in (
        "policies", "channels", "reconciliation", "life/x", "audit", "drills/x/report", "reviews",
        "decisions",
    ):  # fmt: skip
        assert (await browser.get(f"/api/{path}"))[0] == 403, path


async def test_a_channels_health_is_what_its_bank_answered(
    browser: Visitor, mesh: Mesh, bank_ports: Mapping[str, Mapping[str, int]]
) -> None:
    async with reached(bank_ports) as banks:
        for bank in banks.values():
            await bank.behave()
        await browser.sign_in("vera")
        await browser.get("/api/channels")
        user = await opened(mesh)
        charge = await mesh.charges.CreateCharge(charge_of(user, await carded(mesh, user), 500))
    life = (await browser.get(f"/api/life/{charge.charge_id}"))[1]
    (attempt,) = [step["detail"] for step in life["steps"] if step["what"] == "attempt"]
    assert {step["what"] for step in life["steps"]} == {"charge", "attempt", "entry", "event"}
    by_attempt = (await browser.get(f"/api/life/{attempt['attempt_id']}"))[1]
    assert [step["what"] for step in by_attempt["steps"]] == [
        step["what"] for step in life["steps"]
    ]
    async with asyncio.timeout(_WAIT_S):
        while True:
            found = (await browser.get("/api/channels"))[1]["channels"]
            of_it = [item for item in found if item["channel"] == attempt["channel"]]
            answers = of_it[0]["answers"] if of_it else None
            if answers and answers["verdicts_since_start"].get("approved"):
                break
            await asyncio.sleep(0.5)
    (channel,) = of_it
    assert channel["breaker"] is None or channel["breaker"]["cells"]
    assert channel["health"] in {"sound", "quiet", "failing"}


async def test_a_breaker_is_forced_and_let_go_by_who_may(browser: Visitor) -> None:
    await browser.sign_in("ann")
    path = f"/api/breakers/{NOBODYS}"
    status, done = await browser.post(f"{path}/open", {"reason": "their window", "cell": "a"})
    assert (status, done["name"]) == (200, "channel-console-bank-a")
    found = (await browser.get("/api/policies"))[1]
    assert {"nats", "redis", "webhooks"} <= {row["dependency"] for row in found["breakers"]}
    (row,) = [row for row in found["breakers"] if row["dependency"] == NOBODYS]
    (forced,) = row["forced_by"]
    assert (forced["force"], forced["cells"], forced["reason"]) == ("open", ["a"], "their window")
    (policy,) = [item for item in found["policies"] if item["name"] == done["name"]]
    assert policy["document"]["force"] == "open"
    assert policy["applied_by"] or policy["not_yet_by"]
    channels = (await browser.get("/api/channels"))[1]["channels"]
    assert NOBODYS.removeprefix("channel:") in {item["channel"] for item in channels}
    status, _ = await browser.post(f"{path}/auto", {"reason": "over", "cell": "a"})
    assert status == 200
    found = (await browser.get("/api/policies"))[1]
    assert not [row for row in found["breakers"] if row["forced_by"]]
    records = (await browser.get("/api/audit"))[1]["records"]
    assert [item["reason"] for item in records[:2]] == ["over", "their window"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/breakers/redis/melt", 404),
        ("/api/breakers/moon/open", 400),
        ("/api/degradation/moon/1", 400),
        ("/api/degradation/mesh/4", 404),
        ("/api/failover/manual/on", 404),
        ("/api/cases/brk_0000000000000000000000000000/burn", 404),
        ("/api/cases/brk_0000000000000000000000000000/adjust", 404),
        ("/api/reconciliation/console-bank/2026-13-01", 400),
        ("/api/approvals/appr-none/carry-out", 404),
        ("/api/reviews/nonsense/approve", 400),
        ("/api/reviews/rvw_0000000000000000000000000000/approve", 404),
        ("/api/reviews/rvw_0000000000000000000000000000/ponder", 404),
    ],
)
async def test_what_cannot_be_done_is_said_to_be_that(
    browser: Visitor, path: str, status: int
) -> None:
    await browser.sign_in("ann")
    got, said = await browser.post(path, {"reason": "a test"})
    assert got == status, said
    there, _ = await browser.post("/api/breakers/redis/open", {"reason": "x", "cell": "moon"})
    assert there == 400


async def test_a_level_is_set_and_taken_back(browser: Visitor) -> None:
    await browser.sign_in("ann")
    for level in (0, 0):
        status, done = await browser.post(f"/api/degradation/b/{level}", {"reason": "a test"})
        assert (status, done["name"]) == (200, "cell-b")
    assert json.loads(done["document"])["cells"] == ["b"]


async def test_a_case_takes_two_people_in_the_console_too(
    browser: Visitor, second_person: Visitor, session: Session
) -> None:
    await browser.sign_in("ann")
    async with desk_of(session) as desk:
        name = desk.break_ids[0]
        status, run = await browser.post(f"/api/reconciliation/{CHANNEL}/{DAY}", {"reason": "r"})
        assert (status, run["state"]) == (200, "waiting")
        found = (await browser.get("/api/reconciliation?state=case"))[1]
        assert {item["break_id"] for item in found["breaks"]} == set(desk.break_ids)
        assert [item["of_break"]["shown"] for item in found["cases"]] == [
            {1250: "12.50 CNY", -300: "-3.00 CNY", 0: "0.00 CNY"}[
                int(item["of_break"]["amount"]["minor_units"])
            ]
            for item in found["cases"]
        ]
        assert (CHANNEL, DAY) in {(it["channel"], it["clearing_date"]) for it in found["runs"]}
        status, made = await browser.post(f"/api/cases/{name}/adjust", {"reason": "paid twice"})
        assert (status, made["state"], made["proposal"]) == (200, "proposed", "adjust")
        status, own = await browser.post(f"/api/cases/{name}/approve", {"reason": "me again"})
        assert (status, own["reason"]) == (409, "CASE_IS_YOUR_OWN")
        status, done = await second_person.post(f"/api/cases/{name}/approve", {"reason": "seen"})
        assert (status, done["state"], done["of_break"]["state"]) == (200, "approved", "adjusting")
    records = (await browser.get("/api/audit"))[1]["records"]
    assert "reconcile.approve" in {item["action"] for item in records[:3]}


async def test_what_a_second_person_approved_is_carried_out_by_who_asked(
    browser: Visitor, second_person: Visitor, session: Session
) -> None:
    await browser.sign_in("ann")
    turn = ("approvals", "policy", "--reason", "a test")
    assert cellctl(session, *turn, "--on").returncode == 0
    try:
        path = f"/api/breakers/{NOBODYS}/closed"
        status, said = await browser.post(path, {"reason": "surely"})
        assert (status, said["reason"]) == (409, "APPROVAL_REQUIRED")
        approval = f"/api/approvals/{said['metadata']['approval_id']}"
        early = await browser.post(f"{approval}/carry-out", {"reason": ""})
        assert early[0] == 409
        status, done = await second_person.post(f"{approval}/approve", {"reason": "seen"})
        assert (status, done["state"]) == (200, "STATE_APPROVED")
        status, _ = await second_person.post(f"{approval}/carry-out", {"reason": ""})
        assert status in {403, 409}, "it is good for who asked only"
        status, used = await browser.post(f"{approval}/carry-out", {"reason": ""})
        assert (status, used["state"]) == (200, "STATE_USED")
    finally:
        assert cellctl(session, *turn, "--off", "--break-glass").returncode == 0
    rows = (await browser.get("/api/policies"))[1]["breakers"]
    assert [row["forced_by"][0]["force"] for row in rows if row["dependency"] == NOBODYS] == [
        "closed"
    ]
    await browser.post(f"/api/breakers/{NOBODYS}/auto", {"reason": "over"})


async def test_a_drills_report_is_read_in_the_page(browser: Visitor, session: Session) -> None:
    a_drill_that_ran(session.data, "console-drill")
    await browser.sign_in("vera")
    status, found = await browser.get("/api/drills/console-drill/report")
    assert (status, found["run"]) == (200, 1)
    assert found["report"]["verdict"] == "held"
    assert [item["phase"] for item in found["report"]["checks"]] == ["before", "during", "after"]
    assert (await browser.get("/api/drills/never/report"))[0] == 404
