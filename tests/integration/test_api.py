"""What callers hear: good requests work, bad ones get a clear status with details."""

from __future__ import annotations

import itertools
import uuid
from typing import Any

import grpc
import pytest
from cellpay.accounts.v1 import accounts_pb2, accounts_pb2_grpc
from cellpay.money.v1.money_pb2 import Money
from cellpay.orders.v1 import orders_pb2
from cellpay.payments.v1 import payments_pb2
from cellpay.transfers.v1 import participant_pb2, transfers_pb2
from google.protobuf.field_mask_pb2 import FieldMask
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from control.cellctl.session import Session
from router.client import CallPolicy, Mesh, connect_direct
from router.errors import Refusal, details_of
from router.ids import account_id
from router.slots import slot_of_user

pytestmark = pytest.mark.mesh
_numbers = itertools.count()


def usd(minor_units: int) -> Money:
    return Money(currency="USD", minor_units=minor_units)


def key() -> str:
    return str(uuid.uuid4())


async def opened(mesh: Mesh, minor_units: int = 0, *, kind: int = 1, currency: str = "USD") -> str:
    user_id = f"api-{next(_numbers)}"
    await mesh.accounts.OpenAccount(
        accounts_pb2.OpenAccountRequest(user_id=user_id, currency=currency, kind=kind)  # type: ignore[arg-type]
    )
    if minor_units:
        await mesh.accounts.Deposit(
            accounts_pb2.DepositRequest(
                user_id=user_id, amount=Money(currency=currency, minor_units=minor_units)
            )
        )
    return user_id


async def ordered(mesh: Mesh, payer: str, shop: str, minor_units: int) -> orders_pb2.Order:
    return await mesh.orders.CreateOrder(
        orders_pb2.CreateOrderRequest(
            payer_id=payer, merchant_id=shop, amount=usd(minor_units), description="a book"
        )
    )


async def available(mesh: Mesh, user_id: str) -> int:
    balance = await mesh.accounts.GetBalance(
        accounts_pb2.GetBalanceRequest(user_id=user_id, currency="USD")
    )
    return balance.available.minor_units


async def refused(call: Any, code: grpc.StatusCode, reason: str) -> dict[str, str]:
    """The ErrorInfo metadata of a call that must be refused like this."""
    with pytest.raises((grpc.aio.AioRpcError, Refusal)) as caught:
        await call
    error = caught.value
    if isinstance(error, Refusal):
        assert (error.code, error.reason) == (code, reason)
        return error.metadata
    assert isinstance(error, grpc.aio.AioRpcError)
    details = details_of(error)
    assert (error.code(), details.reason) == (code, reason), error.details()
    return dict(details.metadata)


NOT_FOUND = grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
INVALID = grpc.StatusCode.INVALID_ARGUMENT
EXISTS = grpc.StatusCode.ALREADY_EXISTS


async def test_an_order_is_paid_and_refunded_in_parts(mesh: Mesh) -> None:
    payer, shop = await opened(mesh, 1000), await opened(mesh, kind=2)
    order = await ordered(mesh, payer, shop, 300)
    assert order.state == orders_pb2.Order.STATE_OPEN
    payment = await mesh.payments.Pay(payments_pb2.PayRequest(order_id=order.order_id))
    assert payment.amount == usd(300)
    assert await available(mesh, payer) == 700
    paid = await mesh.orders.GetOrder(orders_pb2.GetOrderRequest(order_id=order.order_id))
    assert (paid.state, paid.payment_id) == (orders_pb2.Order.STATE_PAID, payment.payment_id)
    part = await mesh.payments.RefundPayment(
        payments_pb2.RefundPaymentRequest(payment_id=payment.payment_id, amount=usd(100))
    )
    assert part.state == payments_pb2.Refund.STATE_SUCCEEDED
    await refused(
        mesh.payments.RefundPayment(
            payments_pb2.RefundPaymentRequest(payment_id=payment.payment_id, amount=usd(201))
        ),
        PRECONDITION,
        "REFUND_EXCEEDS_PAYMENT",
    )
    rest = await mesh.payments.RefundPayment(
        payments_pb2.RefundPaymentRequest(payment_id=payment.payment_id)
    )
    assert rest.amount == usd(200)
    assert await available(mesh, payer) == 1000
    after = await mesh.payments.GetPayment(
        payments_pb2.GetPaymentRequest(payment_id=payment.payment_id)
    )
    assert after.state == payments_pb2.Payment.STATE_REFUNDED


