"""Traffic policies on real parts: a gRPC client that speaks xDS, and Envoy, do what they say."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from control.mesh import binaries, ca
from control.xds.server import XdsServer
from control.xds.snapshot import CLUSTER, LISTENER, ROUTE, take_snapshot
from control.xds.traffic import TrafficRules
from control.xds.translate import NodeKind, Topology, read_edge_lua
from router.client.bootstrap import xds_bootstrap
from router.client.tls import TlsFiles
from router.edge.bootstrap import edge_bootstrap
from router.errors import Refusal, abort, details_of
from router.identity import spiffe_id
from router.policies.model import (
    AbortCode,
    CircuitBreaker,
    EdgeRate,
    Fault,
    OutlierDetection,
    Retry,
    RetryCode,
    Traffic,
)
from router.slotmap import SlotMap
from router.slots import SLOT_HEADER

SERVICE = "cellpay.test.Traffic"
BOOTSTRAP_ARGUMENT = "grpc.TEST_ONLY_DO_NOT_USE_IN_PROD.xds_bootstrap_config"
PATIENCE_S = 30.0
_CODE = grpc.StatusCode


@dataclass
class Process:
    """One process of the cell: fails, waits or answers, as the test says."""

    name: str
    address: str = ""
    calls: int = 0
    failures_left: int = 0
    fails: bool = False
    refusal: Refusal | None = None
    open: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: bytes, context: Any) -> bytes:
        self.calls += 1
        if request == b"wait":
            await self.open.wait()
        if self.refusal is not None:
            await abort(context, self.refusal)
        if self.fails or self.failures_left > 0:
            self.failures_left -= 1
            await context.abort(_CODE.INTERNAL, "as the test says")
        return self.name.encode()

    @property
    def handler(self) -> grpc.GenericRpcHandler:
        unary: Any = grpc.unary_unary_rpc_method_handler(self.answer)
        return grpc.method_handlers_generic_handler(SERVICE, {"One": unary, "Two": unary})


@dataclass
class World:
    tls_dir: Path
    edge_listen: str
    xds: XdsServer = field(default_factory=XdsServer)
    xds_address: str = ""
    processes: list[Process] = field(default_factory=list)

    def tls(self, kind: str, name: str) -> TlsFiles:
        return ca.issue(self.tls_dir, f"{kind}-{name}", spiffe_id(kind, name))

    def topology(self, rules: TrafficRules, processes: int = 1) -> Topology:
        addresses = [item.address for item in self.processes[:processes]]
        return Topology(
            SlotMap.even(["a"]), {"a": addresses}, self.edge_listen, read_edge_lua(), rules
        )

    async def apply(
        self, *traffic: Traffic, edge: tuple[EdgeRate, ...] = (), processes: int = 1
    ) -> None:
        """In force at every subscriber: nothing else tells when a client has taken clusters."""
        topology = self.topology(TrafficRules(traffic, edge), processes)
        self.xds.publish(topology)
        wanted = {kind: take_snapshot(topology, kind).types for kind in NodeKind}
        await eventually(
            lambda: all(
                stream.subscriptions[url].acked_version == wanted[stream.kind][url].version
                for stream in self.xds._streams.values()
                for url in (LISTENER, ROUTE, CLUSTER)
                if url in stream.subscriptions
            )
        )
        assert not [item.last_nack for item in self.xds.subscribers() if item.nacks]

    @contextlib.asynccontextmanager
    async def calls(self, way: str) -> AsyncIterator[Calls]:
        if way == "edge":
            credentials = self.tls("service", "client").channel_credentials()
            options = [("grpc.enable_retries", 0)]
            async with grpc.aio.secure_channel(self.edge_listen, credentials, options) as channel:
                yield Calls(channel)
            return
        bootstrap = xds_bootstrap(self.xds_address, self.tls("service", "client"), "client-1")
        xds = grpc.xds_channel_credentials(grpc.ssl_channel_credentials())
        argument = [(BOOTSTRAP_ARGUMENT, json.dumps(bootstrap))]
        async with grpc.aio.secure_channel("xds:///cellpay", xds, argument) as channel:
            yield Calls(channel)


class Calls:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._methods: dict[str, Any] = {
            name: channel.unary_unary(f"/{SERVICE}/{name}") for name in ("One", "Two")
        }

    async def __call__(
        self,
        method: str = "One",
        request: bytes = b"",
        slot: int = 7,
        timeout: float | None = PATIENCE_S,
    ) -> str:
        answer: bytes = await self._methods[method](
            request, metadata=((SLOT_HEADER, str(slot)),), timeout=timeout, wait_for_ready=None
        )
        return answer.decode()

    async def failure(self, *args: Any, **kwargs: Any) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self(*args, **kwargs)
        return caught.value

    async def code(self, *args: Any, **kwargs: Any) -> grpc.StatusCode:
        try:
            await self(*args, **kwargs)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return _CODE.OK


async def eventually(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():
            await asyncio.sleep(0.01)


def _free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


@contextlib.asynccontextmanager
async def _serving(add: Callable[[grpc.aio.Server], None], tls: TlsFiles) -> AsyncIterator[str]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add(server)
    port = server.add_secure_port("127.0.0.1:0", tls.server_credentials())
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@pytest_asyncio.fixture(scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    world = World(tmp_path_factory.mktemp("traffic") / "tls", _free_address())
    async with contextlib.AsyncExitStack() as stack:
        for name in ("one", "two"):
            process = Process(name)
            process.address = await stack.enter_async_context(
                _serving(
                    lambda server, process=process: server.add_generic_rpc_handlers(  # type: ignore[misc]
                        (process.handler,)
                    ),
                    world.tls("cell", "a"),
                )
            )
            world.processes.append(process)
        controller = world.tls("controller", "controller-1")
        world.xds_address = await stack.enter_async_context(
            _serving(world.xds.add_to_server, controller)
        )
        world.xds.publish(world.topology(TrafficRules()))
        yield world


@pytest.fixture(scope="module")
def _envoy(servers: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    directory = tmp_path_factory.mktemp("traffic-envoy")
    document = edge_bootstrap(
        servers.xds_address,
        _free_address(),
        servers.tls("edge", "edge"),
        "edge-1",
        spiffe_id("controller", ""),
    )
    config = directory / "bootstrap.json"
    config.write_text(json.dumps(document))
    command = [str(binaries.find("envoy", {})), "--config-path", str(config)]
    command += ["--concurrency", "1", "--disable-hot-restart", "--log-level", "info"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)
    try:
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@pytest.fixture
async def world(servers: World, _envoy: None) -> AsyncIterator[World]:
    for process in servers.processes:
        process.fails, process.calls, process.failures_left = False, 0, 0
        process.open, process.refusal = asyncio.Event(), None
    yield servers
    await servers.apply()


BOTH = pytest.mark.parametrize("way", ["xds", "edge"])


async def _ready(calls: Calls) -> None:
    """Connected: Envoy may have just begun to listen."""
    async with asyncio.timeout(PATIENCE_S):
        while await calls.code() != _CODE.OK:
            await asyncio.sleep(0.02)


@BOTH
async def test_more_calls_at_once_than_the_breaker_allows_fail_at_once(
    world: World, way: str
) -> None:
    async with world.calls(way) as calls, asyncio.TaskGroup() as group:
        await _ready(calls)
        await world.apply(Traffic(circuit_breaker=CircuitBreaker(2)))
        before = world.processes[0].calls
        held = [group.create_task(calls("One", b"wait")) for _ in range(2)]
        await eventually(lambda: world.processes[0].calls >= before + 2)
        async with asyncio.timeout(PATIENCE_S):
            while await calls.code() != _CODE.UNAVAILABLE:
                pass
        before = world.processes[0].calls
        assert await calls.code() == _CODE.UNAVAILABLE
        assert world.processes[0].calls == before
        world.processes[0].open.set()
        assert [await task for task in held] == ["one", "one"]
        assert await calls() == "one"


@BOTH
async def test_a_method_has_a_timeout_of_its_own(world: World, way: str) -> None:
    async with world.calls(way) as calls, asyncio.TaskGroup() as group:
        await _ready(calls)
        await world.apply(Traffic(methods=(f"{SERVICE}/One",), timeout_ms=200))
        other = group.create_task(calls("Two", b"wait"))
        # Envoy answers a stream that lasts too long with 408, which gRPC calls UNKNOWN or so; a
        # call with a deadline gets DEADLINE_EXCEEDED from its own client or from the proxy.
        error = await calls.failure("One", b"wait")
        assert error.code() in {_CODE.DEADLINE_EXCEEDED, _CODE.UNAVAILABLE}
        assert not other.done()
        world.processes[0].open.set()
        assert await other == "one"


@BOTH
async def test_calls_are_retried_for_codes_that_the_policy_names(world: World, way: str) -> None:
    process = world.processes[0]
    policy = Traffic(retry=Retry((RetryCode.INTERNAL,), retries_max=2, backoff_base_ms=10))
    async with world.calls(way) as calls:
        await _ready(calls)
        process.failures_left = 1
        assert await calls.code() == _CODE.INTERNAL
        await world.apply(policy)
        process.calls, process.failures_left = 0, 2
        assert await calls() == "one"
        assert process.calls == 3
        process.calls, process.failures_left = 0, 99
        assert await calls.code() == _CODE.INTERNAL
        assert process.calls == 3


@BOTH
async def test_faults_are_injected_into_the_method_that_is_named_and_no_other(
    world: World, way: str
) -> None:
    async with world.calls(way) as calls:
        await _ready(calls)
        fault = Fault(abort_code=AbortCode.RESOURCE_EXHAUSTED, abort_percent=100)
        await world.apply(Traffic(methods=(f"{SERVICE}/One",), fault=fault))
        world.processes[0].calls = 0
        assert await calls.code("One") == _CODE.RESOURCE_EXHAUSTED
        assert await calls.code("Two") == _CODE.OK
        assert world.processes[0].calls == 1
        late = Fault(delay_ms=60_000, delay_percent=100)
        await world.apply(Traffic(methods=(f"{SERVICE}/One",), fault=late))
        assert await calls.code("One", timeout=0.3) == _CODE.DEADLINE_EXCEEDED
        assert world.processes[0].calls == 1
        await world.apply()
        assert await calls.code("One") == _CODE.OK


@BOTH
async def test_a_process_that_fails_is_left_out_and_the_rest_of_the_cell_answers(
    world: World, way: str
) -> None:
    outliers = OutlierDetection(
        interval_ms=200, base_ejection_ms=60_000, ejected_percent_max=50, failure_percent=50,
        requests_min=5, hosts_min=2,
    )  # fmt: skip
    never = Retry((RetryCode.CANCELLED,), retries_max=1)
    async with world.calls(way) as calls:
        await world.apply(Traffic(outlier_detection=outliers, retry=never), processes=2)
        await _ready(calls)
        world.processes[1].fails = True
        async with asyncio.timeout(PATIENCE_S):
            while True:
                codes = Counter([await calls.code(slot=slot) for slot in range(0, 1024, 16)])
                if codes[_CODE.OK] == 64:
                    break
        before = world.processes[1].calls
        assert {await calls(slot=slot) for slot in range(0, 1024, 16)} == {"one"}
        assert world.processes[1].calls == before


async def test_the_edge_refuses_what_is_over_its_rate_and_says_when_to_come_again(
    world: World,
) -> None:
    async with world.calls("edge") as calls:
        await _ready(calls)
        await world.apply(edge=(EdgeRate(1, 1, (f"{SERVICE}/One",)),))
        async with asyncio.timeout(PATIENCE_S):
            while await calls.code("One") == _CODE.OK:
                pass
        error = await calls.failure("One")
        assert error.code() == _CODE.RESOURCE_EXHAUSTED
        details = details_of(error)
        assert (details.reason, details.retry_after_ms) == ("RATE_LIMITED", 1000)
        assert {await calls("Two") for _ in range(20)} == {"one"}


async def test_the_edge_does_not_try_again_what_is_switched_off(world: World) -> None:
    process = world.processes[0]
    async with world.calls("edge") as calls:
        await _ready(calls)
        process.calls = 0
        process.refusal = Refusal(_CODE.UNAVAILABLE, "FEATURE_DEGRADED", "later", retry_after_ms=9)
        error = await calls.failure()
        details = details_of(error)
    assert (error.code(), details.reason) == (_CODE.UNAVAILABLE, "FEATURE_DEGRADED")
    assert details.retry_after_ms == 9
    assert process.calls == 1
