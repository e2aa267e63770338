"""The mesh's routing on real parts: gRPC clients that speak xDS, Envoy, and cells behind mTLS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import pytest
import pytest_asyncio

from control.mesh import binaries, ca
from control.xds.server import XdsServer
from control.xds.snapshot import ROUTE, take_snapshot
from control.xds.translate import NodeKind, Topology, read_edge_lua
from router.client.bootstrap import xds_bootstrap
from router.client.tls import TlsFiles
from router.edge.bootstrap import edge_bootstrap
from router.errors import Refusal, abort, details_of
from router.guard import SlotsHere
from router.identity import spiffe_id
from router.slotmap import Move, SlotMap
from router.slots import SLOT_COUNT, SLOT_HEADER, USER_HEADER, slot_of_user

CELLS = ("a", "b", "c")
MOVE = Move(5, 9, "a", "b", 2)
METHOD = "/cellpay.test.Echo/Where"
# gRPC reads GRPC_XDS_BOOTSTRAP once a process; a channel with this argument has a bootstrap and an
# xDS client of its own, so that many meshes may live in one process of tests.
BOOTSTRAP_ARGUMENT = "grpc.TEST_ONLY_DO_NOT_USE_IN_PROD.xds_bootstrap_config"
SOON_S = 30.0


@dataclass
class EchoCell:
    """Answers who it is and which slot it was asked for; with a guard, refuses as cells do."""

    name: str
    address: str = ""
    requests: int = 0
    guard: SlotsHere | None = None
    handler: grpc.GenericRpcHandler = field(init=False)

    def __post_init__(self) -> None:
        self.handler = grpc.method_handlers_generic_handler(
            "cellpay.test.Echo", {"Where": grpc.unary_unary_rpc_method_handler(self._where)}
        )

    async def _where(self, request: bytes, context: Any) -> bytes:
        self.requests += 1
        headers = dict(context.invocation_metadata())
        slot = int(headers[SLOT_HEADER])
        if self.guard is not None:
            try:
                await self.guard.enter(slot)
            except Refusal as refusal:
                await abort(context, refusal)
            self.guard.leave(slot)
        return self._answer(slot, request)

    def _answer(self, slot: int, request: bytes) -> bytes:
        return json.dumps({"cell": self.name, "slot": slot, "sent": request.decode()}).encode()

    def guarded(self, *maps: SlotMap) -> SlotsHere:
        """Has seen these maps, in order, and takes only what the last one gives it."""
        self.guard = SlotsHere(self.name)
        for slot_map in maps:
            self.guard.publish(slot_map)
        return self.guard


@dataclass
class World:
    """An xDS server and three cells; each test says what the mesh looks like."""

    tls_dir: Path
    edge_listen: str
    edge_lua: str
    xds: XdsServer = field(default_factory=XdsServer)
    xds_address: str = ""
    cells: dict[str, EchoCell] = field(default_factory=dict)
    tests: int = 0
    # What a test starts with, and what it is after slots 5 to 9 went from a to b.
    even: SlotMap = field(default_factory=lambda: SlotMap.even(CELLS))

    @property
    def moved(self) -> SlotMap:
        return self.even.apply([MOVE])

    async def begin(self) -> None:
        """A test's own even map: no ACK left over from the test before can be taken for its own."""
        self.tests += 1
        *others, last = SlotMap.even(CELLS).ranges
        cut = last.first + self.tests
        halves = (last._replace(last=cut - 1), last._replace(first=cut, epoch=2))
        self.even = SlotMap((*others, *halves))
        for cell in self.cells.values():
            cell.guard = None
        await self.settled(self.topology())

    def tls(self, kind: str, name: str) -> TlsFiles:
        return ca.issue(self.tls_dir, f"{kind}-{name}", spiffe_id(kind, name))

    def topology(self, slot_map: SlotMap | None = None) -> Topology:
        endpoints = {name: (cell.address,) for name, cell in self.cells.items()}
        chosen = slot_map or self.even
        return Topology(chosen, endpoints, self.edge_listen, self.edge_lua)

    async def settled(self, topology: Topology) -> None:
        """Published, and every subscriber has accepted the routes."""
        self.xds.publish(topology)
        versions = {kind: take_snapshot(topology, kind).types[ROUTE].version for kind in NodeKind}
        await _eventually(
            lambda: all(
                found.acked_version == versions[NodeKind(found.kind)]
                for found in self.xds.subscribers()
            )
        )

    @contextlib.asynccontextmanager
    async def client(self, name: str = "client-1") -> AsyncIterator[Where]:
        """A proxyless gRPC client."""
        bootstrap = xds_bootstrap(self.xds_address, self.tls("service", "client"), name)
        credentials = grpc.xds_channel_credentials(grpc.ssl_channel_credentials())
        options = [(BOOTSTRAP_ARGUMENT, json.dumps(bootstrap)), ("grpc.enable_retries", 0)]
        async with grpc.aio.secure_channel("xds:///cellpay", credentials, options) as channel:
            yield Where(channel)

    @contextlib.asynccontextmanager
    async def through_edge(self) -> AsyncIterator[Where]:
        credentials = self.tls("service", "client").channel_credentials()
        async with grpc.aio.secure_channel(self.edge_listen, credentials) as channel:
            yield Where(channel)