async def test_a_key_has_one_effect_and_other_input_is_refused(mesh: Mesh) -> None:
    user_id, same = await opened(mesh), key()
    request = accounts_pb2.DepositRequest(user_id=user_id, amount=usd(5), idempotency_key=same)
    first = await mesh.accounts.Deposit(request)
    assert await mesh.accounts.Deposit(request) == first
    assert await available(mesh, user_id) == 5
    request.amount.minor_units = 6
    await refused(mesh.accounts.Deposit(request), EXISTS, "EXISTS_WITH_DIFFERENT_INPUT")
    assert await available(mesh, user_id) == 5


async def test_the_same_key_sent_many_times_at_once_has_one_effect(mesh: Mesh) -> None:
    import asyncio

    user_id = await opened(mesh)
    request = accounts_pb2.DepositRequest(user_id=user_id, amount=usd(7), idempotency_key=key())
    answers = await asyncio.gather(*(mesh.accounts.Deposit(request) for _ in range(20)))
    assert len({answer.movement_id for answer in answers}) == 1
    assert await available(mesh, user_id) == 7


async def test_unknown_users_accounts_orders_and_payments_are_not_found(mesh: Mesh) -> None:
    payer, shop = await opened(mesh, 100), await opened(mesh, kind=2)
    order = await ordered(mesh, payer, shop, 10)
    payment = await mesh.payments.Pay(payments_pb2.PayRequest(order_id=order.order_id))
    deposit = accounts_pb2.DepositRequest(user_id="nobody", amount=usd(5))
    await refused(mesh.accounts.Deposit(deposit), NOT_FOUND, "ACCOUNT_NOT_FOUND")
    await refused(ordered(mesh, "nobody", shop, 5), NOT_FOUND, "PAYER_NOT_FOUND")
    await refused(ordered(mesh, payer, "nobody", 5), NOT_FOUND, "MERCHANT_NOT_FOUND")
    await refused(ordered(mesh, payer, await opened(mesh), 5), NOT_FOUND, "MERCHANT_NOT_FOUND")
    unknown = order.order_id[:-1] + ("0" if order.order_id[-1] != "0" else "1")
    await refused(
        mesh.payments.Pay(payments_pb2.PayRequest(order_id=unknown)), NOT_FOUND, "ORDER_NOT_FOUND"
    )
    unknown = payment.payment_id[:-1] + ("0" if payment.payment_id[-1] != "0" else "1")
    await refused(
        mesh.payments.RefundPayment(payments_pb2.RefundPaymentRequest(payment_id=unknown)),
        NOT_FOUND,
        "PAYMENT_NOT_FOUND",
    )
    await refused(
        mesh.accounts.GetAccount(
            accounts_pb2.GetAccountRequest(account_id=account_id("nobody", "USD"))
        ),
        NOT_FOUND,
        "ACCOUNT_NOT_FOUND",
    )


async def test_no_money_is_refused_and_says_what_there_is(mesh: Mesh) -> None:
    payer, shop = await opened(mesh, 10), await opened(mesh, kind=2)
    order = await ordered(mesh, payer, shop, 11)
    found = await refused(
        mesh.payments.Pay(payments_pb2.PayRequest(order_id=order.order_id)),
        PRECONDITION,
        "INSUFFICIENT_FUNDS",
    )
    assert found == {"available_minor_units": "10", "currency": "USD"}
    withdraw = accounts_pb2.WithdrawRequest(user_id=payer, amount=usd(11))
    await refused(mesh.accounts.Withdraw(withdraw), PRECONDITION, "INSUFFICIENT_FUNDS")
    assert await available(mesh, payer) == 10


