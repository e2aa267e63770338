"""What is another's: every public method, asked for another merchant's things by a merchant."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from cellpay.notifications.v1 import notifications_pb2
from cellpay.orders.v1 import orders_pb2
from cellpay.payments.v1 import payments_pb2

from control.cellctl.session import Session
from router.access import METHODS, Kind
from router.client import Mesh
from router.home import slot_finder
from router.ids import Kind as IdKind
from router.ids import account_id, mint, slot_of_id
from router.slots import slot_of_user
from tests.attacks.requests import descriptor_of, request_for, served
from tests.attacks.world import (
    IBAN,
    Answer,
    Shop,
    available,
    call,
    edge_as,
    issued,
    new_key,
    opened,
    ordered,
    shop_of,
    to_slot,
    usd,
)
from tests.integration.behind import eventually

pytestmark = pytest.mark.mesh
DENIED, MISSING = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND
# The reasons by which a merchant hears that a thing is not his; and of an edge, which gives none.
NOT_HIS = {"NOT_YOURS", "NOT_FOUND", "CALLER_NOT_ALLOWED", ""}
# Of these the service itself wants a signature first (tests/integration/test_signing.py).
BY_SIGNATURE = sorted(
    name for name, access in METHODS.items() if access.own is not None and access.own.by_service
)
# These need what this shop does not have: a payout, a challenge, a second factor, a key's proof.
NOT_HAD = (
    "/GetPayout", "/GetChallenge", "/AnswerChallenge", "/ConfirmFactor", "/GetFactor",
    "/RegisterKey",
)  # fmt: skip
FOR_MERCHANTS = sorted(name for name, access in METHODS.items() if Kind.MERCHANT in access.kinds)


def things_of(shop: Shop) -> dict[str, Any]:
    return {
        **shop.ids,
        "user_id": shop.merchant_id,
        "merchant_id": shop.merchant_id,
        "payer_id": shop.merchant_id,
        "payee_id": shop.payer_id,
        "payee_account_id": shop.ids["account_id"],
        "currency": "USD",
        "minor_units": 1,
        "idempotency_key": new_key(),
        "number": IBAN,
        "bank": "DEUTDEFF",
        "url": "http://127.0.0.1:9/mine",
        "secret": bytes(range(32)),
        "code": "123456",
        "reference": shop.ids["order_id"],
    }


async def asked(channel: grpc.aio.Channel, method: str, values: dict[str, Any]) -> Answer:
    request = request_for(method, values)
    finder = slot_finder(descriptor_of(method).input_type)
    slot = 7
    if finder is not None:
        try:
            slot = finder(request)
        except ValueError:
            # A field that this request left empty: somebody refuses it, wherever it goes.
            slot = 7
    return await call(channel, method, request.SerializeToString(), to_slot(slot))


async def settled(mesh: Mesh, shop: Shop) -> int:
    """What he has once his customer's payment is among it: 10,000, less 5 that he gave away, and
    500 of which he paid 1 back."""

    async def funds() -> int:
        has = await available(mesh, shop.merchant_id)
        return has if has == 10_494 else 0

    return int(await eventually(funds))


async def test_wants_what_is_anothers_by_any_method(
    mesh: Mesh, as_mallory: grpc.aio.Channel
) -> None:
    # Whom nobody else attacks: what is his must be as it was.
    victim = await shop_of(mesh)
    before = await settled(mesh, victim)
    taken = {}
    for method in served():
        answer = await asked(as_mallory, method, things_of(victim))
        if method in BY_SIGNATURE and answer.reason == "SIGNATURE_REQUIRED":
            continue
        if answer.code not in (DENIED, MISSING) or answer.reason not in NOT_HIS:
            taken[method] = answer
    assert taken == {}
    assert await available(mesh, victim.merchant_id) == before
    order = await mesh.orders.GetOrder(orders_pb2.GetOrderRequest(order_id=victim.ids["order_id"]))
    assert order.state == orders_pb2.Order.STATE_OPEN
    endpoint = await mesh.notifications.GetEndpoint(
        notifications_pb2.GetEndpointRequest(merchant_id=victim.merchant_id)
    )
    assert endpoint.url.endswith("/none")


async def test_a_merchant_may_ask_for_all_that_is_his_own(session: Session, mesh: Mesh) -> None:
    """Without this the test above would pass where nothing works."""
    shop = await shop_of(mesh)
    tls = issued(session, "merchant", shop.merchant_id)
    async with grpc.aio.secure_channel(session.edge_address, tls.channel_credentials()) as channel:
        refused = {}
        for method in FOR_MERCHANTS:
            values = things_of(shop)
            if method.endswith("/CreateOrder"):
                values["payer_id"] = shop.payer_id
            answer = await asked(channel, method, values)
            wrong = answer.code in (DENIED, MISSING, grpc.StatusCode.INVALID_ARGUMENT)
            if wrong and not method.endswith(NOT_HAD):
                refused[method] = answer
    assert refused == {}


async def test_wants_to_learn_which_ids_exist(as_mallory: grpc.aio.Channel, victim: Shop) -> None:
    """What is another's and what is nowhere are answered alike, to the letter."""
    for method, field, kind in (
        ("cellpay.orders.v1.OrdersService/GetOrder", "order_id", IdKind.ORDER),
        ("cellpay.payments.v1.PaymentsService/GetPayment", "payment_id", IdKind.PAYMENT),
        ("cellpay.transfers.v1.TransfersService/GetTransfer", "transfer_id", IdKind.TRANSFER),
        ("cellpay.vault.v1.InstrumentsService/GetInstrument", "instrument_id", IdKind.INSTRUMENT),
    ):
        slot = slot_of_id(victim.ids[field])
        nowhere = mint(kind, slot, unix_ms=1, random_80=1)
        anothers = await asked(as_mallory, method, {field: victim.ids[field]})
        assert anothers == await asked(as_mallory, method, {field: nowhere})
    method = "cellpay.accounts.v1.AccountsService/GetAccount"
    nowhere = account_id(victim.merchant_id, "EUR")
    assert await asked(as_mallory, method, {"account_id": nowhere}) == await asked(
        as_mallory, method, {"account_id": victim.ids["account_id"]}
    )


