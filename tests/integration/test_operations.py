"""Operations on a real etcd and a real database, with controllers that die in the middle.

The cells are the test's own: a lease and a key each, and calls that answer at once. What cells do
in a move is told in tests/chaos and tests/integration/test_fencing.py.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from cells.database import make_engine, transaction
from cells.fencing.store import fence as lock_slots
from cells.fencing.tables import metadata
from cells.settings import DatabaseSettings
from control.fencing import Fence, make_fence_engine
from control.mesh import ca, launcher
from control.mesh.options import MeshOptions
from control.mesh.state import MeshState
from control.operations.model import ENDED, Operation, OperationKind, Step
from control.operations.runner import Runner
from control.operations.service import start_operation
from control.operations.steps import Wish
from control.operations.waves import Known
from control.slotmap import read_slot_map, seed_slot_map
from router.errors import Refusal
from router.identity import spiffe_id
from router.slotmap import Move, SlotMap
from router.slots import SlotRange
from router.store.etcd import EtcdStore, connect_etcd
from router.store.model import (
    AUDIT_PREFIX,
    LEADER_KEY,
    OPERATIONS_PREFIX,
    RUNNING_OPERATION_KEY,
    SLOT_MAP_KEY,
    Store,
    StoreUnavailable,
)
from tests.integration.books import new_database

pytestmark = pytest.mark.mesh

CELLS = ("a", "b")
FIRST = SlotMap.even(CELLS)
# Nothing here measures time, unless it says so: this only ends a test that hangs.
PATIENCE_S = 60.0
CONTROLLERS = ("controller", "controller-2")


class Crash(Exception):
    """The controller dies here."""


class Calls:
    async def drain(self, cell: str, ranges: Sequence[SlotRange]) -> str:
        return f"{cell} drained"

    async def recover(self, cell: str, ranges: Sequence[SlotRange]) -> int | None:
        return 0


class Mortal:
    """A store whose user dies at its n-th commit, just before it or just after."""

    def __init__(self, store: Store, dies_at: int, *, before: bool) -> None:
        self._store = store
        self._left = dies_at
        self._before = before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, **change: Any) -> int | None:
        self._left -= 1
        if self._left == 0 and self._before:
            raise Crash
        revision = await self._store.commit(**change)
        if self._left == 0:
            raise Crash
        return revision


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshState]:
    directory = tmp_path_factory.mktemp("operations") / "mesh"
    only = ("etcd", "postgres", "schema", "controller")
    try:
        with launcher.running(directory, len(CELLS), MeshOptions(only=only)) as state:
            yield state
    finally:
        launcher.remove(directory)


@pytest.fixture
async def quiet(servers: MeshState) -> MeshState:
    """No controller but the test's own."""
    for name in CONTROLLERS:
        await asyncio.to_thread(launcher.stop, servers.path, name)
    return servers


@pytest.fixture
async def store(servers: MeshState) -> AsyncIterator[EtcdStore]:
    made = connect_etcd(servers.address("etcd"))
    yield made
    await made.close()


@pytest.fixture
async def fence(quiet: MeshState, store: EtcdStore) -> AsyncIterator[Fence]:
    """A database of its own, and the map in etcd that fits."""
    async with new_database(make_url(quiet.database_url)) as admin:
        async with admin.begin() as connection:
            await connection.run_sync(metadata.create_all)
        made = Fence(make_fence_engine(admin.url.render_as_string(hide_password=False), "test"))
        await made.seed(FIRST)
        left = [RUNNING_OPERATION_KEY, SLOT_MAP_KEY]
        await store.commit(expect={}, puts={}, deletes=left)
        await seed_slot_map(store, FIRST, FIRST)
        yield made
        await made.close()


async def begin(store: Store, first: int = 0, last: int = 99, target: str = "b") -> Operation:
    read = await read_slot_map(store)
    assert read is not None
    known = Known(read[0], FIRST, frozenset(CELLS), frozenset(CELLS))
    wish = Wish(OperationKind.MOVE, "", target, SlotRange(first, last))
    return await start_operation(store, known, read[1], wish, "me", "a test")


