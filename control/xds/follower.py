"""A subscriber that keeps whole snapshots: what the fallback server serves when nobody else does.

To the controllers it is a client like any other, once as a gRPC client and once as an edge, so it
may run anywhere, and nothing but xDS is between them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import grpc
import structlog
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from control.xds.snapshot import (
    CLUSTER,
    ENDPOINT,
    LISTENER,
    ROUTE,
    SENDING_ORDER,
    Snapshot,
    Typed,
    check,
    route_name,
)
from control.xds.translate import NodeKind, Resources
from router.client.tls import TlsFiles

log = structlog.get_logger(__name__)

_TYPES: Mapping[str, Any] = {
    LISTENER: listener_pb2.Listener,
    ROUTE: route_pb2.RouteConfiguration,
    CLUSTER: cluster_pb2.Cluster,
    ENDPOINT: endpoint_pb2.ClusterLoadAssignment,
}
_RETRY_S = 0.5
_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.max_receive_message_length", -1),
]


@dataclass(slots=True)
class _Have:
    """What one stream was told so far. Names are those last asked for; None means all."""

    version: str = ""
    nonce: str = ""
    names: frozenset[str] | None = None
    resources: dict[str, AnyMessage] = field(default_factory=dict)


class Follower:
    def __init__(
        self, address: str, tls: TlsFiles, node_id: str, kind: NodeKind,
        on_snapshot: Callable[[Snapshot], None],
    ) -> None:  # fmt: skip
        self._address = address
        self._tls = tls
        self._kind = kind
        # The server tells an edge by its name.
        prefix = "edge" if kind == NodeKind.EDGE else "client"
        self._node = base_pb2.Node(id=f"{prefix}-{node_id}")
        self._on_snapshot = on_snapshot

    async def run(self) -> None:
        """Follows for ever, over every absence of the server."""
        while True:
            try:
                credentials = self._tls.channel_credentials()
                async with grpc.aio.secure_channel(
                    self._address, credentials, options=_OPTIONS
                ) as channel:
                    await self._follow(ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel))
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, OSError) as error:
                log.info("the xDS server is away", kind=self._kind, why=type(error).__name__)
            await asyncio.sleep(_RETRY_S)

    async def _follow(self, stub: Any) -> None:
        call = stub.StreamAggregatedResources()
        have = {url: _Have() for url in SENDING_ORDER}
        for url in (LISTENER, CLUSTER):
            await call.write(self._request(url, have[url]))
        async for response in _responses(call):
            item = have.get(response.type_url)
            if item is None:
                continue
            item.version, item.nonce = response.version_info, response.nonce
            item.resources.update(_by_name(response))
            if response.type_url in (LISTENER, CLUSTER):
                # These come whole each time; what is not there is gone.
                item.resources = _by_name(response)
            await call.write(self._request(response.type_url, item))
            for url, names in _wanted(have).items():
                if have[url].names != names:
                    have[url].names = names
                    gone = have[url].resources.keys() - names
                    for name in gone:
                        del have[url].resources[name]
                    await call.write(self._request(url, have[url]))
            snapshot = _whole(self._kind, have)
            if snapshot is not None:
                self._on_snapshot(snapshot)

    def _request(self, url: str, item: _Have) -> Any:
        return discovery_pb2.DiscoveryRequest(
            node=self._node, type_url=url, version_info=item.version, response_nonce=item.nonce,
            resource_names=sorted(item.names or ()),
        )  # fmt: skip


async def _responses(call: Any) -> AsyncIterator[Any]:
    while (response := await call.read()) is not grpc.aio.EOF:
        yield response


def _by_name(response: Any) -> dict[str, AnyMessage]:
    return {_name(_unpacked(response.type_url, item)): item for item in response.resources}


def _wanted(have: dict[str, _Have]) -> dict[str, frozenset[str]]:
    """Whom listeners and clusters refer to."""
    routes = {route_name(_unpacked(LISTENER, item)) for item in have[LISTENER].resources.values()}
    return {ROUTE: frozenset(routes), ENDPOINT: frozenset(have[CLUSTER].resources)}


def _whole(kind: NodeKind, have: dict[str, _Have]) -> Snapshot | None:
    """A snapshot, once everything that is referred to is there."""
    resources = Resources(*(_messages(url, have) for url in (LISTENER, ROUTE, CLUSTER, ENDPOINT)))
    if not resources.listeners or not resources.routes:
        return None
    try:
        check(resources)
    except ValueError:
        return None
    typed = {
        url: Typed(item.version, MappingProxyType(dict(item.resources)))
        for url, item in have.items()
    }
    return Snapshot(kind, MappingProxyType(typed))


def _messages(url: str, have: dict[str, _Have]) -> dict[str, Message]:
    return {name: _unpacked(url, item) for name, item in have[url].resources.items()}


def _unpacked(url: str, item: AnyMessage) -> Any:
    return _TYPES[url].FromString(item.value)


def _name(message: Any) -> str:
    return str(getattr(message, "name", "") or getattr(message, "cluster_name", ""))
