"""A snapshot: all resources for one kind of node, packed, versioned and checked.

Immutable. A type's version is a hash of its content, so a type that did not change is not sent
again, whoever computed it: two xDS servers give the same version to the same content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,
)
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from control.xds.translate import NodeKind, Resources, Topology, translate

_PREFIX = "type.googleapis.com/envoy.config."
LISTENER = _PREFIX + "listener.v3.Listener"
ROUTE = _PREFIX + "route.v3.RouteConfiguration"
CLUSTER = _PREFIX + "cluster.v3.Cluster"
ENDPOINT = _PREFIX + "endpoint.v3.ClusterLoadAssignment"
# Make before break: what is referred to comes before what refers to it.
SENDING_ORDER = (CLUSTER, ENDPOINT, LISTENER, ROUTE)


class InconsistentSnapshot(ValueError):
    """A resource refers to one that is not there."""


@dataclass(frozen=True)
class Typed:
    """All resources of one type."""

    version: str
    resources: Mapping[str, AnyMessage]


@dataclass(frozen=True)
class Snapshot:
    kind: NodeKind
    types: Mapping[str, Typed]


def take_snapshot(topology: Topology, kind: NodeKind) -> Snapshot:
    """Translates, checks and versions. Raises InconsistentSnapshot."""
    resources = translate(topology, kind)
    check(resources)
    return Snapshot(
        kind,
        MappingProxyType(
            {
                LISTENER: _typed(resources.listeners),
                ROUTE: _typed(resources.routes),
                CLUSTER: _typed(resources.clusters),
                ENDPOINT: _typed(resources.endpoints),
            }
        ),
    )


def check(resources: Resources) -> None:
    """Listeners' routes, routes' clusters and EDS clusters' assignments are all there."""
    for name, message in resources.listeners.items():
        assert isinstance(message, listener_pb2.Listener)
        wanted = route_name(message)
        if wanted not in resources.routes:
            raise InconsistentSnapshot(f"listener {name} asks for unknown routes {wanted!r}")
    for name, message in resources.routes.items():
        assert isinstance(message, route_pb2.RouteConfiguration)
        for host in message.virtual_hosts:
            for route in host.routes:
                if route.route.cluster not in resources.clusters:
                    raise InconsistentSnapshot(f"{name} routes to unknown {route.route.cluster}")
    for name, message in resources.clusters.items():
        assert isinstance(message, cluster_pb2.Cluster)
        if message.type == cluster_pb2.Cluster.EDS and name not in resources.endpoints:
            raise InconsistentSnapshot(f"cluster {name} has no assignment")


def route_name(listener: listener_pb2.Listener) -> str:
    """The routes that a listener's only HTTP connection manager asks for."""
    manager = http_connection_manager_pb2.HttpConnectionManager()
    packed = (
        listener.api_listener.api_listener
        if listener.HasField("api_listener")
        else listener.filter_chains[0].filters[0].typed_config
    )
    packed.Unpack(manager)
    return str(manager.rds.route_config_name)


def _typed(messages: Mapping[str, Message]) -> Typed:
    packed: dict[str, AnyMessage] = {}
    digest = hashlib.sha256()
    for name in sorted(messages):
        item = AnyMessage()
        item.Pack(messages[name], deterministic=True)
        packed[name] = item
        digest.update(name.encode())
        digest.update(item.value)
    return Typed(digest.hexdigest()[:16], MappingProxyType(packed))