async def test_a_closed_order_cannot_be_paid_nor_a_paid_one_closed(mesh: Mesh) -> None:
    payer, shop = await opened(mesh, 100), await opened(mesh, kind=2)
    closed = await ordered(mesh, payer, shop, 5)
    await mesh.orders.CloseOrder(orders_pb2.CloseOrderRequest(order_id=closed.order_id))
    pay = payments_pb2.PayRequest(order_id=closed.order_id)
    await refused(mesh.payments.Pay(pay), PRECONDITION, "ORDER_CLOSED")
    paid = await ordered(mesh, payer, shop, 5)
    await mesh.payments.Pay(payments_pb2.PayRequest(order_id=paid.order_id))
    again = payments_pb2.PayRequest(order_id=paid.order_id)
    await refused(mesh.payments.Pay(again), PRECONDITION, "ORDER_ALREADY_PAID")
    close = orders_pb2.CloseOrderRequest(order_id=paid.order_id)
    await refused(mesh.orders.CloseOrder(close), PRECONDITION, "ORDER_ALREADY_PAID")


async def test_a_closed_account_takes_no_part_in_anything(mesh: Mesh) -> None:
    user_id, other = await opened(mesh, 5), await opened(mesh, 100)
    identifier = account_id(user_id, "USD")
    close = accounts_pb2.CloseAccountRequest(account_id=identifier)
    await refused(mesh.accounts.CloseAccount(close), PRECONDITION, "ACCOUNT_NOT_EMPTY")
    await mesh.accounts.Withdraw(accounts_pb2.WithdrawRequest(user_id=user_id, amount=usd(5)))
    await mesh.accounts.CloseAccount(close)
    deposit = accounts_pb2.DepositRequest(user_id=user_id, amount=usd(5))
    await refused(mesh.accounts.Deposit(deposit), PRECONDITION, "ACCOUNT_CLOSED")
    transfer = transfers_pb2.CreateTransferRequest(payer_id=other, payee_id=user_id, amount=usd(1))
    await refused(mesh.transfers.CreateTransfer(transfer), PRECONDITION, "ACCOUNT_CLOSED")
    assert await available(mesh, other) == 100
    reopen = accounts_pb2.OpenAccountRequest(user_id=user_id, currency="USD")
    await refused(mesh.accounts.OpenAccount(reopen), PRECONDITION, "ACCOUNT_CLOSED")
    shop = account_id(await opened(mesh, kind=2), "USD")
    close = accounts_pb2.CloseAccountRequest(account_id=shop)
    await refused(mesh.accounts.CloseAccount(close), PRECONDITION, "MERCHANT_STAYS_OPEN")


async def test_currencies_do_not_mix(mesh: Mesh) -> None:
    euro, dollar = await opened(mesh, 50, currency="EUR"), await opened(mesh, 50)
    transfer = transfers_pb2.CreateTransferRequest(payer_id=euro, payee_id=dollar, amount=usd(1))
    await refused(mesh.transfers.CreateTransfer(transfer), NOT_FOUND, "PAYER_NOT_FOUND")
    transfer = transfers_pb2.CreateTransferRequest(payer_id=dollar, payee_id=euro, amount=usd(1))
    await refused(mesh.transfers.CreateTransfer(transfer), NOT_FOUND, "PAYEE_NOT_FOUND")
    assert await available(mesh, dollar) == 50
    shop = await opened(mesh, kind=2)
    order = await ordered(mesh, dollar, shop, 10)
    payment = await mesh.payments.Pay(payments_pb2.PayRequest(order_id=order.order_id))
    refund = payments_pb2.RefundPaymentRequest(
        payment_id=payment.payment_id, amount=Money(currency="EUR", minor_units=1)
    )
    await refused(mesh.payments.RefundPayment(refund), PRECONDITION, "CURRENCY_MISMATCH")


@pytest.mark.parametrize("minor_units", [0, -1, 2**53 + 1, 2**63 - 1, -(2**63)])
async def test_amounts_that_are_no_amounts_name_their_field(mesh: Mesh, minor_units: int) -> None:
    request = accounts_pb2.DepositRequest(user_id="api-any", amount=usd(minor_units))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await mesh.accounts.Deposit(request)
    assert caught.value.code() == INVALID
    fields = [item.field for item in details_of(caught.value).violations]
    assert fields == ["amount.minor_units"]


