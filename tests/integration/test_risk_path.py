"""The engine in the path, in a real mesh: what operators write is what payments meet, within a
second; a challenge is answered, a review decided, and money moves once or not at all."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, urlparse

import grpc
import pytest
import pytest_asyncio
from cellpay.accounts.v1 import accounts_pb2
from cellpay.control.v1 import control_pb2, policies_pb2, reviews_pb2
from cellpay.payments.v1 import payments_pb2
from cellpay.payouts.v1 import payouts_pb2
from cellpay.risk.v1 import risk_pb2
from cellpay.transfers.v1 import transfers_pb2
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from control.cellctl.session import Session
from control.cellctl.verify import verify_mesh
from router.client import BulkPayer, Mesh
from router.errors import Refusal
from router.slots import slot_of_user
from tests.integration.test_api import (
    NOT_FOUND,
    PRECONDITION,
    available,
    opened,
    ordered,
    refused,
    usd,
)
from tests.integration.test_charges_api import carded, charge_of

pytestmark = pytest.mark.mesh
DENIED = grpc.StatusCode.PERMISSION_DENIED
# Devices of these tests: the mesh is shared, and its other users are none of ours.
BAD, ODD, NEW, FAST = "path-bad", "path-odd", "path-new", "path-fast"
RULES = {
    "rules": [
        {"name": "path-deny", "when": f'device.id == "{BAD}"', "action": "deny",
         "reason": "DEVICE_BLOCKED"},
        {"name": "path-challenge", "when": f'device.id == "{ODD}" && !challenge.passed',
         "action": "challenge", "reason": "PROOF_NEEDED"},
        {"name": "path-review", "when": f'device.id == "{NEW}" && amount > 10', "action": "review",
         "reason": "LOOKED_AT"},
        {"name": "path-velocity", "when": "f.path_paid >= 3", "action": "deny",
         "reason": "TOO_FAST"},
        {"name": "path-shadow", "when": f'device.id == "{NEW}"', "action": "deny",
         "reason": "LATER", "mode": "shadow"},
    ]
}  # fmt: skip
FEATURES = {
    "features": [
        {"name": "path_paid", "by": "device", "aggregate": "count", "window_s": 3600,
         "operations": ["pay"], "actions": ["allow"]},
    ]
}  # fmt: skip


def context(device: str) -> risk_pb2.RiskContext:
    return risk_pb2.RiskContext(device_id=device, ip_address="203.0.113.7", ip_country="DE")


def pay_request(order_id: str, device: str) -> payments_pb2.PayRequest:
    return payments_pb2.PayRequest(
        order_id=order_id, idempotency_key=str(uuid.uuid4()), risk_context=context(device)
    )


async def until(true: Callable[[], Awaitable[bool]], within_s: float = 30.0) -> float:
    """How long it took to become so."""
    began = time.monotonic()
    while not await true():
        assert time.monotonic() - began < within_s
        await asyncio.sleep(0.02)
    return time.monotonic() - began


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def policed(session: Session) -> AsyncIterator[None]:
    """Documents in force in every process; none is left behind."""
    documents = (("risk-features", FEATURES), ("risk-rules", RULES))
    async with session.policies() as stub:
        for kind, document in documents:
            request = policies_pb2.SetPolicyRequest(
                kind=kind, name="path", document=json.dumps(document), reason="a test"
            )
            await stub.SetPolicy(request, timeout=60)
        yield
        for kind, _ in reversed(documents):
            deletion = policies_pb2.DeletePolicyRequest(kind=kind, name="path", reason="a test")
            await stub.DeletePolicy(deletion, timeout=60)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shop(mesh: Mesh, policed: None) -> str:
    """A merchant, once every process of every cell denies: users of all slots are tried."""
    shop = await opened(mesh, kind=2)
    payers = await asyncio.gather(*(opened(mesh, 100) for _ in range(24)))

    async def all_deny() -> bool:
        tried = await asyncio.gather(
            *(withdrawn(mesh, payer, BAD) for payer in payers), return_exceptions=True
        )
        return all(isinstance(item, grpc.aio.AioRpcError) for item in tried)

    await until(all_deny)
    return shop


async def withdrawn(mesh: Mesh, user: str, device: str, minor_units: int = 1) -> Any:
    request = accounts_pb2.WithdrawRequest(
        user_id=user, amount=usd(minor_units), risk_context=context(device)
    )
    return await mesh.accounts.Withdraw(request)


class App:
    """An authenticator app: each code once, as its user would wait for the next."""

    def __init__(self, uri: str) -> None:
        said = parse_qs(urlparse(uri).query)
        secret = base64.b32decode(said["secret"][0])
        self._totp = TOTP(secret, int(said["digits"][0]), SHA1(), int(said["period"][0]))
        self._step = 0

    def code(self) -> str:
        self._step = max(self._step + 1, int(time.time()) // 30)
        return self._totp.generate(self._step * 30).decode()


async def enrolled(mesh: Mesh, user: str) -> App:
    enrolling = await mesh.risk.EnrollFactor(risk_pb2.EnrollFactorRequest(user_id=user))
    app = App(enrolling.otpauth_uri)
    confirming = risk_pb2.ConfirmFactorRequest(user_id=user, code=app.code())
    confirmed = await mesh.risk.ConfirmFactor(confirming)
    # A repeat finds it confirmed.
    assert await mesh.risk.ConfirmFactor(confirming) == confirmed
    return app


async def test_a_denied_payment_moves_nothing_and_says_no_rule(mesh: Mesh, shop: str) -> None:
    payer = await opened(mesh, 100)
    order = await ordered(mesh, payer, shop, 30)
    request = pay_request(order.order_id, BAD)
    metadata = await refused(mesh.payments.Pay(request), DENIED, "RISK_DENIED")
    assert metadata["reasons"] == "DEVICE_BLOCKED"
    assert "path-deny" not in str(metadata)
    assert await available(mesh, payer) == 100
    listed = await mesh.risk.ListDecisions(risk_pb2.ListDecisionsRequest(user_id=payer))
    (decision,) = listed.decisions
    assert decision.decision_id == metadata["decision_id"]
    assert (decision.operation, decision.action) == (
        risk_pb2.OPERATION_PAY, risk_pb2.Decision.ACTION_DENY,
    )  # fmt: skip
    assert (decision.subject_id, decision.payee_id, decision.amount) == (
        order.order_id, shop, usd(30),
    )  # fmt: skip
    # The same request from a device that nobody minds: a refusal is not remembered.
    request.risk_context.device_id = "path-good"
    payment = await mesh.payments.Pay(request)
    # What was executed is answered, whoever asks again.
    request.risk_context.device_id = BAD
    assert await mesh.payments.Pay(request) == payment
    assert await available(mesh, payer) == 70


async def test_every_way_out_is_screened(mesh: Mesh, shop: str) -> None:
    user, other = await opened(mesh, 1000), await opened(mesh)
    card = await carded(mesh, user)
    transfer = transfers_pb2.CreateTransferRequest(
        payer_id=user, payee_id=other, amount=usd(5), risk_context=context(BAD)
    )
    charge = charge_of(user, card, 5, risk_context=context(BAD))
    payout = payouts_pb2.CreatePayoutRequest(
        user_id=user, instrument_id=card, amount=usd(5), risk_context=context(BAD)
    )
    for call in (
        withdrawn(mesh, user, BAD),
        mesh.transfers.CreateTransfer(transfer),
        mesh.charges.CreateCharge(charge),
        mesh.payouts.CreatePayout(payout),
    ):
        await refused(call, DENIED, "RISK_DENIED")
    assert await available(mesh, user) == 1000
    listed = await mesh.risk.ListDecisions(risk_pb2.ListDecisionsRequest(user_id=user))
    assert {item.operation for item in listed.decisions} == {2, 3, 4, 5}
    transfer.risk_context.device_id = "path-good"
    await mesh.transfers.CreateTransfer(transfer)
    assert await available(mesh, other) == 5


async def test_in_bulk_each_is_judged_for_itself(mesh: Mesh, shop: str) -> None:
    payers = await asyncio.gather(*(opened(mesh, 100) for _ in range(6)))
    orders = [await ordered(mesh, payer, shop, 10) for payer in payers]
    devices = ["path-good", BAD] * 3
    requests = [
        pay_request(order.order_id, device) for order, device in zip(orders, devices, strict=True)
    ]
    results = await BulkPayer(mesh).pay(requests)
    reasons = [item.reason if isinstance(item, Refusal) else "" for item in results]
    assert reasons == ["", "RISK_DENIED"] * 3
    assert [await available(mesh, payer) for payer in payers] == [90, 100] * 3


async def test_a_challenge_is_answered_and_passes_one_request(mesh: Mesh, shop: str) -> None:
    payer = await opened(mesh, 1000)
    app = await enrolled(mesh, payer)
    first, second = [await ordered(mesh, payer, shop, 100) for _ in range(2)]
    request = pay_request(first.order_id, ODD)
    metadata = await refused(mesh.payments.Pay(request), PRECONDITION, "CHALLENGE_REQUIRED")
    challenge_id = metadata["challenge_id"]
    # The same request is the same challenge.
    assert (await refused(mesh.payments.Pay(request), PRECONDITION, "CHALLENGE_REQUIRED"))[
        "challenge_id"
    ] == challenge_id
    wrong = risk_pb2.AnswerChallengeRequest(challenge_id=challenge_id, code="000000")
    left = await refused(mesh.risk.AnswerChallenge(wrong), PRECONDITION, "CODE_WRONG")
    assert left["tries_left"] == "4"
    right = risk_pb2.AnswerChallengeRequest(challenge_id=challenge_id, code=app.code())
    passed = await mesh.risk.AnswerChallenge(right)
    assert passed.state == risk_pb2.Challenge.STATE_PASSED
    assert (passed.amount, passed.payee_id) == (usd(100), shop)
    # Another request, and the same with another key, have challenges of their own.
    other = pay_request(second.order_id, ODD)
    assert (await refused(mesh.payments.Pay(other), PRECONDITION, "CHALLENGE_REQUIRED"))[
        "challenge_id"
    ] != challenge_id
    rekeyed = pay_request(first.order_id, ODD)
    await refused(mesh.payments.Pay(rekeyed), PRECONDITION, "CHALLENGE_REQUIRED")
    # Many of the same at once are one payment.
    payments = await asyncio.gather(*(mesh.payments.Pay(request) for _ in range(8)))
    assert len({payment.payment_id for payment in payments}) == 1
    assert await available(mesh, payer) == 900
    shown = await mesh.risk.GetChallenge(risk_pb2.GetChallengeRequest(challenge_id=challenge_id))
    assert shown.state == risk_pb2.Challenge.STATE_USED


async def test_too_many_wrong_codes_end_the_request(mesh: Mesh, shop: str) -> None:
    payer = await opened(mesh, 1000)
    app = await enrolled(mesh, payer)
    order = await ordered(mesh, payer, shop, 100)
    request = pay_request(order.order_id, ODD)
    metadata = await refused(mesh.payments.Pay(request), PRECONDITION, "CHALLENGE_REQUIRED")
    answer = risk_pb2.AnswerChallengeRequest(challenge_id=metadata["challenge_id"], code="000000")
    tried = await asyncio.gather(
        *(mesh.risk.AnswerChallenge(answer) for _ in range(20)), return_exceptions=True
    )
    assert all(isinstance(item, grpc.aio.AioRpcError) for item in tried)
    answer.code = app.code()
    await refused(mesh.risk.AnswerChallenge(answer), PRECONDITION, "CHALLENGE_ENDED")
    denied = await refused(mesh.payments.Pay(request), DENIED, "RISK_DENIED")
    assert denied["reasons"] == "CHALLENGE_FAILED"
    assert await available(mesh, payer) == 1000


async def test_a_factor_that_is_younger_than_the_challenge_does_not_answer_it(
    mesh: Mesh, shop: str
) -> None:
    """Who has stolen a session could enrol one. Without a factor a person looks at it."""
    payer = await opened(mesh, 1000)
    order = await ordered(mesh, payer, shop, 100)
    await refused(mesh.payments.Pay(pay_request(order.order_id, ODD)), PRECONDITION, "UNDER_REVIEW")
    app = await enrolled(mesh, payer)
    # To replace one takes a code of the one that is there.
    replacing = risk_pb2.EnrollFactorRequest(user_id=payer)
    await refused(mesh.risk.EnrollFactor(replacing), PRECONDITION, "CODE_WRONG")
    replacing.code = app.code()
    assert (await mesh.risk.EnrollFactor(replacing)).otpauth_uri
    assert (await mesh.risk.GetFactor(risk_pb2.GetFactorRequest(user_id=payer))).user_id == payer


async def test_a_lost_factor_is_reset_by_an_operator_and_another_is_enrolled(
    session: Session, mesh: Mesh, shop: str
) -> None:
    payer = await opened(mesh, 1000)
    lost = await enrolled(mesh, payer)
    order = await ordered(mesh, payer, shop, 100)
    request = pay_request(order.order_id, ODD)
    open_ = await refused(mesh.payments.Pay(request), PRECONDITION, "CHALLENGE_REQUIRED")
    reset = reviews_pb2.ResetFactorRequest(user_id=payer, reason="seen with his passport")
    async with session.reviews("client") as stranger:
        await refused(stranger.ResetFactor(reset), DENIED, "CALLER_NOT_ALLOWED")
    async with session.reviews() as reviews:
        nobody = reviews_pb2.ResetFactorRequest(user_id=uuid.uuid4().hex, reason="a test")
        await refused(reviews.ResetFactor(nobody), NOT_FOUND, "FACTOR_NOT_FOUND")
        audit_id = (await reviews.ResetFactor(reset)).audit_id
        # Again: what it was for has been done.
        await reviews.ResetFactor(reset)
    gone = mesh.risk.GetFactor(risk_pb2.GetFactorRequest(user_id=payer))
    await refused(gone, NOT_FOUND, "FACTOR_NOT_FOUND")
    answer = risk_pb2.AnswerChallengeRequest(challenge_id=open_["challenge_id"], code=lost.code())
    await refused(mesh.risk.AnswerChallenge(answer), NOT_FOUND, "FACTOR_NOT_FOUND")
    # Another one, without a code of the one that is lost; it answers what is asked from now on.
    found = await enrolled(mesh, payer)
    answer.code = "000000"
    await refused(mesh.risk.AnswerChallenge(answer), NOT_FOUND, "FACTOR_NOT_FOUND")
    await refused(mesh.payments.Pay(request), PRECONDITION, "UNDER_REVIEW")
    again = pay_request((await ordered(mesh, payer, shop, 100)).order_id, ODD)
    asked = await refused(mesh.payments.Pay(again), PRECONDITION, "CHALLENGE_REQUIRED")
    await mesh.risk.AnswerChallenge(
        risk_pb2.AnswerChallengeRequest(challenge_id=asked["challenge_id"], code=found.code())
    )
    await mesh.payments.Pay(again)
    async with session.control() as control:
        records = (await control.ListAuditRecords(control_pb2.ListAuditRecordsRequest())).records
    (record,) = [item for item in records if item.audit_id == audit_id]
    assert (record.action, record.reason) == ("factor.reset", "seen with his passport")


@pytest.mark.parametrize("approve", [True, False])
async def test_a_person_decides_a_review_once_and_is_recorded(
    session: Session, mesh: Mesh, shop: str, approve: bool
) -> None:
    payer = await opened(mesh, 1000)
    order = await ordered(mesh, payer, shop, 100)
    request = pay_request(order.order_id, NEW)
    metadata = await refused(mesh.payments.Pay(request), PRECONDITION, "UNDER_REVIEW")
    review_id = metadata["review_id"]
    decision = reviews_pb2.DecideReviewRequest(
        review_id=review_id, approve=approve, reason="asked the customer"
    )
    async with session.reviews("client") as stranger:
        await refused(stranger.DecideReview(decision), DENIED, "CALLER_NOT_ALLOWED")
    async with session.reviews() as reviews:
        listed = await reviews.ListReviews(reviews_pb2.ListReviewsRequest(user_id=payer))
        (review,) = listed.reviews
        assert (review.review_id, review.state, review.amount) == (review_id, "open", 100)
        assert list(review.rules) == ["path-review"]
        assert json.loads(review.facts)["device.id"] == NEW
        decided = await reviews.DecideReview(decision)
        assert decided.state == ("passed" if approve else "failed")
        assert not (
            await reviews.ListReviews(reviews_pb2.ListReviewsRequest(user_id=payer))
        ).reviews
        if approve:
            payment = await mesh.payments.Pay(request)
            assert await mesh.payments.Pay(request) == payment
        else:
            denied = await refused(mesh.payments.Pay(request), DENIED, "RISK_DENIED")
            assert denied["reasons"] == "REVIEW_REJECTED"
        assert await available(mesh, payer) == (900 if approve else 1000)
        await refused(reviews.DecideReview(decision), PRECONDITION, "REVIEW_ENDED")
    async with session.control() as control:
        records = (await control.ListAuditRecords(control_pb2.ListAuditRecordsRequest())).records
    ours = [item for item in records if review_id in item.detail]
    action = "review.approve" if approve else "review.reject"
    assert {item.action for item in ours} >= {action}
    assert any(item.verdict == "allowed" and item.action == action for item in ours)
    assert any(item.verdict.startswith("denied") for item in ours)


async def test_a_case_moves_with_its_slot(session: Session, mesh: Mesh, shop: str) -> None:
    payer = await opened(mesh, 1000)
    order = await ordered(mesh, payer, shop, 100)
    request = pay_request(order.order_id, NEW)
    metadata = await refused(mesh.payments.Pay(request), PRECONDITION, "UNDER_REVIEW")
    slot = slot_of_user(payer)
    async with session.control() as control:
        got = await control.GetSlotMap(control_pb2.GetSlotMapRequest())
        home = next(piece.cell for piece in got.ranges if piece.first <= slot <= piece.last)
        operation = await control.StartOperation(
            control_pb2.StartOperationRequest(
                kind=control_pb2.Operation.KIND_MOVE, target="b" if home != "b" else "c",
                first=slot, last=slot, reason="a test",
            )
        )  # fmt: skip
        wanted = control_pb2.GetOperationRequest(operation_id=operation.operation_id)

        async def done() -> bool:
            found = await control.GetOperation(wanted)
            return found.step == control_pb2.Operation.STEP_DONE

        await until(done)
    async with session.reviews() as reviews:
        decision = reviews_pb2.DecideReviewRequest(
            review_id=metadata["review_id"], approve=True, reason="known to us"
        )
        await reviews.DecideReview(decision)
    await mesh.payments.Pay(request)
    assert await available(mesh, payer) == 900


async def test_features_are_counted_from_the_stream(mesh: Mesh, shop: str) -> None:
    """Three payments of a device, of users of different homes; then it is known everywhere."""
    device = f"{FAST}-{uuid.uuid4().hex[:8]}"
    payers = await asyncio.gather(*(opened(mesh, 100) for _ in range(8)))

    async def pays(payer: str) -> Any:
        order = await ordered(mesh, payer, shop, 1)
        return await mesh.payments.Pay(pay_request(order.order_id, device))

    await asyncio.gather(*(pays(payer) for payer in payers[:3]))

    async def is_known() -> bool:
        try:
            await pays(payers[3])
        except grpc.aio.AioRpcError as error:
            assert error.code() == DENIED
            return True
        return False

    await until(is_known)
    for payer in payers[4:]:
        order = await ordered(mesh, payer, shop, 1)
        await refused(mesh.payments.Pay(pay_request(order.order_id, device)), DENIED, "RISK_DENIED")


async def test_what_is_said_of_who_asks_is_checked(mesh: Mesh, shop: str) -> None:
    payer = await opened(mesh, 100)
    order = await ordered(mesh, payer, shop, 1)
    request = pay_request(order.order_id, "x" * 65)
    request.risk_context.ip_address = "300.1.1.1"
    request.risk_context.ip_country = "Germany"
    await refused(mesh.payments.Pay(request), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_the_books_are_sound_after_all_that(session: Session, shop: str) -> None:
    report = await verify_mesh(session.data)
    assert report.ok
