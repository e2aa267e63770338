"""The ADS server: state of the world, streams with ACKs and NACKs. Knows nothing of slots.

Protocol: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol. A stream always sends
the newest snapshot and queues none: a slow client costs no memory, it only skips versions.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import structlog
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from control.xds.snapshot import (
    CLUSTER,
    ENDPOINT,
    LISTENER,
    ROUTE,
    SENDING_ORDER,
    Snapshot,
    take_snapshot,
)
from control.xds.translate import NodeKind, Topology

log = structlog.get_logger(__name__)

_WILDCARD_TYPES = frozenset({LISTENER, CLUSTER})
_KNOWN_TYPES = frozenset({LISTENER, ROUTE, CLUSTER, ENDPOINT})
# A NACK's text is the client's: we keep and log no more of it than this.
_NACK_CHARACTERS_MAX = 1000


@dataclass(frozen=True, slots=True)
class SubscriberStatus:
    node_id: str
    kind: str
    # The version of the routes that the subscriber last accepted.
    acked_version: str
    nacks: int
    last_nack: str


@dataclass(slots=True)
class _Subscription:
    """What one stream wants of one type, and what it was last sent."""

    names: frozenset[str] = frozenset()
    wildcard: bool = False
    # Once a stream has named resources, an empty list means none; before, it means all.
    has_named: bool = False
    sent_version: str = ""
    # Shared with the snapshot that it came from, so that it costs references only.
    sent: Mapping[str, Any] = field(default_factory=dict)
    nonce: str = ""
    acked_version: str = ""

    def ask(self, names: frozenset[str], *, may_be_wildcard: bool) -> None:
        if names:
            self.wildcard, self.has_named = "*" in names, True
        else:
            self.wildcard = may_be_wildcard and not self.has_named
        self.names = names - {"*"}
        if not self.wildcard:
            # A client forgets what it unsubscribes from: asked for again, it must be sent again.
            self.sent = {name: item for name, item in self.sent.items() if name in self.names}

    def wanted(self, available: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: item for name, item in available.items() if self.wildcard or name in self.names
        }


@dataclass(slots=True)
class _Stream:
    node_id: str = ""
    kind: NodeKind = NodeKind.CLIENT
    subscriptions: dict[str, _Subscription] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    nacks: int = 0
    last_nack: str = ""


class XdsServer(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]
    """Serves the latest topology to every subscriber."""

    def __init__(self) -> None:
        self._snapshots: dict[NodeKind, Snapshot] = {}
        self._streams: dict[int, _Stream] = {}
        self._numbers = itertools.count(1)
        self.nacks = 0

    def add_to_server(self, server: Any) -> None:
        ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(self, server)

    def publish(self, topology: Topology) -> None:
        """Takes effect on every stream at once. Raises InconsistentSnapshot, changing nothing."""
        self.serve({kind: take_snapshot(topology, kind) for kind in NodeKind})

    @property
    def snapshots(self) -> Mapping[NodeKind, Snapshot]:
        return self._snapshots

    def serve(self, snapshots: Mapping[NodeKind, Snapshot]) -> None:
        """Snapshots that were taken before, or elsewhere."""
        self._snapshots = dict(snapshots)
        for stream in self._streams.values():
            stream.wake.set()

    def subscribers(self) -> list[SubscriberStatus]:
        return [
            SubscriberStatus(
                stream.node_id,
                stream.kind,
                stream.subscriptions.get(ROUTE, _Subscription()).acked_version,
                stream.nacks,
                stream.last_nack,
            )
            for stream in self._streams.values()
        ]

    async def StreamAggregatedResources(
        self, request_iterator: AsyncIterator[Any], context: Any
    ) -> None:
        stream = _Stream()
        number = next(self._numbers)
        self._streams[number] = stream
        try:
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(self._write(stream, context))
                async for request in request_iterator:
                    self._take(stream, request)
                writer.cancel()
        finally:
            del self._streams[number]

    async def DeltaAggregatedResources(self, request_iterator: Any, context: Any) -> Any:
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED, "this server speaks state of the world only"
        )

    async def _write(self, stream: _Stream, context: Any) -> None:
        while True:
            await stream.wake.wait()
            stream.wake.clear()
            for type_url in SENDING_ORDER:
                response = self._response(stream, type_url)
                if response is not None:
                    await context.write(response)
                    if type_url == CLUSTER and stream.kind == NodeKind.EDGE:
                        _send_endpoints_again(stream)

    def _take(self, stream: _Stream, request: Any) -> None:
        """One request: the first of a type, a change of names, an ACK or a NACK."""
        if not stream.node_id and request.HasField("node"):
            stream.node_id = request.node.id
            edge = request.node.user_agent_name == "envoy" or request.node.id.startswith("edge")
            stream.kind = NodeKind.EDGE if edge else NodeKind.CLIENT
        if request.type_url not in _KNOWN_TYPES:
            return
        subscription = stream.subscriptions.setdefault(request.type_url, _Subscription())
        if request.response_nonce and request.response_nonce != subscription.nonce:
            # An answer to something older than what we sent last.
            return
        if request.HasField("error_detail"):
            self.nacks += 1
            stream.nacks += 1
            stream.last_nack = request.error_detail.message[:_NACK_CHARACTERS_MAX]
            log.error("NACK", node=stream.node_id, type=request.type_url, why=stream.last_nack)
        elif request.response_nonce:
            subscription.acked_version = request.version_info
        subscription.ask(
            frozenset(request.resource_names),
            may_be_wildcard=request.type_url in _WILDCARD_TYPES,
        )
        stream.wake.set()

    def _response(self, stream: _Stream, type_url: str) -> Any | None:
        """What the stream lacks of this type, exactly the names it asked for; None when nothing."""
        subscription = stream.subscriptions.get(type_url)
        snapshot = self._snapshots.get(stream.kind)
        if subscription is None or snapshot is None:
            return None
        typed = snapshot.types[type_url]
        wanted, version = subscription.wanted(typed.resources), typed.version
        if type_url == CLUSTER and _routes_are_behind(stream, snapshot):
            kept = {name: item for name, item in subscription.sent.items() if name not in wanted}
            if kept:
                wanted, version = kept | wanted, f"{version}+{len(kept)}"
        if subscription.sent_version == version and wanted.keys() <= subscription.sent.keys():
            return None
        if not wanted and type_url not in _WILDCARD_TYPES:
            # Absence says something only of listeners and clusters.
            return None
        subscription.sent_version, subscription.sent = version, wanted
        subscription.nonce = str(next(self._numbers))
        return discovery_pb2.DiscoveryResponse(
            version_info=version,
            type_url=type_url,
            nonce=subscription.nonce,
            resources=[wanted[name] for name in sorted(wanted)],
        )


def _send_endpoints_again(stream: _Stream) -> None:
    """Envoy warms a cluster that has changed until its endpoints come, though it has them; without
    them it would go on with the old cluster for its whole initial fetch timeout of 15 s."""
    endpoints = stream.subscriptions.get(ENDPOINT)
    if endpoints is not None:
        endpoints.sent_version = ""


def _routes_are_behind(stream: _Stream, snapshot: Snapshot) -> bool:
    """Make before break: a cluster goes only after the routes that named it are known to be gone.

    A stream that refuses the new routes keeps the old ones, and so their clusters.
    """
    routes = stream.subscriptions.get(ROUTE)
    return routes is not None and routes.acked_version != snapshot.types[ROUTE].version
