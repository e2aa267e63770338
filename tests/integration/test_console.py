"""The console: as a browser sees it, as an attacker tries it, and as a provider signs people in."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from cellpay.notifications.v1 import notifications_pb2
from cellpay.payments.v1 import payments_pb2

from control.cellctl.console.app import COOKIE
from control.cellctl.session import Session
from router.client import Mesh
from tests.integration.test_api import key, opened, ordered
from tests.integration.test_control import cellctl
from tests.integration.visiting import Visitor, serving

pytestmark = pytest.mark.mesh
# All that changes something.
ACTS = (
    "/api/operations/op-1/abort",
    "/api/approvals/appr-1/approve",
    "/api/breakers/channel:console-bank/open",
    "/api/degradation/mesh/1",
    "/api/failover/automatic/off",
    "/api/reconciliation/console-bank/2026-11-23",
    "/api/cases/brk_0000000000000000000000000000/adjust",
    "/api/reviews/rvw_0000000000000000000000000000/approve",
)


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    command = [sys.executable, "-m", "tests.integration.provider"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


@pytest.fixture(scope="module")
def provided_console(session: Session, provider: str, tmp_path_factory: Any) -> Iterator[str]:
    """A console whose people the provider signs in."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{probe.getsockname()[1]}"
    path = tmp_path_factory.mktemp("oidc") / "oidc.json"
    settings = {
        "issuer": provider,
        "client_id": "cellpay",
        "client_secret": "s",
        "redirect_url": f"http://{listen}/oidc/callback",
        "identities": {"ann@example.com": "operator"},
    }
    path.write_text(json.dumps(settings))
    with serving(session, "--listen", listen, "--oidc", str(path)) as base:
        yield base


async def test_who_has_not_signed_in_sees_nothing(browser: Visitor) -> None:
    for path in (
        "/api/me", "/api/overview", "/api/events", "/api/audit", "/api/life/x", "/api/policies",
        "/api/channels", "/api/reconciliation", "/api/drills/x/report", "/api/reviews",
        "/api/decisions",
    ):  # fmt: skip
        assert (await browser.get(path))[0] == 401, path
    for path in ACTS:
        assert (await browser.post(path, {"reason": "r"}))[0] == 401, path
    async with browser.client.get(f"{browser.base}/") as answer:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_passwords_are_tried_a_few_times_only(browser: Visitor) -> None:
    for _ in range(5):
        assert await browser.sign_in("nobody", "wrong-wrong-wrong") == 401
    assert await browser.sign_in("nobody", "wrong-wrong-wrong") == 429
    # Others are not held up by it.
    assert await browser.sign_in("ann") == 200
    (cookie,) = [item for item in browser.client.cookie_jar if item.key == COOKIE]
    assert cookie["httponly"]
    assert cookie["samesite"] == "strict"


async def test_a_forged_request_does_nothing(browser: Visitor, session: Session) -> None:
    await browser.sign_in("ann")
    for token in ("", "guess"):
        for path in ACTS:
            status, said = await browser.post(path, {"reason": "r"}, token)
            assert (status, said["reason"]) == (403, "FORGED"), path
    status, said = await browser.post("/api/operations/op-1/abort", {"reason": "r"})
    assert (status, said["reason"]) == (404, "OPERATION_NOT_FOUND")
    assert (await browser.post("/api/operations/op-1/burn", {"reason": "r"}))[0] == 404
    assert (await browser.post("/api/operations/op-1/abort", ["no object"]))[0] == 400
    assert (await browser.post("/api/operations/op-1/abort", {"reason": "r" * 20_000}))[0] == 413


async def test_roles_hold_in_the_console_as_elsewhere(browser: Visitor) -> None:
    await browser.sign_in("vera")
    status, me = await browser.get("/api/me")
    assert (status, me["roles"]) == (200, ["ROLE_VIEWER"])
    assert (await browser.get("/api/overview"))[0] == 200
    for path in ACTS:
        status, said = await browser.post(path, {"reason": "let me"})
        assert status == 403, (path, said)
    await browser.sign_in("ann")
    _, audit = await browser.get("/api/audit")
    denied = [item for item in audit["records"] if item["actor"].endswith("/operator/vera")]
    assert len(denied) >= len(ACTS)
    assert denied[0]["verdict"].startswith("denied")
    assert (await browser.get("/api/audit/verify"))[1]["ok"]


