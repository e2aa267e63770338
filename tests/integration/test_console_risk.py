"""Reviews and decisions of risk in the console: who sees them, who decides, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from cellpay.control.v1 import policies_pb2
from cellpay.payments.v1 import payments_pb2

from control.cellctl.session import Session
from router.client import Mesh
from router.errors import Refusal, details_of
from tests.integration.test_api import opened, ordered
from tests.integration.test_risk_path import pay_request
from tests.integration.visiting import Visitor

pytestmark = pytest.mark.mesh
# A device of this test: the mesh is shared.
DEVICE = "console-new"
RULES = {
    "rules": [
        {"name": "console-review", "when": f'device.id == "{DEVICE}"', "action": "review",
         "reason": "LOOKED_AT"},
    ]
}  # fmt: skip


async def _under_review(mesh: Mesh, payer: str, shop: str) -> tuple[payments_pb2.PayRequest, str]:
    """The request, and the review's ID: once its cell knows the rules."""
    async with asyncio.timeout(60):
        while True:
            order = await ordered(mesh, payer, shop, 30)
            request = pay_request(order.order_id, DEVICE)
            try:
                await mesh.payments.Pay(request)
            except (grpc.aio.AioRpcError, Refusal) as error:
                told = error if isinstance(error, Refusal) else details_of(error)
                if told.reason == "UNDER_REVIEW":
                    return request, told.metadata["review_id"]
                assert told.reason == "RISK_UNAVAILABLE", told


@contextlib.asynccontextmanager
async def waiting_review(
    mesh: Mesh, session: Session
) -> AsyncIterator[tuple[payments_pb2.PayRequest, str, str]]:
    """A request that waits for a person, its review, and whose it is. The rules go at the end."""
    payer, shop = await opened(mesh, 1_000_000), await opened(mesh, kind=2)
    policy: dict[str, Any] = {"kind": "risk-rules", "name": "console", "reason": "a test"}
    async with session.policies() as policies:
        setting = policies_pb2.SetPolicyRequest(document=json.dumps(RULES), **policy)
        await policies.SetPolicy(setting, timeout=60)
        try:
            yield *await _under_review(mesh, payer, shop), payer
        finally:
            await policies.DeletePolicy(policies_pb2.DeletePolicyRequest(**policy), timeout=60)


async def test_a_review_is_decided_in_the_console_and_is_part_of_the_payments_life(
    browser: Visitor, mesh: Mesh, session: Session
) -> None:
    async with waiting_review(mesh, session) as (request, review_id, payer):
        await _looked_at(browser, payer, review_id)
        path = f"/api/reviews/{review_id}/approve"
        status, done = await browser.post(path, {"reason": "called them"})
        assert (status, done["state"], done["note"]) == (200, "passed", "called them")
        payment = await mesh.payments.Pay(request)
    records = (await browser.get("/api/audit"))[1]["records"]
    assert "review.approve" in {item["action"] for item in records[:5]}
    await browser.sign_in("vera")
    for identifier in (payment.payment_id, request.order_id, review_id):
        status, life = await browser.get(f"/api/life/{identifier}")
        assert status == 200
        (review,) = [step["detail"] for step in life["steps"] if step["what"] == "review"]
        assert (review["state"], review["case_id"]) == ("used", review_id)
        actions = {step["detail"]["action"] for step in life["steps"] if step["what"] == "decision"}
        assert "review" in actions
        # Of the person's device and address a viewer hears nothing.
        assert DEVICE not in json.dumps(life)
        assert "203.0.113.7" not in json.dumps(life)


async def _looked_at(browser: Visitor, payer: str, review_id: str) -> None:
    await browser.sign_in("vera")
    for path in ("/api/reviews", f"/api/decisions?user_id={payer}"):
        assert (await browser.get(path))[0] == 403, path
    await browser.sign_in("ann")
    found = (await browser.get(f"/api/reviews?user_id={payer}"))[1]
    (mine,) = [item for item in found["reviews"] if item["review_id"] == review_id]
    assert (mine["shown"], mine["reasons"]) == ("0.30 USD", ["LOOKED_AT"])
    assert mine["rules"] == ["console-review"]
    assert json.loads(mine["facts"])["device.id"] == DEVICE
    decisions = (await browser.get(f"/api/decisions?user_id={payer}"))[1]["decisions"]
    assert decisions[0]["action"] == "review"
    assert decisions[0]["shown"] == "0.30 USD"
