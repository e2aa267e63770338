"""The console in Chromium: by anybody, on a phone, by keyboard, and as two people work with it.

With CELLPAY_PICTURES=DIR it writes the pictures of docs/pictures.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cellpay.accounts.v1 import accounts_pb2
from cellpay.notifications.v1 import notifications_pb2
from cellpay.payments.v1 import payments_pb2
from playwright.async_api import Browser, Page, async_playwright

from control.cellctl.session import Session
from router.client import Mesh
from tests.integration.test_api import key, ordered, usd
from tests.integration.test_console_risk import waiting_review
from tests.integration.test_reconciliation_cases import desk_of
from tests.integration.visiting import PASSWORD, a_drill_that_ran

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Set it to write the pictures of docs/.
PICTURES = os.environ.get("CELLPAY_PICTURES", "")
_QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
          "--disable-background-networking", "--disable-component-update"]  # fmt: skip
PAGES = ("Operations", "Policies", "Channels", "Reconciliation", "Risk", "Drills", "Audit")
pytestmark = [
    pytest.mark.mesh,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium)"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=_QUIET)
        yield browser
        await browser.close()


async def entered(
    browser: Browser, console: str, name: str, faults: list[str], **options: Any
) -> Page:
    """A page of its own in which `name` has signed in; what its scripts throw is in `faults`."""
    context = await browser.new_context(**options)
    page = await context.new_page()
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: faults.append(str(error)))
    await page.goto(console)
    await page.get_by_label("Name").fill(name)
    await page.get_by_label("Password").fill(PASSWORD)
    # By keyboard alone.
    await page.keyboard.press("Enter")
    await page.get_by_role("article", name="cell a").wait_for()
    return page


async def screen(page: Page, name: str, selector: str = "") -> None:
    if PICTURES:
        if selector:
            await page.locator(selector).first.scroll_into_view_if_needed()
        await page.screenshot(path=Path(PICTURES) / f"console-{name}.png")


async def visit(page: Page, name: str) -> None:
    await page.get_by_role("link", name=name, exact=True).click()
    await page.get_by_role("heading", name=name).first.wait_for()


async def someone(mesh: Mesh, minor_units: int, kind: Any) -> str:
    """Of any slot: names that are counted lie close together."""
    user_id = uuid.uuid4().hex
    await mesh.accounts.OpenAccount(
        accounts_pb2.OpenAccountRequest(user_id=user_id, currency="USD", kind=kind)
    )
    if minor_units:
        deposit = accounts_pb2.DepositRequest(user_id=user_id, amount=usd(minor_units))
        await mesh.accounts.Deposit(deposit)
    return user_id


async def paid(mesh: Mesh) -> str:
    """An order that was paid; its merchant has an endpoint that nobody answers at."""
    payer, shop = await someone(mesh, 5_000, 1), await someone(mesh, 0, 2)
    await mesh.notifications.SetEndpoint(
        notifications_pb2.SetEndpointRequest(
            merchant_id=shop, url="http://127.0.0.1:9/", secret=b"s" * 32, idempotency_key=key()
        )
    )
    order = await ordered(mesh, payer, shop, 1_200)
    await mesh.payments.Pay(payments_pb2.PayRequest(order_id=order.order_id, idempotency_key=key()))
    return order.order_id


@contextlib.asynccontextmanager
async def traffic(mesh: Mesh) -> AsyncIterator[None]:
    """So that there is something to see."""

    async def pay() -> None:
        while True:
            await paid(mesh)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(pay()) for _ in range(4)]
        yield
        for task in tasks:
            task.cancel()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
async def test_a_browser_shows_the_mesh_to_anybody(
    chromium: Browser, console: str, session: Session, mesh: Mesh, scheme: Any, width: int
) -> None:
    a_drill_that_ran(session.data, "console-drill")
    order_id = await paid(mesh)
    faults: list[str] = []
    viewport = {"width": width, "height": 900}
    page = await entered(chromium, console, "ann", faults, color_scheme=scheme, viewport=viewport)
    assert await page.locator("#slots rect").count() == 1024
    # What the map shows is said in words too.
    assert "a has" in await page.locator("#slots-text").inner_text()
    async with traffic(mesh):
        await page.locator("#slots line.flow").nth(9).wait_for(state="attached")
        if PICTURES:
            # A window of figures, and not the first moments of one.
            await page.wait_for_timeout(9_000)
        await screen(page, f"mesh-{scheme}")
    for name in PAGES:
        await visit(page, name)
        # Nothing is wider than the screen: tables scroll by themselves.
        assert await page.evaluate("document.documentElement.scrollWidth") <= width, name
    await _read_a_report(page, scheme)
    await visit(page, "Policies")
    await page.get_by_role("button", name="force open nats").wait_for()
    await screen(page, f"policies-{scheme}", "#breakers")
    await _look_up(page, order_id)
    assert await page.evaluate("document.documentElement.scrollWidth") <= width, "long names"
    await screen(page, f"life-{scheme}")
    assert await _unnamed(page) == 0
    await page.get_by_role("button", name="Sign out").click()
    await page.get_by_role("heading", name="Sign in").wait_for()
    await page.context.close()
    assert not faults


async def _read_a_report(page: Page, scheme: str) -> None:
    await visit(page, "Drills")
    await page.get_by_role("button", name="read the report of console-drill").press("Enter")
    report = page.get_by_role("article", name="Report of a drill")
    await report.get_by_text("redis-a was killed").wait_for()
    # All text goes in as text.
    assert "<each process>" in await report.inner_text()
    # Whoever uses a keyboard or a screen reader is taken there.
    assert await page.evaluate("document.activeElement.id") == "drill-report"
    await screen(page, f"drill-{scheme}")


async def _look_up(page: Page, order_id: str) -> None:
    await page.get_by_role("link", name="Payment", exact=True).click()
    await page.get_by_label("Any ID").fill(order_id)
    await page.get_by_role("button", name="Look up").click()
    await page.get_by_text("Payment of 12.00 USD").wait_for()
    href = await page.locator("#life dl a").first.get_attribute("href")
    assert href is not None
    assert href.startswith("https://traces.example/t/")


async def _unnamed(page: Page) -> int:
    """Things to use that a screen reader would have no name for."""
    found: int = await page.evaluate(
        "[...document.querySelectorAll('button, a, input, select')].filter(e => !("
        "e.textContent.trim() || e.closest('label') || e.getAttribute('aria-label'))).length"
    )
    return found


async def test_two_people_decide_a_case_and_a_viewer_decides_nothing(
    chromium: Browser, console: str, session: Session
) -> None:
    faults: list[str] = []
    async with desk_of(session) as desk:
        case = desk.break_ids[0]
        ann = await entered(chromium, console, "ann", faults)
        await visit(ann, "Reconciliation")
        await ann.get_by_role("button", name=f"propose to post {case}").click()
        await ann.get_by_label("Why?").last.fill("the bank paid twice")
        await ann.keyboard.press("Enter")
        # Whoever proposed does not decide.
        await ann.get_by_text("Somebody else decides.").wait_for()
        await screen(ann, "reconciliation")
        vera = await entered(chromium, console, "vera", faults)
        await visit(vera, "Reconciliation")
        await vera.get_by_text(case).first.wait_for()
        assert await vera.get_by_role("link", name="Risk", exact=True).count() == 0
        assert await vera.locator("#cases button").count() == 0
        await visit(vera, "Policies")
        await vera.locator("#breakers tbody tr").first.wait_for()
        assert await vera.locator("#breakers button, #levels button:visible").count() == 0
        bob = await entered(chromium, console, "bob", faults)
        await visit(bob, "Reconciliation")
        await bob.get_by_role("button", name=f"approve {case}").click()
        await bob.get_by_label("Why?").last.fill("seen")
        await bob.get_by_role("button", name="approve", exact=True).click()
        # It is told where a screen reader hears it.
        await bob.get_by_role("status").get_by_text(f"{case}: approved").wait_for()
        await visit(ann, "Audit")
        await ann.get_by_text("reconcile.approve").first.wait_for()
    for page in (ann, bob, vera):
        await page.context.close()
    assert not faults


async def test_a_review_is_decided_while_its_page_is_drawn_anew(
    chromium: Browser, console: str, mesh: Mesh, session: Session
) -> None:
    faults: list[str] = []
    async with waiting_review(mesh, session) as (request, review_id, _):
        page = await entered(chromium, console, "ann", faults)
        await visit(page, "Risk")
        row = page.get_by_role("row").filter(
            has=page.get_by_role("button", name=f"approve {review_id}")
        )
        await row.get_by_text("what was known").click()
        await row.get_by_text("203.0.113.7").wait_for()
        await screen(page, "risk")
        mine = page.get_by_role("button", name=f"approve {review_id}")
        await mine.focus()
        drawn = await mine.element_handle()
        await page.wait_for_function("drawn => !drawn.isConnected", arg=drawn)
        # Who goes by keyboard is where he was, and what was unfolded is.
        focused = "document.activeElement.getAttribute('aria-label')"
        assert await page.evaluate(focused) == f"approve {review_id}"
        assert await row.get_by_text("203.0.113.7").is_visible()
        await page.keyboard.press("Enter")
        await page.get_by_label("Why?").last.fill("called them")
        await page.keyboard.press("Enter")
        await page.get_by_role("status").get_by_text(f"{review_id}: approved").wait_for()
        await mesh.payments.Pay(request)
        await page.context.close()
    assert not faults
