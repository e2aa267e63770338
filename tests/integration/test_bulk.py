"""Many payments in a call or a stream: each has its own outcome, wherever its payer is at home."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence

import grpc
import pytest
from cellpay.payments.v1 import payments_pb2 as pb

from cells.bulk import REQUESTS_MAX
from control.cellctl.session import Session
from router.client import BulkPayer, Mesh, home_of
from router.errors import Refusal
from router.ids import slot_of_id
from router.slots import slot_of_user
from tests.integration.test_api import INVALID, available, opened, ordered, refused

pytestmark = pytest.mark.mesh


def request_for(order_id: str) -> pb.PayRequest:
    return pb.PayRequest(order_id=order_id, idempotency_key=str(uuid.uuid4()))


async def orders_of(mesh: Mesh, payers: Sequence[str], shop: str, amount: int) -> list[str]:
    orders = await asyncio.gather(*(ordered(mesh, payer, shop, amount) for payer in payers))
    return [order.order_id for order in orders]


async def test_payments_of_many_homes_are_paid_once_each_in_their_order(mesh: Mesh) -> None:
    shop = await opened(mesh, kind=2)
    payers = await asyncio.gather(*(opened(mesh, 100) for _ in range(60)))
    assert len({slot_of_user(payer) // 342 for payer in payers}) == 3
    order_ids = await orders_of(mesh, payers, shop, 30)
    requests = [request_for(order_id) for order_id in order_ids]
    payer = BulkPayer(mesh, batch_size=7)
    first = await payer.pay(requests)
    again = await payer.pay(requests)
    assert [item.order_id for item in first if isinstance(item, pb.Payment)] == order_ids
    assert first == again
    assert [await available(mesh, payer) for payer in payers] == [70] * 60


async def test_what_is_wrong_with_one_does_not_harm_the_others(mesh: Mesh) -> None:
    shop = await opened(mesh, kind=2)
    rich, poor = await opened(mesh, 100), await opened(mesh, 10)
    good, dear, other = await orders_of(mesh, [rich, poor, rich], shop, 40)
    keyless = pb.PayRequest(order_id=other)
    unknown = request_for(good[:-1] + ("0" if good[-1] != "0" else "1"))
    requests = [request_for("ord_x"), request_for(dear), request_for(good), keyless, unknown]
    results = await BulkPayer(mesh).pay(requests)
    reasons = [item.reason if isinstance(item, Refusal) else item.order_id for item in results]
    assert reasons == [
        "INVALID_REQUEST", "INSUFFICIENT_FUNDS", good, "INVALID_REQUEST", "ORDER_NOT_FOUND",
    ]  # fmt: skip
    dear_one, no_id = results[1], results[0]
    assert isinstance(dear_one, Refusal)
    assert dear_one.metadata["available_minor_units"] == "10"
    assert isinstance(no_id, Refusal)
    assert no_id.code == INVALID
    assert await available(mesh, rich) == 60


async def test_a_call_has_its_limits(mesh: Mesh) -> None:
    shop = await opened(mesh, kind=2)
    (order_id,) = await orders_of(mesh, [await opened(mesh, 100)], shop, 1)
    many = [request_for(order_id)] * (REQUESTS_MAX + 1)
    await refused(
        mesh.payments.BatchPay(pb.BatchPayRequest(payments=many)), INVALID, "INVALID_REQUEST"
    )
    await refused(mesh.payments.BatchPay(pb.BatchPayRequest()), INVALID, "INVALID_REQUEST")


async def test_a_stream_answers_each_payment_of_each_message(mesh: Mesh, session: Session) -> None:
    shop, payer = await opened(mesh, kind=2), await opened(mesh, 10_000)
    order_ids = await orders_of(mesh, [payer] * 120, shop, 1)
    sent = [request_for(order_id) for order_id in order_ids]

    async def messages() -> AsyncIterator[pb.PayStreamRequest]:
        for first in range(0, len(sent), 5):
            yield pb.PayStreamRequest(payments=sent[first : first + 5])

    call = mesh.payments.PayStream(messages(), metadata=home_of(slot_of_user(payer)), timeout=60)
    results: dict[int, str] = {}
    async for answer in call:
        for number, result in enumerate(answer.results, answer.first):
            assert number not in results
            results[number] = result.payment.order_id
    assert [results[number] for number in range(len(sent))] == order_ids
    assert await available(mesh, payer) == 10_000 - 120


async def test_a_stream_to_the_wrong_cell_refuses_each_and_names_the_owner(mesh: Mesh) -> None:
    shop, payer = await opened(mesh, kind=2), await opened(mesh, 100)
    (order_id,) = await orders_of(mesh, [payer], shop, 1)
    elsewhere = (slot_of_id(order_id) + 512) % 1024

    async def messages() -> AsyncIterator[pb.PayStreamRequest]:
        yield pb.PayStreamRequest(payments=[request_for(order_id)])

    call = mesh.payments.PayStream(messages(), metadata=home_of(elsewhere), timeout=60)
    (answer,) = [answer async for answer in call]
    refusal = Refusal.from_status(answer.results[0].error_status)
    assert refusal.reason in {"NOT_HOME", "SLOT_MOVED"}
    assert refusal.metadata["slot"] == str(slot_of_id(order_id))
    assert await available(mesh, payer) == 100


async def test_a_stream_of_nonsense_ends_with_a_clear_status(session: Session, mesh: Mesh) -> None:
    credentials = session.tls("client").channel_credentials()
    address = session.state.address("cell-a")
    path = "/cellpay.payments.v1.PaymentsService/PayStream"
    async with grpc.aio.secure_channel(address, credentials) as channel:
        call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(path)(timeout=20)
        await call.write(b"\xff\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() == INVALID