async def test_wants_to_refund_himself_what_he_bought_elsewhere(
    session: Session, mesh: Mesh
) -> None:
    """The payer of a payment may see it, and not take it back."""
    payer = await opened(mesh, 1000, kind=2, name="payer")
    shop = await opened(mesh, kind=2, name="shop")
    order = await ordered(mesh, payer, shop, 700)
    payment = await mesh.payments.Pay(payments_pb2.PayRequest(order_id=order.order_id))
    async with edge_as(session, "merchant", payer) as his:
        seen = await his.payments.GetPayment(
            payments_pb2.GetPaymentRequest(payment_id=payment.payment_id)
        )
        assert seen.payer_id == payer
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await his.payments.RefundPayment(
                payments_pb2.RefundPaymentRequest(payment_id=payment.payment_id)
            )
    assert refused.value.code() == MISSING
    assert await available(mesh, payer) == 300


async def test_wants_an_order_paid_that_its_payer_never_saw(
    mesh: Mesh, as_mallory: grpc.aio.Channel, mallory: Shop, victim: Shop
) -> None:
    """A merchant makes orders for anybody; to pay one is not for him to say."""
    order = await ordered(mesh, victim.payer_id, mallory.merchant_id, 999)
    before = await available(mesh, victim.payer_id)
    for method in ("Pay", "BatchPay", "PayStream"):
        name = f"cellpay.payments.v1.PaymentsService/{method}"
        answer = await asked(as_mallory, name, {"order_id": order.order_id})
        assert answer.code == DENIED, method
    assert await available(mesh, victim.payer_id) == before


async def test_wants_to_make_money_by_a_deposit(
    as_mallory: grpc.aio.Channel, mesh: Mesh, mallory: Shop
) -> None:
    before = await available(mesh, mallory.merchant_id)
    method = "cellpay.accounts.v1.AccountsService/Deposit"
    answer = await asked(as_mallory, method, {**things_of(mallory), "minor_units": 10**6})
    assert (answer.code, answer.reason) == (DENIED, "CALLER_NOT_ALLOWED")
    assert await available(mesh, mallory.merchant_id) == before


async def test_wants_to_be_two_merchants_in_one_request(
    as_mallory: grpc.aio.Channel, mallory: Shop, victim: Shop
) -> None:
    """A field that is sent twice: the last one counts for the check and for what is done alike."""
    request = orders_pb2.CreateOrderRequest(
        payer_id=mallory.payer_id,
        merchant_id=mallory.merchant_id,
        amount=usd(5),
        idempotency_key=new_key(),
    ).SerializeToString()
    twice = (
        request + orders_pb2.CreateOrderRequest(merchant_id=victim.merchant_id).SerializeToString()
    )
    method = "cellpay.orders.v1.OrdersService/CreateOrder"
    slot = to_slot(slot_of_user(mallory.payer_id))
    assert (await call(as_mallory, method, twice, slot)).reason == "NOT_YOURS"
    other = orders_pb2.CreateOrderRequest(merchant_id=victim.merchant_id).SerializeToString()
    answer = await call(as_mallory, method, other + request, slot)
    assert answer.code == grpc.StatusCode.OK
    assert orders_pb2.Order.FromString(answer.body).merchant_id == mallory.merchant_id
