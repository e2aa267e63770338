"""Text that is taken for code: SQL, paths, subjects, lines, markup; in every field of text."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from cellpay.accounts.v1 import accounts_pb2
from cellpay.orders.v1 import orders_pb2
from sqlalchemy import text

from control.access.rules import METHODS as CONTROL_METHODS
from control.cellctl.session import Session
from router.access import METHODS
from router.client import Mesh
from router.home import slot_finder
from tests.attacks.requests import descriptor_of, put_at, request_for, served, strings_of, unsaid
from tests.attacks.test_idor import things_of
from tests.attacks.world import Shop, call, issued, new_name, opened, ordered, to_slot

pytestmark = pytest.mark.mesh
TEXTS = (
    "'; DROP TABLE accounts; --",
    "' OR '1'='1",
    "x'||pg_sleep(20)||'",
    '"; DELETE FROM orders; --',
    "\\'; TRUNCATE ledger_entries; --",
    "$1; SELECT pg_terminate_backend(pg_backend_pid())",
    "%00",
    "%s%n{0}{__class__}${jndi:ldap://127.0.0.1/a}",
    "../../../../etc/passwd",
    "a.b.*.>",
    "<script>alert(1)</script>",
    "a\r\nx-cellpay-slot: 5\r\n\r\n",
    '{"$gt": ""}',
    "\u202egnp.exe\ufeff\u0000",
    "\ud7ff\U0010ffff" * 16,
    "=cmd|'/c calc'!A1",
)
# What an answer to bad text is; INTERNAL and UNKNOWN would be a statement that failed in a way
# that nobody foresaw.
FORESEEN = {
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.PERMISSION_DENIED,
    # Many change one thing at once here.
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.UNIMPLEMENTED,
    # Slots that are not here; a bank that is not there.
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
# Would really end operations, move slots or wait for a bank.
_SLOW = ("CreateCharge", "CreatePayout", "DrainSlots", "RecoverSlots")


def _texts(method: str) -> list[tuple[tuple[str, ...], str]]:
    paths = strings_of(descriptor_of(method).input_type)
    return [(path, text) for path in paths for text in TEXTS]


async def _tables(session: Session) -> dict[str, int]:
    """Every table of ours, and how many columns it has."""
    async with session.database() as engine, engine.connect() as connection:
        rows = await connection.execute(
            text(
                "SELECT table_name, count(*) FROM information_schema.columns "
                "WHERE table_schema = 'public' GROUP BY table_name"
            )
        )
        return {name: int(count) for name, count in rows}


async def test_wants_his_text_run_as_sql_by_any_cell(
    session: Session, mesh: Mesh, victim: Shop
) -> None:
    """Every field of text of every method, each with each of the texts, as whoever may call it."""
    before = await _tables(session)
    channels = {
        kind: grpc.aio.secure_channel(
            session.state.address("cell-a") if kind != "service" else session.edge_address,
            issued(session, kind, "injector").channel_credentials(),
        )
        for kind in ("service", "cell", "controller")
    }
    unforeseen: list[Any] = []
    room = asyncio.Semaphore(24)

    async def one(method: str, path: tuple[str, ...], value: str) -> None:
        request = request_for(method, unsaid(method, things_of(victim)))
        try:
            put_at(request, path, value)
        except ValueError:
            # No UTF-8: the raw bytes are the fuzzer's.
            return
        kind = next(kind for kind in channels if kind in METHODS[method].kinds)
        finder = slot_finder(descriptor_of(method).input_type)
        try:
            slot = finder(request) if finder else 5
        except ValueError:
            slot = 5
        async with room:
            answer = await call(
                channels[kind], method, request.SerializeToString(), to_slot(slot), timeout=20
            )
        if answer.code not in FORESEEN:
            unforeseen.append((method, path, value, answer))

    methods = [item for item in served() if not item.endswith(_SLOW)]
    await asyncio.gather(
        *(one(method, path, value) for method in methods for path, value in _texts(method))
    )
    for channel in channels.values():
        await channel.close()
    assert unforeseen == []
    assert await _tables(session) == before
    found = await mesh.accounts.GetAccount(
        accounts_pb2.GetAccountRequest(account_id=victim.ids["account_id"])
    )
    assert found.user_id == victim.merchant_id


async def test_wants_his_text_run_by_the_control_plane(session: Session) -> None:
    """Every field of text of every method that reads, and of what would be refused anyhow."""
    before = await _tables(session)
    unforeseen: list[Any] = []
    async with session.control_channel() as channel:
        for service, methods in CONTROL_METHODS.items():
            for name in methods:
                if not name.startswith(("Get", "List", "Plan", "WhoAmI")):
                    continue
                method = f"{service}/{name}"
                for path, value in _texts(method):
                    request = request_for(method, {})
                    try:
                        put_at(request, path, value)
                    except ValueError:
                        continue
                    answer = await call(channel, method, request.SerializeToString(), timeout=20)
                    if answer.code not in FORESEEN:
                        unforeseen.append((method, path, value, answer))
    assert unforeseen == []
    assert await _tables(session) == before


async def test_wants_his_text_kept_as_something_else(mesh: Mesh) -> None:
    """What is taken comes back as it was said, to the letter."""
    for value in ("'; DROP TABLE orders; --", "<b>&amp;</b>", "%27%20OR%201=1", "\\x27", "日本'語"):
        user_id = new_name(value[:20])
        account = await mesh.accounts.OpenAccount(
            accounts_pb2.OpenAccountRequest(user_id=user_id, currency="USD", kind=2)  # type: ignore[arg-type]
        )
        assert account.user_id == user_id
        payer = await opened(mesh)
        order = await mesh.orders.CreateOrder(
            orders_pb2.CreateOrderRequest(
                payer_id=payer,
                merchant_id=user_id,
                amount={"currency": "USD", "minor_units": 5},  # type: ignore[arg-type]
                description=value,
            )
        )
        found = await mesh.orders.GetOrder(orders_pb2.GetOrderRequest(order_id=order.order_id))
        assert (found.merchant_id, found.description) == (user_id, value)


async def test_wants_another_page_by_a_forged_token(mesh: Mesh, victim: Shop) -> None:
    """A page's token says where to go on, never whose pages they are."""
    from cells.requests import page_token

    for _ in range(3):
        await ordered(mesh, victim.payer_id, victim.merchant_id, 5)
    forged = (
        page_token(["9999-01-01T00:00:00+00:00", victim.ids["order_id"]]),
        page_token(["2000-01-01' OR 1=1 --", "x"]),
        page_token(["9999-01-01T00:00:00+00:00", "' OR '1'='1"]),
        page_token(["\x00", "\x1e"]),
        "AAAA",
        "=" * 100,
    )
    for token in forged:
        request = orders_pb2.ListOrdersRequest(payer_id="nobody-has-this-name", page_token=token)
        try:
            listed = await mesh.orders.ListOrders(request)
        except grpc.aio.AioRpcError as error:
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, token
        else:
            assert not listed.orders
