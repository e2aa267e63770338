"""Money that is not there: wrong amounts, races, double spending, and keys used again."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import grpc
import pytest
from cellpay.accounts.v1 import accounts_pb2
from cellpay.control.v1 import control_pb2
from cellpay.money.v1.money_pb2 import Money
from cellpay.orders.v1 import orders_pb2
from cellpay.payments.v1 import payments_pb2
from google.protobuf.descriptor import FieldDescriptor

from control.cellctl.session import Session
from router.client import Mesh
from router.slots import slot_of_user
from tests.attacks.requests import descriptor_of, request_for, served
from tests.attacks.world import (
    Shop,
    available,
    call,
    issued,
    new_key,
    opened,
    ordered,
    paid,
    to_slot,
    usd,
)

pytestmark = pytest.mark.mesh
INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
EXISTS = grpc.StatusCode.ALREADY_EXISTS
# int64's ends, 2^63 as it wraps, the largest amount and one more, and nothing.
NO_AMOUNTS = (0, -1, -100, 2**53 + 1, 2**63 - 1, -(2**63))
ENDED = {
    control_pb2.Operation.STEP_DONE,
    control_pb2.Operation.STEP_FAILED,
    control_pb2.Operation.STEP_ABORTED,
}


def _takes_money(method: str) -> bool:
    descriptor: Any = descriptor_of(method).input_type
    return any(
        field.type == FieldDescriptor.TYPE_MESSAGE
        and field.message_type.full_name == Money.DESCRIPTOR.full_name
        for field in descriptor.fields
    )


WITH_MONEY = [method for method in served() if _takes_money(method)]


async def code_of(awaited: Any) -> grpc.StatusCode:
    try:
        await awaited
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_enough_methods_take_money() -> None:
    assert len(WITH_MONEY) >= 9


@pytest.mark.parametrize("method", WITH_MONEY, ids=lambda name: name.rpartition("/")[2])
async def test_wants_an_amount_that_is_negative_nothing_or_too_large(
    session: Session, mesh: Mesh, victim: Shop, method: str
) -> None:
    """By every method with an amount, at every cell, by whoever may call it."""
    before = await available(mesh, victim.merchant_id)
    kind = (
        "cell"
        if method.rpartition("/")[2] in {"FundCollection", "TryBranch", "Adjust"}
        else ("service")
    )
    credentials = issued(session, kind, "mallory").channel_credentials()
    names = {
        **victim.ids,
        "user_id": victim.merchant_id,
        "merchant_id": victim.merchant_id,
        "payer_id": victim.merchant_id,
        "payee_id": victim.payer_id,
        "payee_account_id": victim.ids["account_id"],
        "currency": "USD",
        "idempotency_key": new_key(),
    }
    for cell in session.state.cells:
        address = session.state.address(f"cell-{cell}")
        async with grpc.aio.secure_channel(address, credentials) as channel:
            for minor_units in NO_AMOUNTS:
                request = request_for(method, {**names, "minor_units": minor_units})
                answer = await call(channel, method, request.SerializeToString())
                home = answer.reason not in {"NOT_HOME", "SLOT_MOVED"}
                assert not home or answer.code in {INVALID, PRECONDITION}, (minor_units, answer)
    assert await available(mesh, victim.merchant_id) == before


async def test_wants_to_pay_in_a_currency_worth_less(mesh: Mesh) -> None:
    payer = await opened(mesh, 500, currency="JPY")
    shop = await opened(mesh, kind=2)
    request = orders_pb2.CreateOrderRequest(payer_id=payer, merchant_id=shop, amount=usd(400))
    try:
        order = await mesh.orders.CreateOrder(request)
        code = await code_of(mesh.payments.Pay(payments_pb2.PayRequest(order_id=order.order_id)))
    except grpc.aio.AioRpcError as error:
        code = error.code()
    assert code in {grpc.StatusCode.NOT_FOUND, PRECONDITION}
    payer_in_dollars = await opened(mesh, 500)
    payment = await paid(mesh, payer_in_dollars, shop, 100)
    for currency in ("JPY", "KWD", "usd", "XXX", "", "US", "USD "):
        refund = payments_pb2.RefundPaymentRequest(
            payment_id=payment.payment_id, amount=Money(currency=currency, minor_units=1)
        )
        assert await code_of(mesh.payments.RefundPayment(refund)) in {INVALID, PRECONDITION}
    assert await available(mesh, payer, "JPY") == 500


async def test_wants_more_back_than_was_paid_by_two_refunds_at_once(mesh: Mesh) -> None:
    payer, shop = await opened(mesh, 100), await opened(mesh, 1000, kind=2)
    payment = await paid(mesh, payer, shop, 100)

    async def refund(minor_units: int) -> grpc.StatusCode:
        request = payments_pb2.RefundPaymentRequest(
            payment_id=payment.payment_id,
            amount=usd(minor_units) if minor_units else None,
            idempotency_key=new_key(),
        )
        return await code_of(mesh.payments.RefundPayment(request))

    codes = await asyncio.gather(*(refund(minor_units) for minor_units in [60, 60, 100, 0] * 5))
    assert codes.count(grpc.StatusCode.OK) <= 2
    found = await mesh.payments.GetPayment(
        payments_pb2.GetPaymentRequest(payment_id=payment.payment_id)
    )
    assert 0 < found.refunded.minor_units <= 100
    assert await available(mesh, payer) == found.refunded.minor_units
    assert await refund(101) == PRECONDITION


async def test_wants_to_spend_the_same_money_many_times_at_once(mesh: Mesh) -> None:
    payer, shop = await opened(mesh, 100), await opened(mesh, kind=2)
    other = await opened(mesh)
    orders = [await ordered(mesh, payer, shop, 70) for _ in range(8)]
    withdrawal = accounts_pb2.WithdrawRequest(user_id=payer, amount=usd(70))
    from cellpay.transfers.v1 import transfers_pb2

    transfer = transfers_pb2.CreateTransferRequest(payer_id=payer, payee_id=other, amount=usd(70))
    ways: list[Any] = [
        *(mesh.payments.Pay(payments_pb2.PayRequest(order_id=order.order_id)) for order in orders),
        *(mesh.accounts.Withdraw(withdrawal) for _ in range(4)),
        *(mesh.transfers.CreateTransfer(transfer) for _ in range(4)),
    ]
    codes = await asyncio.gather(*(code_of(way) for way in ways))
    # A transfer that is refused at the ledger may answer as cancelled, which is no error.
    assert await available(mesh, payer) == 30, codes


async def test_wants_to_spend_the_same_money_in_two_cells_during_a_failover(
    session: Session, mesh: Mesh
) -> None:
    """The payer's slots leave their cell and come back, while every cell is asked, itself and past
    the edge, to pay each of his orders again and again."""
    payer, shop = await opened(mesh, 100), await opened(mesh, kind=2)
    orders = [await ordered(mesh, payer, shop, 100) for _ in range(6)]
    home = (await session.slot_map()).at(slot_of_user(payer)).cell  # type: ignore[union-attr]
    credentials = issued(session, "service", "spender").channel_credentials()
    addresses = [session.state.address(f"cell-{cell}") for cell in session.state.cells]
    over = asyncio.Event()
    paid_at: list[str] = []

    async def spend(address: str, turn: int) -> None:
        async with grpc.aio.secure_channel(address, credentials) as channel:
            for order in itertools.cycle(orders[turn:] + orders[:turn]):
                if over.is_set():
                    return
                request = payments_pb2.PayRequest(
                    order_id=order.order_id, idempotency_key=new_key()
                )
                answer = await call(
                    channel, "cellpay.payments.v1.PaymentsService/Pay", request.SerializeToString()
                )
                if answer.code == grpc.StatusCode.OK:
                    paid_at.append(order.order_id)
                await asyncio.sleep(0.002)

    async with asyncio.TaskGroup() as group:
        for turn, address in enumerate(addresses * 2):
            group.create_task(spend(address, turn))
        try:
            for kind in ("KIND_DRAIN", "KIND_RESTORE"):
                await _operated(session, kind, home)
        finally:
            over.set()
    assert len(set(paid_at)) == 1
    states = [
        (await mesh.orders.GetOrder(orders_pb2.GetOrderRequest(order_id=order.order_id))).state
        for order in orders
    ]
    assert states.count(orders_pb2.Order.STATE_PAID) == 1
    assert await available(mesh, payer) == 0


async def _operated(session: Session, kind: str, cell: str) -> None:
    request = control_pb2.StartOperationRequest(
        kind=control_pb2.Operation.Kind.Value(kind),
        cell=cell,
        reason="an attack",
    )
    async with session.control() as control, asyncio.timeout(40):
        operation = await control.StartOperation(request, timeout=10)
        look = control_pb2.GetOperationRequest(operation_id=operation.operation_id)
        while operation.step not in ENDED:
            await asyncio.sleep(0.05)
            operation = await control.GetOperation(look, timeout=10)
    assert operation.step == control_pb2.Operation.STEP_DONE


async def test_wants_an_old_answer_for_a_new_question(mesh: Mesh) -> None:
    """The key of a withdrawal of 1 for one of 1,000; the key of one method for another."""
    payer, shop = await opened(mesh, 1000), await opened(mesh, kind=2)
    key = new_key()
    first = accounts_pb2.WithdrawRequest(user_id=payer, amount=usd(1), idempotency_key=key)
    await mesh.accounts.Withdraw(first)
    first.amount.minor_units = 1000
    assert await code_of(mesh.accounts.Withdraw(first)) == EXISTS
    deposit = accounts_pb2.DepositRequest(user_id=payer, amount=usd(1), idempotency_key=key)
    assert await code_of(mesh.accounts.Deposit(deposit)) == EXISTS
    assert await available(mesh, payer) == 999
    small, large = await ordered(mesh, payer, shop, 1), await ordered(mesh, payer, shop, 900)
    key = new_key()
    pay = payments_pb2.PayRequest(order_id=small.order_id, idempotency_key=key)
    payment = await mesh.payments.Pay(pay)
    pay.order_id = large.order_id
    other = await mesh.payments.Pay(pay)
    assert (other.order_id, other.payment_id != payment.payment_id) == (large.order_id, True)
    assert await available(mesh, payer) == 98


async def test_wants_a_request_to_count_twice_by_a_field_nobody_knows(
    session: Session, mesh: Mesh
) -> None:
    """The same key with one more, unknown field is another request, and refused."""
    payer = await opened(mesh, 10)
    request = accounts_pb2.WithdrawRequest(user_id=payer, amount=usd(1), idempotency_key=new_key())
    await mesh.accounts.Withdraw(request)
    changed = request.SerializeToString() + b"\xfa\x01\x01x"
    method = "cellpay.accounts.v1.AccountsService/Withdraw"
    slot = slot_of_user(payer)
    credentials = issued(session, "service", "spender").channel_credentials()
    async with grpc.aio.secure_channel(session.edge_address, credentials) as channel:
        answer = await call(channel, method, changed, to_slot(slot))
    assert answer.code == EXISTS
    assert await available(mesh, payer) == 9
