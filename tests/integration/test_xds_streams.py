"""What the xDS server says on a stream, and what it makes of answers that no good client gives."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from control.xds.server import SubscriberStatus, XdsServer
from control.xds.snapshot import (
    CLUSTER,
    ENDPOINT,
    LISTENER,
    ROUTE,
    SENDING_ORDER,
    take_snapshot,
)
from control.xds.traffic import TrafficRules
from control.xds.translate import NodeKind, Topology
from router.policies.model import CircuitBreaker, Traffic
from router.slotmap import Move, SlotMap

CELLS = ("a", "b", "c")
EVEN = SlotMap.even(CELLS)
MOVED = EVEN.apply([Move(5, 9, "a", "b", 2)])
ENDPOINTS = {cell: (f"127.0.0.1:{7000 + number}",) for number, cell in enumerate(CELLS)}
TOPOLOGY = Topology(EVEN, ENDPOINTS, "127.0.0.1:8443", "-- Lua")
SOON_S = 30.0

MESSAGES = {
    CLUSTER: cluster_pb2.Cluster,
    ENDPOINT: endpoint_pb2.ClusterLoadAssignment,
    LISTENER: listener_pb2.Listener,
}


class Subscriber:
    """Speaks ADS by hand, to say what well-behaved clients do not."""

    def __init__(self, xds: XdsServer, call: Any, node_id: str) -> None:
        self._xds = xds
        self._call = call
        self.node_id = node_id

    async def ask(self, type_url: str, *names: str, **fields: Any) -> None:
        request = discovery_pb2.DiscoveryRequest(type_url=type_url, resource_names=names, **fields)
        request.node.id = self.node_id
        await self._call.write(request)

    async def ack(self, response: Any, *names: str) -> None:
        versions = {"version_info": response.version_info, "response_nonce": response.nonce}
        await self.ask(response.type_url, *names, **versions)

    async def nack(self, response: Any, why: str, *names: str) -> None:
        request = discovery_pb2.DiscoveryRequest(
            type_url=response.type_url, resource_names=names, response_nonce=response.nonce
        )
        request.error_detail.message = why
        await self._call.write(request)

    async def receive(self) -> Any:
        async with asyncio.timeout(SOON_S):
            return await self._call.read()

    def status(self) -> SubscriberStatus:
        (found,) = [x for x in self._xds.subscribers() if x.node_id == self.node_id]
        return found


def _names(response: Any) -> set[str]:
    found = set()
    for packed in response.resources:
        message: Any = MESSAGES[response.type_url]()
        assert packed.Unpack(message)
        found.add(message.cluster_name if response.type_url == ENDPOINT else message.name)
    return found


async def _eventually(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not true():
            await asyncio.sleep(0.01)


@pytest.fixture
def xds() -> XdsServer:
    server = XdsServer()
    server.publish(TOPOLOGY)
    return server


@pytest.fixture
async def stub(xds: XdsServer) -> AsyncIterator[Any]:
    server = grpc.aio.server()
    xds.add_to_server(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
    await server.stop(0)


@contextlib.asynccontextmanager
async def _subscriber(
    xds: XdsServer, stub: Any, node_id: str = "client-by-hand"
) -> AsyncIterator[Subscriber]:
    call = stub.StreamAggregatedResources()
    yield Subscriber(xds, call, node_id)
    call.cancel()
    await _eventually(lambda: not xds.subscribers())


async def test_a_subscriber_gets_exactly_the_names_it_asked_for(xds: XdsServer, stub: Any) -> None:
    async with _subscriber(xds, stub) as subscriber:
        await subscriber.ask(CLUSTER, "cell-a", "cell-nowhere")
        first = await subscriber.receive()
        assert _names(first) == {"cell-a"}
        await subscriber.ask(ENDPOINT, "cell-b")
        assert _names(await subscriber.receive()) == {"cell-b"}
        await subscriber.ack(first, "cell-a", "cell-c")
        assert _names(await subscriber.receive()) == {"cell-a", "cell-c"}


async def test_envoys_wildcard_gets_all_clusters(xds: XdsServer, stub: Any) -> None:
    async with _subscriber(xds, stub, "edge-by-hand") as subscriber:
        await subscriber.ask(CLUSTER)
        assert _names(await subscriber.receive()) == {"cell-a", "cell-b", "cell-c"}
        await subscriber.ask(LISTENER)
        assert _names(await subscriber.receive()) == {"edge"}
        assert subscriber.status().kind == NodeKind.EDGE


async def test_what_was_given_up_is_sent_when_it_is_asked_for_again(
    xds: XdsServer, stub: Any
) -> None:
    async with _subscriber(xds, stub) as subscriber:
        await subscriber.ask(CLUSTER, "cell-a", "cell-b")
        first = await subscriber.receive()
        await subscriber.ack(first, "cell-a")
        await subscriber.ack(first, "cell-a", "cell-b")
        assert _names(await subscriber.receive()) == {"cell-a", "cell-b"}


async def test_a_nack_is_counted_and_kept_and_the_next_version_is_still_sent(
    xds: XdsServer, stub: Any
) -> None:
    async with _subscriber(xds, stub) as subscriber:
        await subscriber.ask(ROUTE, "cellpay")
        before = xds.nacks
        await subscriber.nack(await subscriber.receive(), "bad range " + "x" * 5000, "cellpay")
        await _eventually(lambda: subscriber.status().nacks == 1)
        assert xds.nacks == before + 1
        assert subscriber.status().acked_version == ""
        moved = replace(TOPOLOGY, slot_map=MOVED)
        xds.publish(moved)
        second = await subscriber.receive()
        assert second.version_info == take_snapshot(moved, NodeKind.CLIENT).types[ROUTE].version
        await subscriber.ack(second, "cellpay")
        await _eventually(lambda: subscriber.status().acked_version == second.version_info)
        assert subscriber.status().nacks == 1
        assert subscriber.status().last_nack.startswith("bad range")
        assert len(subscriber.status().last_nack) <= 1000


async def test_an_answer_to_something_older_is_ignored(xds: XdsServer, stub: Any) -> None:
    async with _subscriber(xds, stub) as subscriber:
        await subscriber.ask(ROUTE, "cellpay")
        first = await subscriber.receive()
        xds.publish(replace(TOPOLOGY, slot_map=MOVED))
        second = await subscriber.receive()
        await subscriber.nack(first, "late", "cellpay")
        await subscriber.ack(first, "cellpay")
        await subscriber.ack(second, "cellpay")
        await _eventually(lambda: subscriber.status().acked_version == second.version_info)
        assert subscriber.status().nacks == 0


async def test_a_slow_subscriber_skips_to_the_newest_version(xds: XdsServer, stub: Any) -> None:
    async with _subscriber(xds, stub) as subscriber:
        await subscriber.ask(ROUTE, "cellpay")
        await subscriber.receive()
        for last in range(5, 105):
            newest = replace(TOPOLOGY, slot_map=EVEN.apply([Move(5, last, "a", "b", 2)]))
            xds.publish(newest)
        response = await subscriber.receive()
    assert response.version_info == take_snapshot(newest, NodeKind.CLIENT).types[ROUTE].version


async def _subscribed_to_all(subscriber: Subscriber) -> list[Any]:
    for type_url in (ROUTE, LISTENER):
        await subscriber.ask(type_url, "edge")
        await subscriber.ack(await subscriber.receive(), "edge")
    await subscriber.ask(CLUSTER)
    await subscriber.ack(await subscriber.receive())
    cells = [f"cell-{cell}" for cell in "abcd"]
    await subscriber.ask(ENDPOINT, *cells)
    await subscriber.ack(await subscriber.receive(), *cells)
    return cells


async def test_an_update_makes_before_it_breaks(xds: XdsServer, stub: Any) -> None:
    async with _subscriber(xds, stub, "edge-by-hand") as subscriber:
        cells = await _subscribed_to_all(subscriber)
        given = [Move(entry.first, entry.last, "a", "d", 2) for entry in EVEN.owned_by("a")]
        endpoints = {**ENDPOINTS, "d": ("127.0.0.1:1",)}
        del endpoints["a"]
        changed = replace(
            TOPOLOGY, slot_map=EVEN.apply(given), endpoints=endpoints, edge_lua="-- x"
        )
        xds.publish(changed)
        update = [await subscriber.receive() for _ in SENDING_ORDER]
        assert [response.type_url for response in update] == list(SENDING_ORDER)
        assert _names(update[0]) == {"cell-a", "cell-b", "cell-c", "cell-d"}
        for response, names in zip(update, ([], cells, ["edge"], ["edge"]), strict=True):
            await subscriber.ack(response, *names)
        last = await subscriber.receive()
        assert last.type_url == CLUSTER
        assert _names(last) == {"cell-b", "cell-c", "cell-d"}


async def test_who_refuses_the_new_routes_keeps_the_clusters_of_the_old(
    xds: XdsServer, stub: Any
) -> None:
    async with _subscriber(xds, stub, "edge-by-hand") as subscriber:
        await _subscribed_to_all(subscriber)
        only_c = replace(TOPOLOGY, slot_map=SlotMap.even(["c"]), endpoints={})
        xds.publish(only_c)
        update = {}
        while ROUTE not in update:
            response = await subscriber.receive()
            update[response.type_url] = response
        await subscriber.nack(update[ROUTE], "no", "edge")
        await subscriber.ack(update[CLUSTER])
        await _eventually(lambda: subscriber.status().nacks == 1)
        assert _names(update[CLUSTER]) == {"cell-a", "cell-b", "cell-c"}
        xds.publish(replace(only_c, edge_lua="-- x"))
        # Clusters come first: they would have come before this, had they been taken away.
        assert (await subscriber.receive()).type_url == LISTENER


async def test_delta_is_answered_as_unimplemented(xds: XdsServer, stub: Any) -> None:
    call = stub.DeltaAggregatedResources()
    # It may have ended before there is anything to write to.
    with contextlib.suppress(grpc.aio.AioRpcError):
        await call.write(discovery_pb2.DeltaDiscoveryRequest(type_url=CLUSTER))
    async with asyncio.timeout(SOON_S):
        assert await call.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_an_unfit_topology_changes_nothing(xds: XdsServer, stub: Any) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        xds.publish(replace(TOPOLOGY, endpoints={"a": ("127.0.0.1:port",)}))
    async with _subscriber(xds, stub) as subscriber:
        await subscriber.ask(ENDPOINT, "cell-a")
        response = await subscriber.receive()
    assert response.version_info == take_snapshot(TOPOLOGY, NodeKind.CLIENT).types[ENDPOINT].version


async def test_a_subscriber_from_before_the_first_topology_is_answered_when_it_comes() -> None:
    early = XdsServer()
    server = grpc.aio.server()
    early.add_to_server(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        ads: Any = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
        async with _subscriber(early, ads) as subscriber:
            await subscriber.ask(LISTENER, "cellpay")
            await _eventually(lambda: bool(early.subscribers()))
            early.publish(TOPOLOGY)
            assert _names(await subscriber.receive()) == {"cellpay"}
    await server.stop(0)


async def test_an_edge_is_sent_endpoints_again_after_a_cluster_that_changed(
    xds: XdsServer, stub: Any
) -> None:
    """Envoy once waited 15 s with each new circuit breaker, for endpoints that it had."""
    rules = TrafficRules((Traffic(("a",), circuit_breaker=CircuitBreaker(7)),))
    async with _subscriber(xds, stub, "edge-by-hand") as edge:
        await edge.ask(CLUSTER)
        await edge.ack(await edge.receive())
        await edge.ask(ENDPOINT, "cell-a")
        await edge.ack(await edge.receive(), "cell-a")
        xds.publish(replace(TOPOLOGY, traffic=rules))
        assert (await edge.receive()).type_url == CLUSTER
        again = await edge.receive()
        assert (again.type_url, _names(again)) == (ENDPOINT, {"cell-a"})