async def test_a_payments_life_is_found_by_any_of_its_ids(
    browser: Visitor, mesh: Mesh, session: Session
) -> None:
    shop = await opened(mesh, kind=2)
    await mesh.notifications.SetEndpoint(
        notifications_pb2.SetEndpointRequest(
            merchant_id=shop, url="http://127.0.0.1:9/", secret=b"s" * 32, idempotency_key=key()
        )
    )
    payer = await opened(mesh, 5_000)
    order = await ordered(mesh, payer, shop, 1_200)
    payment = await mesh.payments.Pay(
        payments_pb2.PayRequest(order_id=order.order_id, idempotency_key=key())
    )
    refund = await mesh.payments.RefundPayment(
        payments_pb2.RefundPaymentRequest(payment_id=payment.payment_id, idempotency_key=key())
    )
    await browser.sign_in("vera")
    for identifier in (order.order_id, payment.payment_id, refund.refund_id):
        status, life = await browser.get(f"/api/life/{identifier}")
        assert status == 200, life
        found = [step["what"] for step in life["steps"]]
        assert {"order", "payment", "refund", "event"} <= set(found)
        # Two entries of the payment, two of the refund.
        assert found.count("entry") == 4
        assert sum(
            step["detail"]["amount"] for step in life["steps"] if step["what"] == "entry"
        ) == 0  # fmt: skip
        # The payment's and the refund's, where whoever keeps traces shows them.
        assert [trace["url"] for trace in life["traces"]] == [
            f"https://traces.example/t/{trace['trace_id']}?x=1" for trace in life["traces"]
        ]
        assert len(life["traces"]) == 2
        owners = {home["epoch"]: home["owner"] for home in life["homes"]}
        entry = next(step for step in life["steps"] if step["what"] == "entry")
        assert owners[entry["detail"]["epoch"]] in {"a", "b", "c"}
    event = next(step for step in life["steps"] if step["what"] == "event")
    status, by_event = await browser.get(f"/api/life/{event['detail']['id']}")
    assert status == 200
    assert {step["what"] for step in by_event["steps"]} >= {"order", "payment", "entry"}


@pytest.mark.parametrize(
    ("identifier", "status"),
    [
        ("pay_0000000000000000000000000000", 404),
        ("nonsense", 400),
        ("pay_' OR 1=1 --", 400),
        ("brn_0000000000000000000000000000", 404),
        ("evt_0000000000000000000000000000", 404),
    ],
)
async def test_an_id_of_nothing_is_said_to_be_that(
    browser: Visitor, identifier: str, status: int
) -> None:
    await browser.sign_in("vera")
    assert (await browser.get(f"/api/life/{identifier}"))[0] == status


async def test_what_changes_is_pushed(browser: Visitor, session: Session) -> None:
    await browser.sign_in("ann")
    async with browser.client.get(f"{browser.base}/api/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        async with asyncio.timeout(30):
            assert (await answer.content.readline()) == b"event: overview\n"
            assert b'"slots": ' in await answer.content.readuntil(b"\n\n")


async def _sign_in_at(provider: str, console: str, lie: str) -> tuple[int, Any]:
    """What the browser ends with: the status of the way back, and who it is then."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as client:
        async with client.get(f"{provider}/lie", params={"about": lie}) as answer:
            assert answer.status == 200
        async with client.get(f"{console}/oidc") as answer:
            status = answer.status
        return status, (await Visitor(client, console).get("/api/me"))[1]


async def test_a_provider_signs_people_in(provider: str, provided_console: str) -> None:
    status, me = await _sign_in_at(provider, provided_console, "")
    assert (status, me["name"]) == (200, "ann@example.com")
    assert "ROLE_OPERATOR" in me["roles"]


@pytest.mark.parametrize(
    ("lie", "expected"),
    [
        ("issuer", 502),
        ("audience", 401),
        ("expiry", 401),
        ("nonce", 401),
        ("key", 401),
        ("none", 401),
        ("person", 401),
        ("verified", 401),
    ],
)
async def test_a_provider_that_lies_signs_nobody_in(
    provider: str, provided_console: str, lie: str, expected: int
) -> None:
    status, me = await _sign_in_at(provider, provided_console, lie)
    assert (status, me["reason"]) == (expected, "SIGNED_OUT")


async def test_a_way_back_that_was_not_begun_here_leads_nowhere(provided_console: str) -> None:
    async with aiohttp.ClientSession() as client:
        url = f"{provided_console}/oidc/callback?code=stolen&state=guessed"
        async with client.get(url) as answer:
            assert answer.status == 400


def test_a_terminal_shows_the_same(session: Session) -> None:
    done = cellctl(session, "watch", "--looks", "2", "--interval-s", "0.1")
    assert done.returncode == 0, done.stderr
    for cell in ("a", "b", "c"):
        assert f"region-{cell}" in done.stdout
    assert "requests/s" in done.stdout
    # 1,024 slots, sixteen a letter.
    assert any(len(line.strip()) == 64 for line in done.stdout.splitlines())
