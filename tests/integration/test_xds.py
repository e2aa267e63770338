"""The mesh's routing on real parts: gRPC clients that speak xDS, Envoy, and cells behind mTLS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
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
from router.identity import spiffe_id
from router.slotmap import Move, SlotMap
from router.slots import SLOT_COUNT, SLOT_HEADER, USER_HEADER, slot_of_user

CELLS = ("a", "b", "c")
METHOD = "/cellpay.test.Echo/Where"
# gRPC reads GRPC_XDS_BOOTSTRAP once a process; a channel with this argument has a bootstrap and an
# xDS client of its own, so that many meshes may live in one process of tests.
BOOTSTRAP_ARGUMENT = "grpc.TEST_ONLY_DO_NOT_USE_IN_PROD.xds_bootstrap_config"
SOON_S = 30.0


@dataclass
class EchoCell:
    """Answers who it is and which slot it was asked for; refuses slots that are not its own."""

    name: str
    address: str = ""
    requests: int = 0
    owned: frozenset[int] | None = None
    handler: grpc.GenericRpcHandler = field(init=False)

    def __post_init__(self) -> None:
        self.handler = grpc.method_handlers_generic_handler(
            "cellpay.test.Echo", {"Where": grpc.unary_unary_rpc_method_handler(self._where)}
        )

    async def _where(self, request: bytes, context: Any) -> bytes:
        self.requests += 1
        headers = dict(context.invocation_metadata())
        slot = int(headers[SLOT_HEADER])
        if self.owned is not None and slot not in self.owned:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"slot {slot} is not here")
        return json.dumps({"cell": self.name, "slot": slot, "sent": request.decode()}).encode()


@dataclass
class World:
    """An xDS server and three cells; each test says what the mesh looks like."""

    tls_dir: Path
    edge_listen: str
    edge_lua: str
    xds: XdsServer = field(default_factory=XdsServer)
    xds_address: str = ""
    cells: dict[str, EchoCell] = field(default_factory=dict)

    def tls(self, kind: str, name: str) -> TlsFiles:
        return ca.issue(self.tls_dir, f"{kind}-{name}", spiffe_id(kind, name))

    def topology(self, slot_map: SlotMap | None = None) -> Topology:
        endpoints = {name: cell.address for name, cell in self.cells.items()}
        chosen = slot_map or SlotMap.even(CELLS)
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


async def _eventually(true: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(SOON_S):
        while True:
            found = true()
            if found if isinstance(found, bool) else await found:
                return
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
    add: Callable[[grpc.aio.Server], None] = lambda server: server.add_generic_rpc_handlers(  # noqa: E731
        (cell.handler,)
    )
    async with _serving(add, tls) as address:
        cell.address = address
        yield cell


@pytest_asyncio.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    directory = tmp_path_factory.mktemp("xds")
    world = World(directory / "tls", _free_address(), read_edge_lua())
    async with contextlib.AsyncExitStack() as stack:
        for name in CELLS:
            world.cells[name] = await stack.enter_async_context(_cell(name, world.tls("cell", name)))
        tls = world.tls("controller", "controller-1")
        world.xds_address = await stack.enter_async_context(
            _serving(world.xds.add_to_server, tls)
        )
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
def _the_even_map(world: World) -> None:
    for cell in world.cells.values():
        cell.owned = None
    world.xds.publish(world.topology())


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


USERS = ("123456789", "u1", "用户-42", "Zoë", "naïve café", "🙂🙂", "a%b", "x" * 200, "%41")


@pytest.mark.parametrize("user", USERS)
async def test_the_edge_computes_the_slot_that_the_router_computes(
    world: World, envoy: int, user: str
) -> None:
    async with world.through_edge() as where:
        answer = await where((USER_HEADER, quote(user, safe="")))
    assert answer["slot"] == slot_of_user(user)
    assert answer["cell"] == world.topology().slot_map.at(slot_of_user(user)).cell


async def _answers(world: World, where: Where, moved: SlotMap, slot: int, target: str) -> list[str]:
    """What a client that never stops calling sees while the owner changes."""
    seen = [await where.slot(slot)]
    world.xds.publish(world.topology(moved))
    async with asyncio.timeout(SOON_S):
        while seen[-1] != target:
            seen.append(await where.slot(slot))
    return seen


@pytest.mark.parametrize("way", ["xds", "edge"])
async def test_a_flip_of_owner_reroutes_without_a_failed_call(
    world: World, envoy: int, way: str
) -> None:
    moved = SlotMap.even(CELLS).apply([Move(5, 9, "a", "b", 2)])
    async with world.client() if way == "xds" else world.through_edge() as where:
        seen = await _answers(world, where, moved, 7, "b")
        assert seen[0] == "a"
        assert set(seen) == {"a", "b"}
        assert [await where.slot(slot) for slot in (4, 5, 9, 10)] == ["a", "b", "b", "a"]


async def test_the_edge_hides_a_cell_that_refuses_what_it_gave_away(
    world: World, envoy: int
) -> None:
    moved = SlotMap.even(CELLS).apply([Move(5, 9, "a", "b", 2)])
    world.cells["a"].owned = moved.slots_of("a")
    async with world.through_edge() as where:
        before = world.cells["a"].requests
        async with asyncio.TaskGroup() as group:
            call = group.create_task(where.slot(7))
            await _eventually(lambda: world.cells["a"].requests > before)
            world.xds.publish(world.topology(moved))
    assert call.result() == "b"