class Where:
    """Asks the mesh which cell answers."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._call: Any = channel.unary_unary(METHOD)

    async def __call__(self, *headers: tuple[str, str], wait: bool = True) -> dict[str, Any]:
        answer = await self._call(
            b"ping", metadata=headers, timeout=SOON_S, wait_for_ready=wait or None
        )
        return dict(json.loads(answer))

    async def slot(self, slot: int) -> str:
        return str((await self((SLOT_HEADER, str(slot))))["cell"])


async def _eventually(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not true():
            await asyncio.sleep(0.01)


def _free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


@contextlib.asynccontextmanager
async def _serving(
    add: Callable[[grpc.aio.Server], None], tls: TlsFiles, address: str = "127.0.0.1:0"
) -> AsyncIterator[str]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add(server)
    port = server.add_secure_port(address, tls.server_credentials())
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def _cell(name: str, tls: TlsFiles) -> AsyncIterator[EchoCell]:
    cell = EchoCell(name)
    async with _serving(lambda server: server.add_generic_rpc_handlers((cell.handler,)), tls) as (
        address
    ):
        cell.address = address
        yield cell


@pytest_asyncio.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    directory = tmp_path_factory.mktemp("xds")
    world = World(directory / "tls", _free_address(), read_edge_lua())
    async with contextlib.AsyncExitStack() as stack:
        for name in CELLS:
            world.cells[name] = await stack.enter_async_context(
                _cell(name, world.tls("cell", name))
            )
        tls = world.tls("controller", "controller-1")
        world.xds_address = await stack.enter_async_context(_serving(world.xds.add_to_server, tls))
        yield world


@pytest.fixture(scope="module")
def envoy(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The edge, as its process ID."""
    directory = tmp_path_factory.mktemp("envoy")
    config = directory / "bootstrap.json"
    document = edge_bootstrap(
        world.xds_address,
        _free_address(),
        world.tls("edge", "edge"),
        "edge-1",
        spiffe_id("controller", ""),
    )
    config.write_text(json.dumps(document))
    command = [str(binaries.find("envoy", {})), "--config-path", str(config)]
    command += ["--concurrency", "1", "--disable-hot-restart", "--log-level", "info"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(SOON_S)


@pytest.fixture(autouse=True)
async def _the_even_map(world: World) -> None:
    await world.begin()


async def test_every_slot_reaches_its_owner_through_xds(world: World) -> None:
    topology = world.topology()
    async with world.client() as where:
        await world.settled(topology)
        found = [await where.slot(slot) for slot in range(SLOT_COUNT)]
    assert found == [topology.slot_map.at(slot).cell for slot in range(SLOT_COUNT)]


async def test_every_slot_reaches_its_owner_through_envoy(world: World, envoy: int) -> None:
    topology = world.topology()
    async with world.through_edge() as where:
        found = [await where.slot(slot) for slot in range(SLOT_COUNT)]
    assert found == [topology.slot_map.at(slot).cell for slot in range(SLOT_COUNT)]


async def _failure_of(where: Where, slot: int) -> grpc.StatusCode:
    """How calls fail once the new endpoints, which no version of routes tells of, have arrived."""
    async with asyncio.timeout(SOON_S):
        while True:
            try:
                await where((SLOT_HEADER, str(slot)), wait=False)
            except grpc.aio.AioRpcError as error:
                return error.code()


USERS = ("123456789", "u1", "用户-42", "Zoë", "naïve café", "🙂🙂", "a%b", "x" * 200, "%41")


@pytest.mark.parametrize("user", USERS)
async def test_the_edge_computes_the_slot_that_the_router_computes(
    world: World, envoy: int, user: str
) -> None:
    async with world.through_edge() as where:
        answer = await where((USER_HEADER, quote(user, safe="")))
    assert answer["slot"] == slot_of_user(user)
    assert answer["cell"] == world.topology().slot_map.at(slot_of_user(user)).cell


async def _answers_of(where: Where, slot: int, target: str) -> list[str]:
    """What a client that never stops calling sees until the target answers."""
    seen: list[str] = []
    async with asyncio.timeout(SOON_S):
        while seen[-1:] != [target]:
            seen.append(await where.slot(slot))
    return seen


@pytest.mark.parametrize("way", ["xds", "edge"])
async def test_a_flip_of_owner_reroutes_without_a_failed_call(
    world: World, envoy: int, way: str
) -> None:
    async with world.client() if way == "xds" else world.through_edge() as where:
        assert await where.slot(7) == "a"
        world.xds.publish(world.topology(world.moved))
        assert set(await _answers_of(where, 7, "b")) <= {"a", "b"}
        assert [await where.slot(slot) for slot in (4, 5, 9, 10)] == ["a", "b", "b", "a"]


async def test_the_edge_sends_a_call_on_to_the_new_home_of_its_slot(
    world: World, envoy: int
) -> None:
    moved = world.moved
    world.cells["a"].guarded(world.even, moved)
    async with world.through_edge() as where, asyncio.TaskGroup() as group:
        before = world.cells["a"].requests
        call = group.create_task(where.slot(7))
        await _eventually(lambda: world.cells["a"].requests > before)
        world.xds.publish(world.topology(moved))
    assert call.result() == "b"


async def test_the_edge_waits_for_a_new_home_that_has_not_heard_of_it(
    world: World, envoy: int
) -> None:
    moved = world.moved
    world.cells["a"].guarded(world.even, moved)
    guard = world.cells["b"].guarded(world.even)
    await world.settled(world.topology(moved))
    async with world.through_edge() as where, asyncio.TaskGroup() as group:
        before = world.cells["b"].requests
        call = group.create_task(where.slot(7))
        await _eventually(lambda: world.cells["b"].requests > before)
        guard.publish(moved)
    assert call.result() == "b"


@pytest.mark.parametrize(
    ("had_it", "code", "reason"),
    [
        (True, grpc.StatusCode.UNAVAILABLE, "SLOT_MOVED"),
        (False, grpc.StatusCode.FAILED_PRECONDITION, "NOT_HOME"),
    ],
)
async def test_a_refusal_that_lasts_comes_through_the_edge_as_the_cell_gave_it(
    world: World, envoy: int, had_it: bool, code: grpc.StatusCode, reason: str
) -> None:
    world.cells["a"].guarded(*([world.even] if had_it else []), world.moved)
    async with world.through_edge() as where:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await where.slot(7)
    assert (caught.value.code(), details_of(caught.value).reason) == (code, reason)
    assert {"location", "x-cellpay-refused"}.isdisjoint(
        key for key, _ in [*caught.value.initial_metadata(), *caught.value.trailing_metadata()]
    )


async def test_the_user_wins_over_the_slot_at_the_edge(world: World, envoy: int) -> None:
    async with world.through_edge() as where:
        answer = await where((USER_HEADER, "u1"), (SLOT_HEADER, "3"))
    assert answer["slot"] == slot_of_user("u1") != 3


@pytest.mark.parametrize("slot", [None, "", "1024", "-1", "1.5", "abc", "7,8"])
async def test_the_edge_says_clearly_that_a_request_names_no_home(
    world: World, envoy: int, slot: str | None
) -> None:
    headers = [] if slot is None else [(SLOT_HEADER, slot)]
    async with world.through_edge() as where:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await where(*headers)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "x-user-id" in str(caught.value.details())


@pytest.mark.parametrize("way", ["xds", "edge"])
async def test_a_cell_that_presents_another_cells_identity_is_refused(
    world: World, envoy: int, way: str
) -> None:
    async with _cell("impostor", world.tls("cell", "b")) as impostor:
        topology = world.topology()
        endpoints = {**topology.endpoints, "a": (impostor.address,)}
        await world.settled(replace(topology, endpoints=endpoints))
        async with world.client() if way == "xds" else world.through_edge() as where:
            assert await where.slot(SLOT_COUNT - 1) == "c"
            assert await _failure_of(where, 7) == grpc.StatusCode.UNAVAILABLE
        assert impostor.requests == 0


@pytest.mark.parametrize("way", ["xds", "edge"])
async def test_a_dead_cell_fails_its_own_slots_only_until_they_move(
    world: World, envoy: int, way: str
) -> None:
    alive = {name: (cell.address,) for name, cell in world.cells.items() if name != "a"}
    dead = replace(world.topology(), endpoints=alive)
    await world.settled(dead)
    async with world.client() if way == "xds" else world.through_edge() as where:
        assert await where.slot(SLOT_COUNT - 1) == "c"
        assert await _failure_of(where, 7) == grpc.StatusCode.UNAVAILABLE
        given = [Move(entry.first, entry.last, "a", "b", 2) for entry in world.even.owned_by("a")]
        await world.settled(replace(dead, slot_map=world.even.apply(given)))
        await _answers_of(where, 7, "b")


async def test_a_client_of_another_ca_is_refused_by_all(
    world: World, envoy: int, tmp_path: Path
) -> None:
    stranger = ca.issue(tmp_path, "client", spiffe_id("service", "client"))
    mixed = TlsFiles(world.tls("service", "client").ca, stranger.certificate, stranger.key)
    for address in (world.cells["a"].address, world.xds_address, world.edge_listen):
        async with grpc.aio.secure_channel(address, mixed.channel_credentials()) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await Where(channel)((SLOT_HEADER, "7"), wait=False)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE, address


async def test_an_edge_that_refuses_its_configuration_is_counted_and_goes_on_with_the_old_one(
    world: World, envoy: int
) -> None:
    async with world.through_edge() as where:
        assert await where.slot(7) == "a"
        world.xds.publish(replace(world.topology(), edge_lua="this is not Lua"))
        await _eventually(lambda: any(found.nacks for found in world.xds.subscribers()))
        (edge,) = [found for found in world.xds.subscribers() if found.nacks]
        assert (edge.node_id, edge.kind) == ("edge-1", NodeKind.EDGE)
        assert "lua" in edge.last_nack.lower()
        assert await where.slot(7) == "a"


async def test_many_clients_follow_and_two_meshes_live_in_one_process(world: World) -> None:
    other = XdsServer()
    all_c = replace(world.topology(), slot_map=SlotMap.even(["c"]))
    other.publish(all_c)
    tls = world.tls("controller", "controller-1")
    async with _serving(other.add_to_server, tls) as address, contextlib.AsyncExitStack() as stack:
        here = [
            await stack.enter_async_context(world.client(f"client-{number}"))
            for number in range(20)
        ]
        there = await stack.enter_async_context(replace(world, xds_address=address).client())
        assert [await where.slot(7) for where in here] == ["a"] * 20
        assert await there.slot(7) == "c"
        moved = world.moved
        world.xds.publish(world.topology(moved))
        for where in here:
            await _answers_of(where, 7, "b")
        assert await there.slot(7) == "c"
