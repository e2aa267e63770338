"""The fence: whoever lost a slot commits nothing for it, whatever it believes (invariant 3)."""

from __future__ import annotations

import asyncio
import secrets
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

import cells.schema
from cells.accounts.model import Direction
from cells.accounts.rules import MoveMoney, OpenAccount
from cells.database import commit, make_engine, transaction
from cells.fencing.store import fence
from cells.ledger.model import Accepted, AccountKind, Idempotency, Outcome, Reason, Refused
from cells.ledger.store import commit_group
from cells.ledger.worker import Lanes
from cells.settings import DatabaseSettings, LaneSettings
from control.fencing import Fence, FenceConflict, make_fence_engine
from control.mesh import launcher
from control.mesh.options import MeshOptions
from router.errors import Refusal
from router.ids import Kind
from router.minting import mint_now
from router.slotmap import Move, SlotMap
from router.slots import slot_of_user

FIRST = SlotMap.even(["a", "b"])
USER = next(f"u{n}" for n in range(9999) if slot_of_user(f"u{n}") == 7)
TO_B = Move(0, 99, "a", "b", 2)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    data = tmp_path_factory.mktemp("fencing")
    try:
        with launcher.running(data, 1, MeshOptions(only=("postgres",))) as state:
            yield data, state.database_url
    finally:
        launcher.remove(data)


@pytest_asyncio.fixture
async def engine(database: tuple[Path, str]) -> AsyncIterator[AsyncEngine]:
    settings = replace(
        DatabaseSettings(), idle_in_transaction_timeout_ms=500, transaction_timeout_ms=2000
    )
    made = make_engine(database[1], "test", settings, pool_size=8, lanes=True)
    async with made.begin() as connection:
        await connection.run_sync(cells.schema.metadata.drop_all)
        await connection.run_sync(cells.schema.metadata.create_all)
    yield made
    await made.dispose()


@pytest_asyncio.fixture
async def owners(engine: AsyncEngine, database: tuple[Path, str]) -> AsyncIterator[Fence]:
    made = Fence(make_fence_engine(database[1], "controller"))
    await made.seed(FIRST)
    yield made
    await made.close()


def opening(kind: AccountKind = AccountKind.PERSON) -> OpenAccount:
    return OpenAccount(7, USER, "USD", kind, Idempotency(USER, "open", "OpenAccount", b"x"))


def deposit(key: str | None = None, amount: int = 5) -> MoveMoney:
    return MoveMoney(
        7, mint_now(Kind.MOVEMENT, 7), USER, Direction.IN, amount, "USD",
        Idempotency(USER, key or secrets.token_hex(8), "Deposit", b"x"),
    )  # fmt: skip


