"""Lanes of several processes on the same rows: nothing is lost, nothing is counted twice.

Two engines stand for two processes of a cell: they share nothing but the database. The mesh sends a
slot to one of them; here nothing keeps them apart.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

import cells.schema  # noqa: F401
from cells.accounts.model import Direction
from cells.accounts.rules import MoveMoney, OpenAccount
from cells.database import make_engine
from cells.ledger.model import Accepted, AccountKind, Idempotency, Outcome, Reason, Refused
from cells.ledger.worker import Lanes
from cells.orders.rules import CreateOrder
from cells.payments.rules import Pay
from cells.settings import DatabaseSettings, LaneSettings
from cells.verification.auditor import audit
from control.mesh.state import MeshState
from router.errors import Refusal
from router.ids import Kind
from router.minting import mint_now
from router.slotmap import SlotMap
from router.slots import slot_of_user
from tests.integration import behind
from tests.integration.behind import CELL

PAYERS = [f"payer-{number}" for number in range(6)]


def key(scope: str, name: str = "") -> Idempotency:
    return Idempotency(scope, name or secrets.token_hex(8), "Test", b"x")


def opening(user: str, kind: AccountKind) -> OpenAccount:
    return OpenAccount(slot_of_user(user), user, "USD", kind, key(user))


def deposit(user: str, amount: int) -> MoveMoney:
    slot = slot_of_user(user)
    identifier = mint_now(Kind.MOVEMENT, slot)
    return MoveMoney(slot, identifier, user, Direction.IN, amount, "USD", key(user))


def order(user: str, shop: str, amount: int) -> CreateOrder:
    slot = slot_of_user(user)
    return CreateOrder(slot, mint_now(Kind.ORDER, slot), user, shop, amount, "USD", "", key(user))


def pay(order_id: str, slot: int, name: str = "") -> Pay:
    return Pay(
        slot, mint_now(Kind.PAYMENT, slot), mint_now(Kind.EVENT, slot), order_id,
        name or secrets.token_hex(8), "x",
    )  # fmt: skip


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshState]:
    with behind.servers(tmp_path_factory.mktemp("lanes") / "mesh") as state:
        yield state


@pytest.fixture
async def engine(state: MeshState) -> AsyncIterator[AsyncEngine]:
    async with behind.database(state) as engine:
        yield engine


@pytest.fixture
async def processes(engine: AsyncEngine) -> AsyncIterator[list[Lanes]]:
    """Each with a lane of its own."""
    url = engine.url.render_as_string(hide_password=False)
    async with AsyncExitStack() as stack:
        made = []
        for number in range(2):
            own = make_engine(url, f"p{number}", DatabaseSettings(), pool_size=1, lanes=True)
            stack.push_async_callback(own.dispose)
            lanes = Lanes(own, CELL, LaneSettings(count=1, batch_size_max=16))
            await stack.enter_async_context(behind.going_on(*lanes.runners()))
            made.append(lanes)
        yield made


async def people(lanes: Lanes, shops: list[str], minor_units: int) -> None:
    commands = [opening(shop, AccountKind.MERCHANT) for shop in shops]
    commands += [opening(payer, AccountKind.PERSON) for payer in PAYERS]
    assert all(isinstance(item, Accepted) for item in await lanes.submit_many(commands))
    deposits = [deposit(payer, minor_units) for payer in PAYERS]
    assert all(isinstance(item, Accepted) for item in await lanes.submit_many(deposits))


async def test_two_processes_pay_from_and_to_the_same_accounts(
    engine: AsyncEngine, processes: list[Lanes]
) -> None:
    """Collection accounts of new shops are made by whoever is first; the other one finds them."""
    shops = [f"shop-{number}" for number in range(8)]
    await people(processes[0], shops, 100_000)
    orders = [
        order(payer, shop, 1 + number) for number in range(10) for payer in PAYERS for shop in shops
    ]
    made = await processes[0].submit_many(orders)
    assert all(isinstance(item, Accepted) for item in made)

    async def paid(number: int, command: CreateOrder) -> Outcome:
        return await processes[number % 2].submit(pay(command.order_id, command.slot))

    outcomes = await asyncio.gather(*(paid(n, item) for n, item in enumerate(orders)))
    assert all(isinstance(item, Accepted) for item in outcomes)
    spent: Counter[str] = Counter()
    for command in orders:
        spent[command.payer_id] += command.amount
    async with engine.connect() as connection:
        rows = await connection.execute(
            text("SELECT user_id, balance FROM accounts WHERE purpose = 'balance'")
        )
        balances = {user: balance for user, balance in rows if user in spent}
    assert balances == {payer: 100_000 - spent[payer] for payer in PAYERS}
    report = await audit(engine, SlotMap.even([CELL]))
    assert report.ok, report


async def test_one_key_in_two_processes_at_once_has_one_effect(
    engine: AsyncEngine, processes: list[Lanes]
) -> None:
    await people(processes[0], ["shop"], 1000)
    for number in range(20):
        payer = PAYERS[number % len(PAYERS)]
        command = order(payer, "shop", 7)
        await processes[0].submit(command)
        same = [pay(command.order_id, command.slot, "same key") for _ in range(4)]
        outcomes = await asyncio.gather(
            *(processes[place % 2].submit(item) for place, item in enumerate(same))
        )
        payments = {item.resource for item in outcomes if isinstance(item, Accepted)}
        assert len(payments) == 1
    async with engine.connect() as connection:
        count = (await connection.execute(text("SELECT count(*) FROM payments"))).scalar_one()
    assert count == 20


async def test_a_batch_answers_each_in_its_place_and_sheds_what_is_too_much(
    processes: list[Lanes], engine: AsyncEngine
) -> None:
    await people(processes[0], ["shop"], 10)
    dear, fair = order(PAYERS[0], "shop", 11), order(PAYERS[1], "shop", 10)
    await processes[0].submit_many([dear, fair])
    refused, accepted = await processes[1].submit_many(
        [pay(dear.order_id, dear.slot), pay(fair.order_id, fair.slot)]
    )
    assert isinstance(refused, Refused)
    assert refused.reason == Reason.INSUFFICIENT_FUNDS
    assert isinstance(accepted, Accepted)
    small = Lanes(engine, CELL, LaneSettings(count=1, queue_max=2))
    async with behind.going_on(*small.runners()):
        results = await small.submit_many([deposit(PAYERS[0], 1) for _ in range(5)])
    shed = [item for item in results if isinstance(item, Refusal)]
    assert [item.reason for item in shed] == ["LANE_FULL"] * 3
    assert all(item.retry_after_ms for item in shed)
    assert sum(isinstance(item, Accepted) for item in results) == 2


async def test_a_lane_whose_connection_is_cut_again_and_again_takes_another(
    engine: AsyncEngine, processes: list[Lanes]
) -> None:
    """Between two groups and in the middle of one; each deposit has its one effect."""
    await people(processes[0], ["shop"], 1000)
    cut = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'p0'"
    )
    accepted = 0

    async def cutting() -> int:
        cuts = 0
        for number in range(1, 9):
            # It has got on since the last cut.
            while accepted < number * 30:
                await asyncio.sleep(0.001)
            async with engine.connect() as connection:
                cuts += len((await connection.execute(cut)).all())
        return cuts

    async def deposits(payer: str) -> None:
        nonlocal accepted
        for _ in range(50):
            assert isinstance(await processes[0].submit(deposit(payer, 1)), Accepted)
            accepted += 1

    async with asyncio.TaskGroup() as group:
        cutter = group.create_task(cutting())
        for payer in PAYERS:
            group.create_task(deposits(payer))
    assert cutter.result() >= 4
    async with engine.connect() as connection:
        rows = await connection.execute(
            text("SELECT user_id, balance FROM accounts WHERE purpose = 'balance'")
        )
        balances = {user: balance for user, balance in rows if user in PAYERS}
    assert balances == dict.fromkeys(PAYERS, 1050)
    report = await audit(engine, SlotMap.even([CELL]))
    assert report.ok, report
