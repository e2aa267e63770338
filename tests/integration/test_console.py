"""The console: as a browser sees it, as an attacker tries it, and as a provider signs people in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from cellpay.notifications.v1 import notifications_pb2
from cellpay.payments.v1 import payments_pb2
from playwright.async_api import Page, async_playwright

from control.cellctl.console.accounts import add_account
from control.cellctl.console.app import COOKIE, TOKEN_HEADER
from control.cellctl.session import Session
from router.client import Mesh
from tests.integration.test_api import key, opened, ordered
from tests.integration.test_control import cellctl

pytestmark = pytest.mark.mesh
PASSWORD = "correct-horse-battery"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Set it to write the pictures of docs/.
PICTURES = os.environ.get("CELLPAY_PICTURES", "")
_QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
          "--disable-background-networking", "--disable-component-update"]  # fmt: skip


@contextlib.contextmanager
def _console(session: Session, *options: str) -> Iterator[str]:
    command = [
        sys.executable, "-m", "control.cellctl.main", "console", "--data", str(session.data),
        "--parent", str(os.getpid()), *options,
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("console: http://127.0.0.1:"), line
        yield line.split()[1].rstrip("/")
        process.terminate()


@pytest.fixture(scope="module")
def console(session: Session) -> Iterator[str]:
    """The console's address; ann may do all, vera may only look."""
    done = cellctl(session, "identity", "issue", "vera", "--role", "viewer")
    assert done.returncode == 0, done.stderr
    add_account(session.data, "ann", "operator", PASSWORD)
    add_account(session.data, "vera", "vera", PASSWORD)
    with _console(
        session, "--listen", "127.0.0.1:0", "--trace-url", "https://traces.example/t/{trace_id}?x=1"
    ) as base:
        yield base


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
    with _console(session, "--listen", listen, "--oidc", str(path)) as base:
        yield base


@dataclass
class Browser:
    """A signed-in client without a screen."""

    client: aiohttp.ClientSession
    base: str
    token: str = ""

    async def sign_in(self, name: str, password: str = PASSWORD) -> int:
        form = {"name": name, "password": password}
        async with self.client.post(f"{self.base}/signin", data=form) as answer:
            status = answer.status
        if status == 200:
            self.token = (await self.get("/api/me"))[1]["token"]
        return status

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.client.get(self.base + path) as answer:
            return answer.status, await answer.json()

    async def post(self, path: str, body: Any, token: str | None = None) -> tuple[int, Any]:
        headers = {TOKEN_HEADER: self.token if token is None else token}
        async with self.client.post(self.base + path, json=body, headers=headers) as answer:
            return answer.status, await answer.json()


@pytest_asyncio.fixture
async def browser(console: str) -> AsyncIterator[Browser]:
    # The console's address is an IP address, whose cookies aiohttp keeps only when told to.
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as client:
        yield Browser(client, console)


async def test_who_has_not_signed_in_sees_nothing(browser: Browser) -> None:
    for path in ("/api/me", "/api/overview", "/api/events", "/api/audit", "/api/life/x"):
        assert (await browser.get(path))[0] == 401, path
    for path in ("/api/operations/op/abort", "/api/approvals/appr/approve"):
        assert (await browser.post(path, {"reason": "r"}))[0] == 401, path
    async with browser.client.get(f"{browser.base}/") as answer:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_passwords_are_tried_a_few_times_only(browser: Browser) -> None:
    for _ in range(5):
        assert await browser.sign_in("nobody", "wrong-wrong-wrong") == 401
    assert await browser.sign_in("nobody", "wrong-wrong-wrong") == 429
    # Others are not held up by it.
    assert await browser.sign_in("ann") == 200
    (cookie,) = [item for item in browser.client.cookie_jar if item.key == COOKIE]
    assert cookie["httponly"]
    assert cookie["samesite"] == "strict"