async def test_long_strings_and_control_characters_are_refused(mesh: Mesh) -> None:
    for user_id in ("x" * 65, "a\nb", "a\x00b"):
        request = accounts_pb2.OpenAccountRequest(user_id=user_id, currency="USD")
        await refused(mesh.accounts.OpenAccount(request), INVALID, "INVALID_REQUEST")
    request = accounts_pb2.OpenAccountRequest(
        user_id="api-any", currency="USD", idempotency_key="k" * 65
    )
    await refused(mesh.accounts.OpenAccount(request), INVALID, "INVALID_REQUEST")
    await refused(ordered(mesh, "", "shop", 5), INVALID, "INVALID_REQUEST")
    pay = payments_pb2.PayRequest(order_id="no id at all")
    await refused(mesh.payments.Pay(pay), INVALID, "INVALID_REQUEST")


async def raw(session: Session, cell: str, path: str, data: bytes) -> bytes:
    """Bytes to a cell, past every check of the SDK."""
    credentials = session.tls("client").channel_credentials()
    address = session.state.address(f"cell-{cell}")
    async with grpc.aio.secure_channel(address, credentials) as channel:
        call: Any = channel.unary_unary(path, None, None)
        answer: bytes = await call(data, timeout=5)
        return answer


async def test_wrong_utf_8_and_broken_wire_format_are_invalid_arguments(session: Session) -> None:
    path = "/cellpay.accounts.v1.AccountsService/OpenAccount"
    for data in (b"\x0a\x02\xff\xfe", b"\xff\xff\xff", b"\x0a\x7f"):
        await refused(raw(session, "a", path, data), INVALID, "MALFORMED_REQUEST")


async def test_a_wrong_cell_names_the_right_one(session: Session) -> None:
    user = next(f"u{n}" for n in itertools.count() if slot_of_user(f"u{n}") == 1000)
    request = accounts_pb2.GetBalanceRequest(user_id=user, currency="USD")
    path = "/cellpay.accounts.v1.AccountsService/GetBalance"
    found = await refused(
        raw(session, "a", path, request.SerializeToString()), PRECONDITION, "NOT_HOME"
    )
    assert found["owner"] == "c"
    assert found["slot"] == "1000"


async def test_only_cells_may_call_participants(mesh: Mesh) -> None:
    request = participant_pb2.TryBranchRequest(
        payee_account_id=account_id("anyone", "USD"), transfer_id="tra_x", amount=usd(1)
    )
    await refused(
        mesh.participants.TryBranch(request),
        grpc.StatusCode.PERMISSION_DENIED,
        "CALLER_NOT_ALLOWED",
    )