async def eventually(what: Callable[[], Awaitable[Any]]) -> Any:
    """Its first true answer."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                if answer := await what():
                    return answer
            except StoreUnavailable:
                pass
            await asyncio.sleep(0.02)


async def steps_of(store: Store, operation_id: str) -> list[Step]:
    item = await store.get(OPERATIONS_PREFIX + operation_id)
    assert item is not None
    return [record.step for record in Operation.from_json(item.value).history]


async def check_done(store: Store, fence: Fence, operation: Operation) -> None:
    """Every step once and in order, one map in both places, the way free, one audit record."""
    order = ["planned", "drained", "fenced", "published", "recovered", "done"]
    assert await steps_of(store, operation.operation_id) == order
    read = await read_slot_map(store)
    assert read is not None
    assert read[0] == await fence.read()
    assert await store.get(RUNNING_OPERATION_KEY) is None
    records = (await store.list(AUDIT_PREFIX)).items.values()
    assert sum(operation.operation_id in record.value for record in records) == 1


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("dies_at", [1, 2, 3, 4])
async def test_another_controller_finishes_what_one_left_at_any_step(
    store: EtcdStore, fence: Fence, dies_at: int, before: bool
) -> None:
    operation = await begin(store)
    with pytest.raises(Crash):
        await Runner(Mortal(store, dies_at, before=before), fence, Calls()).run(
            operation.operation_id
        )
    await Runner(store, fence, Calls()).run(operation.operation_id)
    await check_done(store, fence, operation)
    assert (await fence.read()).at(0)[2:] == ("b", 2)


async def test_between_fence_and_publish_nobody_writes_and_the_map_is_still_the_old_one(
    store: EtcdStore, fence: Fence
) -> None:
    """The crash of pitfall 8: the new owner may write, but takes nothing before it is told."""
    operation = await begin(store)
    with pytest.raises(Crash):
        await Runner(Mortal(store, 2, before=True), fence, Calls()).run(operation.operation_id)
    assert (await fence.read()).at(0)[2:] == ("b", 2)
    read = await read_slot_map(store)
    assert read is not None
    assert read[0] == FIRST
    with pytest.raises(Refusal) as caught:
        await begin(store, 500, 600, "a")
    assert caught.value.reason == "OPERATION_IN_PROGRESS"
    assert caught.value.metadata == {"operation_id": operation.operation_id}
    await Runner(store, fence, Calls()).run(operation.operation_id)
    await check_done(store, fence, operation)


async def test_three_controllers_at_once_do_it_once(store: EtcdStore, fence: Fence) -> None:
    operation = await begin(store)
    await asyncio.gather(
        *(Runner(store, fence, Calls()).run(operation.operation_id) for _ in range(3))
    )
    await check_done(store, fence, operation)


async def test_a_controller_that_slept_through_the_end_does_no_harm(
    store: EtcdStore, fence: Fence
) -> None:
    """It read the operation before the fence, and wakes when the slots are elsewhere again."""
    first = await begin(store)
    with pytest.raises(Crash):
        await Runner(Mortal(store, 2, before=True), fence, Calls()).run(first.operation_id)
    asleep = await store.get(OPERATIONS_PREFIX + first.operation_id)
    assert asleep is not None
    await Runner(store, fence, Calls()).run(first.operation_id)
    second = await begin(store, 0, 99, "a")
    await Runner(store, fence, Calls()).run(second.operation_id)
    await Runner(store, fence, Calls()).step(Operation.from_json(asleep.value), asleep)
    await check_done(store, fence, first)
    await check_done(store, fence, second)
    assert (await fence.read()).at(0)[2:] == ("a", 3)


async def test_an_operation_outlives_a_killed_etcd(
    servers: MeshState, store: EtcdStore, fence: Fence
) -> None:
    operation = await begin(store)
    with pytest.raises(Crash):
        await Runner(Mortal(store, 2, before=True), fence, Calls()).run(operation.operation_id)
    await asyncio.to_thread(launcher.kill, servers.path, "etcd")
    async with asyncio.TaskGroup() as group:
        group.create_task(Runner(store, fence, Calls()).run(operation.operation_id))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(launcher.start, servers.path, "etcd")
    await check_done(store, fence, operation)


async def test_the_fence_waits_for_a_database_that_takes_no_connections(
    quiet: MeshState, store: EtcdStore, fence: Fence
) -> None:
    """While it starts, stops or is full, it refuses in words that SQLAlchemy does not translate."""
    url = make_url(quiet.database_url)
    name = fence._engine.url.database
    server = create_async_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    await fence.close()
    async with server.connect() as connection:
        await connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
        operation = await begin(store)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(Runner(store, fence, Calls()).run(operation.operation_id))
            await asyncio.sleep(0.5)
            assert not running.done()
            await connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
    await check_done(store, fence, operation)
    await server.dispose()


async def test_the_fence_outlives_a_killed_database(
    quiet: MeshState, store: EtcdStore, fence: Fence
) -> None:
    operation = await begin(store)
    await asyncio.to_thread(launcher.kill, quiet.path, "postgres")
    async with asyncio.TaskGroup() as group:
        running = group.create_task(Runner(store, fence, Calls()).run(operation.operation_id))
        await asyncio.sleep(0.3)
        assert not running.done()
        await asyncio.to_thread(launcher.start, quiet.path, "postgres")
    await check_done(store, fence, operation)


@asynccontextmanager
async def write_in_flight(servers: MeshState, cell: str, slot: int) -> AsyncIterator[None]:
    """A cell's transaction that holds its slot, as long as the block lasts."""
    patient = DatabaseSettings(idle_in_transaction_timeout_ms=60_000, transaction_timeout_ms=60_000)
    engine = make_engine(servers.database_url, "test", patient, pool_size=1)
    async with transaction(engine) as driver:
        _, locked = await lock_slots(driver, cell, [slot])
        assert slot in locked.epochs
        yield
    await engine.dispose()