async def test_a_forged_request_does_nothing(browser: Browser, session: Session) -> None:
    await browser.sign_in("ann")
    for token in ("", "guess"):
        status, said = await browser.post("/api/operations/op-1/abort", {"reason": "r"}, token)
        assert (status, said["reason"]) == (403, "FORGED")
    status, said = await browser.post("/api/operations/op-1/abort", {"reason": "r"})
    assert (status, said["reason"]) == (404, "OPERATION_NOT_FOUND")
    assert (await browser.post("/api/operations/op-1/burn", {"reason": "r"}))[0] == 404
    assert (await browser.post("/api/operations/op-1/abort", ["no object"]))[0] == 400
    assert (await browser.post("/api/operations/op-1/abort", {"reason": "r" * 20_000}))[0] == 413


async def test_roles_hold_in_the_console_as_elsewhere(browser: Browser) -> None:
    await browser.sign_in("vera")
    status, me = await browser.get("/api/me")
    assert (status, me["roles"]) == (200, ["ROLE_VIEWER"])
    assert (await browser.get("/api/overview"))[0] == 200
    status, said = await browser.post("/api/operations/op-1/abort", {"reason": "let me"})
    assert status == 403, said
    await browser.sign_in("ann")
    _, audit = await browser.get("/api/audit")
    denied = [item for item in audit["records"] if item["actor"].endswith("/operator/vera")]
    assert denied[0]["verdict"].startswith("denied")
    assert (await browser.get("/api/audit/verify"))[1]["ok"]


async def test_a_payments_life_is_found_by_any_of_its_ids(
    browser: Browser, mesh: Mesh, session: Session
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
    browser: Browser, identifier: str, status: int
) -> None:
    await browser.sign_in("vera")
    assert (await browser.get(f"/api/life/{identifier}"))[0] == status


async def test_what_changes_is_pushed(browser: Browser, session: Session) -> None:
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
        return status, (await Browser(client, console).get("/api/me"))[1]


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


async def _screen(page: Page, name: str) -> None:
    if PICTURES:
        await page.screenshot(path=Path(PICTURES) / f"console-{name}.png")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
async def test_a_browser_shows_the_mesh_to_anybody(
    console: str, mesh: Mesh, scheme: Any, width: int
) -> None:
    payer, shop = await opened(mesh, 5_000), await opened(mesh, kind=2)
    order = await ordered(mesh, payer, shop, 1_200)
    await mesh.payments.Pay(payments_pb2.PayRequest(order_id=order.order_id, idempotency_key=key()))
    faults: list[str] = []
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=_QUIET)
        context = await chromium.new_context(
            color_scheme=scheme, viewport={"width": width, "height": 900}
        )
        page = await context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        await page.goto(console)
        await page.get_by_label("Name").fill("ann")
        await page.get_by_label("Password").fill(PASSWORD)
        # By keyboard alone.
        await page.keyboard.press("Enter")
        await page.get_by_role("article", name="cell a").wait_for()
        assert await page.locator("#slots rect").count() == 1024
        # What the map shows is said in words too.
        assert "a has" in await page.locator("#slots-text").inner_text()
        await _screen(page, f"mesh-{scheme}")
        for name in ("Operations", "Policies", "Drills", "Audit"):
            await page.get_by_role("link", name=name, exact=True).click()
            await page.get_by_role("heading", name=name).first.wait_for()
            # Nothing is wider than the screen: tables scroll by themselves.
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
        await page.get_by_role("link", name="Payment", exact=True).click()
        await page.get_by_label("Any ID").fill(order.order_id)
        await page.get_by_role("button", name="Look up").click()
        await page.get_by_text("Payment of 1200 USD").wait_for()
        await _screen(page, f"life-{scheme}")
        unnamed = await page.evaluate(
            "[...document.querySelectorAll('button, a, input')].filter(e => !(e.textContent.trim()"
            " || e.closest('label') || e.getAttribute('aria-label'))).length"
        )
        assert unnamed == 0
        await page.get_by_role("button", name="Sign out").click()
        await page.get_by_role("heading", name="Sign in").wait_for()
        await chromium.close()
    assert not faults


def test_a_terminal_shows_the_same(session: Session) -> None:
    done = cellctl(session, "watch", "--looks", "2", "--interval-s", "0.1")
    assert done.returncode == 0, done.stderr
    for cell in ("a", "b", "c"):
        assert f"region-{cell}" in done.stdout
    # 1,024 slots, sixteen a letter.
    assert any(len(line.strip()) == 64 for line in done.stdout.splitlines())