async def test_transfers_reach_payees_in_every_cell(mesh: Mesh) -> None:
    people = [await opened(mesh, 100) for _ in range(9)]
    assert len({slot_of_user(person) // 342 for person in people}) > 1
    for payer, payee in itertools.pairwise(people):
        transfer = await mesh.transfers.CreateTransfer(
            transfers_pb2.CreateTransferRequest(payer_id=payer, payee_id=payee, amount=usd(40))
        )
        assert transfer.state == transfers_pb2.Transfer.STATE_CONFIRMED
        found = await mesh.transfers.GetTransfer(
            transfers_pb2.GetTransferRequest(transfer_id=transfer.transfer_id)
        )
        assert (found.payer_id, found.payee_id) == (payer, payee)
    assert await available(mesh, people[0]) == 60
    assert await available(mesh, people[-1]) == 140
    to_self = transfers_pb2.CreateTransferRequest(
        payer_id=people[0], payee_id=people[0], amount=usd(1)
    )
    await refused(mesh.transfers.CreateTransfer(to_self), INVALID, "INVALID_REQUEST")


async def test_entries_orders_and_payments_come_in_pages_without_gaps(mesh: Mesh) -> None:
    payer, shop = await opened(mesh, 1000), await opened(mesh, kind=2)
    for _ in range(7):
        order = await ordered(mesh, payer, shop, 10)
        await mesh.payments.Pay(payments_pb2.PayRequest(order_id=order.order_id))
    sequences: list[int] = []
    token = ""
    while True:
        page = await mesh.accounts.ListEntries(
            accounts_pb2.ListEntriesRequest(
                account_id=account_id(payer, "USD"), page_size=3, page_token=token
            )
        )
        assert len(page.entries) <= 3
        sequences += [entry.sequence for entry in page.entries]
        token = page.next_page_token
        if not token:
            break
    assert sequences == list(range(8, 0, -1))
    found: set[str] = set()
    token = ""
    while True:
        listed = await mesh.payments.ListPayments(
            payments_pb2.ListPaymentsRequest(payer_id=payer, page_size=2, page_token=token)
        )
        assert not found & {payment.payment_id for payment in listed.payments}
        found |= {payment.payment_id for payment in listed.payments}
        token = listed.next_page_token
        if not token:
            break
    assert len(found) == 7
    orders = await mesh.orders.ListOrders(orders_pb2.ListOrdersRequest(payer_id=payer))
    assert len(orders.orders) == 7
    bad = orders_pb2.ListOrdersRequest(payer_id=payer, page_token="nonsense!", page_size=-1)
    await refused(mesh.orders.ListOrders(bad), INVALID, "INVALID_REQUEST")


async def test_a_read_mask_returns_only_what_it_names(mesh: Mesh) -> None:
    payer, shop = await opened(mesh, 100), await opened(mesh, kind=2)
    order = await ordered(mesh, payer, shop, 10)
    request = orders_pb2.GetOrderRequest(
        order_id=order.order_id, read_mask=FieldMask(paths=["state", "amount"])
    )
    found = await mesh.orders.GetOrder(request)
    assert found == orders_pb2.Order(state=order.state, amount=order.amount)
    request.read_mask.paths[:] = ["colour"]
    await refused(mesh.orders.GetOrder(request), INVALID, "INVALID_REQUEST")


async def test_the_edge_computes_the_slot_and_refuses_what_has_none(
    session: Session, mesh: Mesh
) -> None:
    credentials = session.tls("client").channel_credentials()
    async with grpc.aio.secure_channel(session.edge_address, credentials) as channel:
        stub: Any = accounts_pb2_grpc.AccountsServiceStub(channel)
        for number in range(40):
            user_id = f"edge-{number}-é☃"
            header = user_id.encode().decode("latin-1")
            quoted = "".join(c if ord(c) < 128 else f"%{ord(c):02X}" for c in header)
            account = await stub.OpenAccount(
                accounts_pb2.OpenAccountRequest(
                    user_id=user_id, currency="USD", idempotency_key="k"
                ),
                metadata=(("x-user-id", quoted),),
                timeout=10,
            )
            assert account.user_id == user_id
        request = accounts_pb2.GetBalanceRequest(user_id="edge-1", currency="USD")
        for metadata in ((), (("x-cellpay-slot", "1024"),), (("x-cellpay-slot", "one"),)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetBalance(request, metadata=metadata, timeout=5)
            assert caught.value.code() == INVALID


async def test_strangers_are_not_heard(session: Session, tmp_path: Any) -> None:
    """A certificate of another CA opens neither a cell nor the edge nor the controller."""
    from control.mesh.ca import issue

    stranger = issue(tmp_path, "client", "spiffe://cellpay.local/service/client")
    mixed = type(stranger)(session.tls("client").ca, stranger.certificate, stranger.key)
    policy = CallPolicy(retries=False, timeout_s=5)
    for address in (
        session.state.address("cell-a"), session.edge_address, session.state.address("controller"),
    ):  # fmt: skip
        async with connect_direct(address, mixed, policy=policy) as mesh:
            await refused(
                mesh.accounts.GetBalance(
                    accounts_pb2.GetBalanceRequest(user_id="x", currency="USD")
                ),
                grpc.StatusCode.UNAVAILABLE,
                "",
            )


@pytest.mark.parametrize("name", ["cell-a", "controller"])
async def test_every_server_answers_health_reflection_and_channelz(
    session: Session, name: str
) -> None:
    from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc

    credentials = session.tls("client").channel_credentials()
    async with grpc.aio.secure_channel(session.state.address(name), credentials) as opened:
        channel: Any = opened
        health: Any = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(timeout=5)
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = (await call.read()).list_services_response.service
        call.cancel()
        assert any(service.name.startswith("cellpay.") for service in listed)
    credentials = session.tls("operator").channel_credentials()
    async with grpc.aio.secure_channel(session.state.address(name), credentials) as channel:
        zpages: Any = channelz_pb2_grpc.ChannelzStub(channel)
        servers = await zpages.GetServers(channelz_pb2.GetServersRequest(), timeout=5)
        assert len(servers.server) >= 1