async def alone(servers: MeshState, store: Store, name: str) -> None:
    """Only this controller runs, and it leads."""
    for other in CONTROLLERS:
        if other != name:
            await asyncio.to_thread(launcher.stop, servers.path, other)
    await asyncio.to_thread(launcher.start, servers.path, name)
    await eventually(lambda: store.get(LEADER_KEY))


async def make_true(servers: MeshState, store: Store) -> None:
    """The map in etcd as the database of the controllers has it, whatever other tests did."""
    fence = Fence(make_fence_engine(servers.database_url, "test"))
    fenced = await fence.read()
    await store.commit(expect={}, puts={}, deletes=[RUNNING_OPERATION_KEY, SLOT_MAP_KEY])
    await seed_slot_map(store, fenced, FIRST)
    await fence.close()


async def test_a_controller_killed_at_the_fence_is_replaced_by_another_one(
    servers: MeshState, store: EtcdStore
) -> None:
    await alone(servers, store, "controller")
    await make_true(servers, store)
    slot_map = await read_slot_map(store)
    assert slot_map is not None
    owner = slot_map[0].at(7).cell
    target = "b" if owner == "a" else "a"
    async with write_in_flight(servers, owner, 7):
        operation = await begin(store, 7, 7, target)

        async def drained() -> bool:
            return Step.DRAINED in await steps_of(store, operation.operation_id)

        await eventually(drained)
        await asyncio.to_thread(launcher.kill, servers.path, "controller")
        await asyncio.to_thread(launcher.start, servers.path, "controller-2")
        await asyncio.sleep(0.5)
        assert Step.FENCED not in await steps_of(store, operation.operation_id)
    fence = Fence(make_fence_engine(servers.database_url, "test"))

    async def ended() -> bool:
        return bool(ENDED & set(await steps_of(store, operation.operation_id)))

    await eventually(ended)
    await check_done(store, fence, operation)
    await fence.close()


async def test_a_leader_told_to_stop_leaves_the_way_free(
    servers: MeshState, store: EtcdStore
) -> None:
    """It must not campaign again while it says goodbye to its streams."""
    await alone(servers, store, "controller")
    tls = ca.issue(servers.path / "tls", "watcher", spiffe_id("operator", "watcher"))
    address = servers.address("controller")
    async with grpc.aio.secure_channel(address, tls.channel_credentials()) as channel:
        # A stream like a subscriber's: the goodbye takes as long as it may.
        stub: Any = health_pb2_grpc.HealthStub(channel)
        stream = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await stream.read()).status == health_pb2.HealthCheckResponse.SERVING
        await asyncio.to_thread(launcher.stop, servers.path, "controller")
    assert await store.get(LEADER_KEY) is None


async def test_a_controller_that_starts_while_the_database_is_away_serves_what_etcd_says(
    servers: MeshState, store: EtcdStore
) -> None:
    """Its clients need the map now; `start` returns when it serves."""
    await alone(servers, store, "controller")
    await asyncio.to_thread(launcher.stop, servers.path, "controller")
    await asyncio.to_thread(launcher.kill, servers.path, "postgres")
    try:
        await asyncio.to_thread(launcher.start, servers.path, "controller")
    finally:
        await asyncio.to_thread(launcher.start, servers.path, "postgres")


async def test_an_etcd_that_lost_everything_is_told_what_the_database_enforces(
    servers: MeshState, store: EtcdStore
) -> None:
    await alone(servers, store, "controller")
    await asyncio.to_thread(launcher.stop, servers.path, "controller")
    fence = Fence(make_fence_engine(servers.database_url, "test"))
    before = await fence.read()
    owned = before.at(3)
    there = Move(3, 3, owned.cell, "b" if owned.cell == "a" else "a", owned.epoch + 1)
    await fence.assign([there], "op-by-hand")
    await asyncio.to_thread(launcher.kill, servers.path, "etcd", signal.SIGKILL)
    shutil.rmtree(servers.path / "etcd" / "data")
    await asyncio.to_thread(launcher.start, servers.path, "etcd")
    await asyncio.to_thread(launcher.start, servers.path, "controller")
    read = await eventually(lambda: read_slot_map(store))
    assert read[0] == before.apply([there]) == await fence.read()
    await fence.close()
