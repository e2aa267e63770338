"""Who is attacked and by whom: shops, payers, and what each owns; and ways to call anything."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from cellpay.accounts.v1 import accounts_pb2
from cellpay.money.v1.money_pb2 import Money
from cellpay.notifications.v1 import notifications_pb2
from cellpay.orders.v1 import orders_pb2
from cellpay.payments.v1 import payments_pb2
from cellpay.transfers.v1 import transfers_pb2
from cellpay.vault.v1 import instruments_pb2

from control.cellctl.session import Session
from control.mesh import ca
from router.client import CallPolicy, Mesh, TlsFiles, connect_direct
from router.errors import details_of
from router.home import find_method
from router.identity import spiffe_id
from router.ids import Kind, account_id, encode_slot
from router.slots import SLOT_HEADER

IBAN = "DE89370400440532013000"
ONCE = CallPolicy(retries=False, timeout_s=20.0, attempt_timeout_s=20.0)
_numbers = itertools.count()


def usd(minor_units: int) -> Money:
    return Money(currency="USD", minor_units=minor_units)


def new_key() -> str:
    return uuid.uuid4().hex


def new_name(prefix: str) -> str:
    return f"{prefix}-{next(_numbers)}-{uuid.uuid4().hex[:6]}"


def issued(session: Session, kind: str, name: str) -> TlsFiles:
    """A certificate of the mesh's own CA, as a stolen or a rightful one is."""
    return ca.issue(session.data / "tls", f"attack-{kind}-{name}", spiffe_id(kind, name))


@contextlib.asynccontextmanager
async def edge_as(session: Session, kind: str, name: str) -> AsyncIterator[Mesh]:
    """The gRPC edge, by somebody's certificate."""
    tls = issued(session, kind, name)
    async with connect_direct(session.edge_address, tls, policy=ONCE) as mesh:
        yield mesh


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call ended."""

    code: grpc.StatusCode
    reason: str = ""
    message: str = ""
    body: bytes = b""


# What grpc.aio makes of it when it writes to a stream that has been refused meanwhile.
_OURS = "Internal error from Core"
_TRIES_MAX = 50


async def _streamed(
    raw: Any, method: str, data: bytes, metadata: tuple[tuple[str, str], ...], timeout: float
) -> Answer:
    for _ in range(_TRIES_MAX):
        stream = raw.stream_stream(f"/{method}")(metadata=metadata, timeout=timeout)
        body = b""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await stream.write(data)
            await stream.done_writing()
            got = await stream.read()
            body = b"" if got is grpc.aio.EOF else got
        if await stream.details() != _OURS:
            return Answer(await stream.code(), body=body)
    raise AssertionError(f"{method}: {_OURS}, {_TRIES_MAX} times")


async def call(
    channel: grpc.aio.Channel,
    method: str,
    data: bytes,
    metadata: tuple[tuple[str, str], ...] = (),
    *,
    timeout: float = 15.0,
) -> Answer:
    """Bytes to `package.Service/Method`, past every check of the SDK."""
    raw: Any = channel
    found = find_method(f"/{method}")
    if found is not None and found.client_streaming:
        return await _streamed(raw, method, data, metadata, timeout)
    try:
        answer = await raw.unary_unary(f"/{method}")(data, metadata=metadata, timeout=timeout)
    except grpc.aio.AioRpcError as error:
        return Answer(error.code(), details_of(error).reason, error.details() or "")
    return Answer(grpc.StatusCode.OK, body=answer)


def to_slot(slot: int) -> tuple[tuple[str, str], ...]:
    return ((SLOT_HEADER, str(slot)),)


@dataclass(frozen=True, slots=True)
class Shop:
    """A merchant and what is his: by the names of the fields that would name it."""

    merchant_id: str
    payer_id: str
    ids: Mapping[str, str] = field(default_factory=dict)


async def opened(
    mesh: Mesh, minor_units: int = 0, *, kind: int = 1, name: str = "person", currency: str = "USD"
) -> str:
    user_id = new_name(name)
    await mesh.accounts.OpenAccount(
        accounts_pb2.OpenAccountRequest(user_id=user_id, currency=currency, kind=kind)  # type: ignore[arg-type]
    )
    if minor_units:
        amount = Money(currency=currency, minor_units=minor_units)
        await mesh.accounts.Deposit(accounts_pb2.DepositRequest(user_id=user_id, amount=amount))
    return user_id


async def available(mesh: Mesh, user_id: str, currency: str = "USD") -> int:
    request = accounts_pb2.GetBalanceRequest(user_id=user_id, currency=currency)
    return (await mesh.accounts.GetBalance(request)).available.minor_units


async def ordered(mesh: Mesh, payer: str, shop: str, minor_units: int) -> orders_pb2.Order:
    request = orders_pb2.CreateOrderRequest(
        payer_id=payer, merchant_id=shop, amount=usd(minor_units)
    )
    return await mesh.orders.CreateOrder(request)


async def paid(mesh: Mesh, payer: str, shop: str, minor_units: int) -> payments_pb2.Payment:
    order = await ordered(mesh, payer, shop, minor_units)
    return await mesh.payments.Pay(payments_pb2.PayRequest(order_id=order.order_id))


async def shop_of(mesh: Mesh) -> Shop:
    """A merchant with one of everything."""
    merchant = await opened(mesh, 10_000, kind=2, name="shop")
    payer = await opened(mesh, 10_000, name="payer")
    order = await ordered(mesh, payer, merchant, 100)
    payment = await paid(mesh, payer, merchant, 500)
    refund = await mesh.payments.RefundPayment(
        payments_pb2.RefundPaymentRequest(payment_id=payment.payment_id, amount=usd(1))
    )
    transfer = await mesh.transfers.CreateTransfer(
        transfers_pb2.CreateTransferRequest(payer_id=merchant, payee_id=payer, amount=usd(5))
    )
    instrument = await mesh.instruments.RegisterBankAccount(
        instruments_pb2.RegisterBankAccountRequest(
            user_id=merchant, number=IBAN, bank="DEUTDEFF", holder="Shop"
        )
    )
    await mesh.notifications.SetEndpoint(
        notifications_pb2.SetEndpointRequest(
            merchant_id=merchant, url="http://127.0.0.1:9/none", secret=bytes(32)
        )
    )
    ids = {
        "account_id": account_id(merchant, "USD"),
        "order_id": order.order_id,
        "payment_id": payment.payment_id,
        "refund_id": refund.refund_id,
        "transfer_id": transfer.transfer_id,
        "instrument_id": instrument.instrument_id,
        # Of kinds that only services make: whoever asks is refused before anybody looks.
        **{
            f"{noun}_id": f"{kind}_{encode_slot(7)}{'0' * 26}"
            for noun, kind in (
                ("charge", Kind.CHARGE),
                ("payout", Kind.PAYOUT),
                ("delivery", Kind.DELIVERY),
                ("event", Kind.EVENT),
                ("key", Kind.KEY),
                ("challenge", Kind.CHALLENGE),
                ("review", Kind.REVIEW),
            )
        },
    }
    return Shop(merchant, payer, ids)