async def balance(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        statement = text("SELECT balance FROM accounts WHERE user_id = :user")
        return int((await connection.execute(statement, {"user": USER})).scalar_one())


async def test_the_owner_writes_and_the_other_cell_does_not(
    engine: AsyncEngine, owners: Fence
) -> None:
    [theirs] = await commit_group(engine, "b", [opening()])
    assert isinstance(theirs, Refused)
    assert theirs.reason == Reason.NOT_OWNER
    [ours] = await commit_group(engine, "a", [opening()])
    assert isinstance(ours, Accepted)


async def test_a_deposed_cell_commits_nothing_and_its_successor_finds_its_keys(
    engine: AsyncEngine, owners: Fence
) -> None:
    same = deposit("same key")
    await commit_group(engine, "a", [opening(), same])
    await owners.assign([TO_B], "op-1")
    [late] = await commit_group(engine, "a", [deposit()])
    assert isinstance(late, Refused)
    [again] = await commit_group(engine, "b", [deposit("same key")])
    assert isinstance(again, Accepted)
    assert again.replayed
    assert again.resource.movement_id == same.movement_id
    assert await balance(engine) == 5


async def test_the_fence_waits_for_a_write_in_flight_and_the_next_write_is_refused(
    engine: AsyncEngine, owners: Fence
) -> None:
    await commit_group(engine, "a", [opening()])
    async with transaction(engine) as driver:
        _, held = await fence(driver, "a", [7])
        assert held.epochs == {7: 1}
        async with asyncio.TaskGroup() as group:
            deposing = group.create_task(owners.assign([TO_B], "op-1"))
            await asyncio.sleep(0.2)
            assert not deposing.done(), "the fence overtook a write in flight"
            await commit(driver)
    assert (await owners.read()).at(7) == (0, 99, "b", 2)


async def test_a_writer_that_waited_for_the_fence_sees_the_new_owner(
    engine: AsyncEngine, owners: Fence
) -> None:
    """The lock re-reads the row: a snapshot from before the change must not let a write through."""
    await commit_group(engine, "a", [opening()])
    async with engine.connect() as deposer:
        await deposer.execute(text("UPDATE slots SET owner = 'b', epoch = 2 WHERE slot = 7"))
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(commit_group(engine, "a", [deposit()]))
            await asyncio.sleep(0.2)
            assert not writing.done()
            await deposer.commit()
        [outcome] = writing.result()
    assert isinstance(outcome, Refused)
    assert await balance(engine) == 0


async def test_a_paused_writer_loses_its_lock_and_cannot_commit(
    engine: AsyncEngine, owners: Fence
) -> None:
    """As a cell under SIGSTOP: an open transaction, and silence."""
    await commit_group(engine, "a", [opening()])
    async with transaction(engine) as paused:
        await fence(paused, "a", [7])
        await owners.assign([TO_B], "op-1")
        with pytest.raises(Exception, match=r"(?i)terminat|closed|timeout"):
            await paused.execute("UPDATE accounts SET balance = 999")
    assert await balance(engine) == 0


async def test_a_writer_paused_in_the_middle_of_a_message_loses_its_lock(
    engine: AsyncEngine, owners: Fence
) -> None:
    """The server waits for the rest of it, and neither the limit of a statement nor that of an idle
    transaction counts meanwhile; the one of the whole transaction does."""
    await commit_group(engine, "a", [opening()])
    async with transaction(engine) as paused:
        await fence(paused, "a", [7])
        paused._transport.write(b"B" + struct.pack("!I", 100_000) + bytes(1000))
        await owners.assign([TO_B], "op-1")
    assert (await owners.read()).at(7).cell == "b"
    [late] = await commit_group(engine, "a", [deposit()])
    assert isinstance(late, Refused)


async def test_assigning_twice_is_assigning_once_and_epochs_only_grow(
    engine: AsyncEngine, owners: Fence
) -> None:
    await owners.assign([TO_B], "op-1")
    await owners.assign([TO_B], "op-1")
    with pytest.raises(FenceConflict):
        await owners.assign([Move(0, 99, "a", "c", 2)], "op-2")
    with pytest.raises(FenceConflict):
        await owners.assign([Move(50, 150, "b", "c", 2)], "op-3")
    now = await owners.read()
    assert now.at(50) == (0, 99, "b", 2)
    assert now.at(150).cell == "a"
    async with engine.connect() as connection:
        rows = await connection.execute(
            text("SELECT epoch, owner, operation_id FROM slot_history WHERE slot = 7 ORDER BY 1")
        )
        assert [tuple(row) for row in rows] == [(1, "a", "seed"), (2, "b", "op-1")]


async def submitted(lanes: Lanes, *commands: object) -> list[Outcome | BaseException]:
    async with asyncio.TaskGroup() as group:
        runners = [group.create_task(runner()) for runner in lanes.runners()]
        results = await asyncio.gather(
            *(lanes.submit(command) for command in commands),  # type: ignore[arg-type]
            return_exceptions=True,
        )
        for runner in runners:
            runner.cancel()
    return list(results)


async def test_concurrent_commands_commit_in_few_groups_and_each_gets_its_own_answer(
    engine: AsyncEngine, owners: Fence
) -> None:
    lanes = Lanes(engine, "a", LaneSettings(count=2))
    await submitted(lanes, opening())
    deposits = [deposit(amount=n + 1) for n in range(100)]
    results = await submitted(lanes, *deposits)
    for command, outcome in zip(deposits, results, strict=True):
        assert isinstance(outcome, Accepted)
        assert outcome.resource.movement_id == command.movement_id
    assert await balance(engine) == 5050
    assert max(lane.figures.group_max for lane in lanes.lanes) > 10


async def test_one_poisoned_command_fails_alone(engine: AsyncEngine, owners: Fence) -> None:
    """The database refuses the whole group; bisection finds the one (pitfall 12)."""
    async with engine.begin() as connection:
        await connection.execute(
            text("ALTER TABLE movements ADD CONSTRAINT poison CHECK (amount <> 13)")
        )
    lanes = Lanes(engine, "a", LaneSettings(count=1))
    await submitted(lanes, opening())
    results = await submitted(lanes, *[deposit(amount=n) for n in range(10, 20)])
    failed = [number for number, item in enumerate(results, 10) if isinstance(item, Refusal)]
    assert failed == [13]
    assert await balance(engine) == sum(range(10, 20)) - 13
    assert lanes.lanes[0].figures.bisections > 0


async def test_a_full_lane_sheds_load_and_an_expired_command_is_not_executed(
    engine: AsyncEngine, owners: Fence
) -> None:
    lanes = Lanes(engine, "a", LaneSettings(count=1, queue_max=3))
    async with asyncio.TaskGroup() as group:
        waiting = asyncio.gather(
            *(lanes.submit(deposit(), 0.01) for _ in range(3)), return_exceptions=True
        )
        await asyncio.sleep(0)
        with pytest.raises(Refusal) as caught:
            await lanes.submit(deposit())
        assert caught.value.reason == "LANE_FULL"
        assert caught.value.retry_after_ms
        await asyncio.sleep(0.05)
        runner = group.create_task(lanes.runners()[0]())
        results = await waiting
        runner.cancel()
    assert {item.reason for item in results if isinstance(item, Refusal)} == {"DEADLINE_EXCEEDED"}
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM movements"))).scalar_one() == 0


async def test_a_database_that_dies_under_a_group_costs_nothing_acknowledged(
    engine: AsyncEngine, owners: Fence, database: tuple[Path, str]
) -> None:
    """SIGKILL in the middle: the lane finds out by the keys what was committed (pitfall 10)."""
    lanes = Lanes(engine, "a", LaneSettings(count=1, deadline_default_s=60))
    await submitted(lanes, opening())

    async def kill() -> None:
        await asyncio.sleep(0.05)
        launcher.kill(database[0], "postgres")
        await asyncio.to_thread(launcher.start, database[0], "postgres")

    acknowledged = 0
    async with asyncio.TaskGroup() as group:
        runner = group.create_task(lanes.runners()[0]())
        killing = group.create_task(kill())
        while not killing.done() or acknowledged < 200:
            results = await asyncio.gather(*(lanes.submit(deposit(amount=1)) for _ in range(20)))
            assert all(isinstance(item, Accepted) for item in results)
            acknowledged += len(results)
        runner.cancel()
    assert await balance(engine) == acknowledged
