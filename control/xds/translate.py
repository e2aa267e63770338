"""From a slot map and addresses to xDS resources, for gRPC and for Envoy, in one translation.

Pure. Resource names: listener and route configuration `cellpay` (gRPC) or `edge` (Envoy), clusters
`cell-<name>`. Routing: a header range match on `x-cellpay-slot` a range of the map (gRFC A28); mTLS
with the cell's SPIFFE ID pinned (gRFC A29).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2
from envoy.config.core.v3 import (
    address_pb2,
    base_pb2,
    config_source_pb2,
    http_service_pb2,
    http_uri_pb2,
)
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.listener.v3 import api_listener_pb2, listener_components_pb2, listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.config.trace.v3 import http_tracer_pb2 as trace_pb2
from envoy.config.trace.v3 import opentelemetry_pb2
from envoy.extensions.filters.http.buffer.v3 import buffer_pb2  # noqa: F401  (read by ParseDict)
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2  # noqa: F401  (read by ParseDict)
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.http.upstream_codec.v3 import upstream_codec_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.type.matcher.v3 import string_pb2
from envoy.type.v3 import percent_pb2, range_pb2
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value, UInt64Value

import router.edge
from control.xds.traffic import (
    NO_RULES,
    TrafficRules,
    apply_to_cluster,
    apply_to_host,
    apply_to_route,
    filters,
    of_cell,
    of_methods,
)
from control.xds.traffic import duration as _duration
from control.xds.traffic import pack as _any
from router.edge.hardening import (
    NO_RANGES,
    Ranges,
    access_filters,
    chain_bounds,
    manager_bounds,
    whole,
)
from router.edge.resources import COLLECTOR, EDGE_CERTIFICATE, EDGE_SERVICE, MESH_CA
from router.identity import spiffe_id
from router.slotmap import SlotMap
from router.slots import SLOT_HEADER
from router.tracing.model import TracingSettings

CLIENT_LISTENER = "cellpay"
EDGE_LISTENER = "edge"
PROVIDER = "default"
_EDGE_RETRIES = 8
_EDGE_BACKOFF_BASE_MS = 25
_EDGE_BACKOFF_CAP_MS = 250
# Each is one refusal later; with a back-off between, they outlast the map's way to all parts.
_EDGE_REDIRECTS = 16
# What moved.lua answers; no cell does.
_REDIRECT = 307
# Envoy's default of 3 retries at a time fails the fourth caller of a cell that moves.
_EDGE_RETRIES_AT_A_TIME_MIN = 256
_EDGE_RETRY_BUDGET_PERCENT = 25
_EDGE_BUFFER_BYTES = 1024 * 1024
# What a cell takes, and a message that is a little too long reaches it, to be refused by its name.
_EDGE_WHOLE_BYTES = 2 * _EDGE_BUFFER_BYTES
_EDGE_STREAM_MS = 60_000
_CONNECT_TIMEOUT_MS = 1000
_COLLECTOR_TIMEOUT_MS = 5000
_RING_SIZE_MIN = 256


class NodeKind(StrEnum):
    CLIENT = "client"
    EDGE = "edge"


@dataclass(frozen=True)
class EdgeTracing:
    """Envoy's tracer. Its sample is taken of requests that come without a trace; for the others
    whoever began the trace has decided."""

    # URL of OTLP over HTTP; the cluster behind it is in Envoy's bootstrap.
    traces_url: str
    sample_ratio: float


def edge_tracing_of(settings: TracingSettings) -> EdgeTracing | None:
    if not settings.endpoint:
        return None
    return EdgeTracing(settings.traces_url, settings.sample_ratio)


@dataclass(frozen=True)
class Topology:
    """What the mesh looks like now. `endpoints`: live cell → host:port of each of its processes."""

    slot_map: SlotMap
    endpoints: Mapping[str, Sequence[str]]
    edge_listen: str = "127.0.0.1:0"
    edge_lua: str = ""
    traffic: TrafficRules = NO_RULES
    edge_ranges: Ranges = NO_RANGES
    # Where Envoy sends its spans; None: it makes none.
    tracing: EdgeTracing | None = None


@dataclass(frozen=True)
class Resources:
    listeners: Mapping[str, Message] = field(default_factory=dict)
    routes: Mapping[str, Message] = field(default_factory=dict)
    clusters: Mapping[str, Message] = field(default_factory=dict)
    endpoints: Mapping[str, Message] = field(default_factory=dict)


def read_edge_lua() -> str:
    """The Lua that computes the slot at the edge."""
    return _lua_source("slot.lua")


def _lua_source(name: str) -> str:
    return (Path(router.edge.__file__).parent / name).read_text(encoding="utf-8")


# Part of this package, as the code is; read once.
_MOVED_LUA = _lua_source("moved.lua")


def translate(topology: Topology, kind: NodeKind) -> Resources:
    name = CLIENT_LISTENER if kind == NodeKind.CLIENT else EDGE_LISTENER
    cells = sorted(topology.slot_map.cells() | set(topology.endpoints))
    make_listener = _client_listener if kind == NodeKind.CLIENT else _edge_listener
    return Resources(
        listeners={name: make_listener(name, topology)},
        routes={name: _routes(name, topology, kind)},
        clusters={cluster_name(cell): _cluster(cell, topology.traffic, kind) for cell in cells},
        endpoints={
            cluster_name(cell): _assignment(cell, topology.endpoints.get(cell, ()))
            for cell in cells
        },
    )


def cluster_name(cell: str) -> str:
    return f"cell-{cell}"


def _ads() -> config_source_pb2.ConfigSource:
    return config_source_pb2.ConfigSource(
        ads=config_source_pb2.AggregatedConfigSource(),
        resource_api_version=config_source_pb2.V3,
    )


def _manager(name: str, filters: list[hcm_pb2.HttpFilter]) -> hcm_pb2.HttpConnectionManager:
    terminal = hcm_pb2.HttpFilter(name="router", typed_config=_any(router_pb2.Router()))
    return hcm_pb2.HttpConnectionManager(
        stat_prefix=name,
        rds=hcm_pb2.Rds(route_config_name=name, config_source=_ads()),
        http_filters=[*filters, terminal],
    )


def _client_listener(name: str, topology: Topology) -> listener_pb2.Listener:
    manager = _manager(name, filters(topology.traffic, edge=False))
    return listener_pb2.Listener(
        name=name, api_listener=api_listener_pb2.ApiListener(api_listener=_any(manager))
    )


def _edge_listener(name: str, topology: Topology) -> listener_pb2.Listener:
    host, _, port = topology.edge_listen.rpartition(":")
    # Lua first: it names the slot, and with it the route whose policies the others carry out.
    policing = filters(topology.traffic, edge=True)
    guarding = [
        ParseDict(item, hcm_pb2.HttpFilter())
        for item in (*access_filters(topology.edge_ranges, internal=True), whole(_EDGE_WHOLE_BYTES))
    ]
    manager = _manager(name, [*guarding, _lua(topology.edge_lua), *policing])
    manager.codec_type = hcm_pb2.HttpConnectionManager.AUTO
    # Appended, for the HTTP edge is one of its clients; router/identity.py reads from the right.
    ParseDict(manager_bounds(escaped_slashes="REJECT_REQUEST", forward="APPEND_FORWARD"), manager)
    if topology.tracing is not None:
        manager.tracing.CopyFrom(_tracing(topology.tracing))
    downstream = tls_pb2.DownstreamTlsContext(
        common_tls_context=_edge_tls(), require_client_certificate=BoolValue(value=True)
    )
    chain = listener_components_pb2.FilterChain(
        filters=[
            listener_components_pb2.Filter(
                name="envoy.filters.network.http_connection_manager", typed_config=_any(manager)
            )
        ],
        transport_socket=base_pb2.TransportSocket(
            name="envoy.transport_sockets.tls", typed_config=_any(downstream)
        ),
    )
    ParseDict(chain_bounds(), chain)
    return listener_pb2.Listener(
        name=name,
        address=_address(host, int(port)),
        filter_chains=[chain],
        # Not the guide's 32 KiB: a call that is sent on to a new home is kept whole until then.
        per_connection_buffer_limit_bytes=UInt32Value(value=_EDGE_BUFFER_BYTES),
    )


def _tracing(tracing: EdgeTracing) -> hcm_pb2.HttpConnectionManager.Tracing:
    """By OpenTelemetry: Envoy goes on with a traceparent that comes, and hands its own on."""
    to = http_uri_pb2.HttpUri(
        uri=tracing.traces_url, cluster=COLLECTOR, timeout=_duration(_COLLECTOR_TIMEOUT_MS)
    )
    provider = trace_pb2.Tracing.Http(
        name="envoy.tracers.opentelemetry",
        typed_config=_any(
            opentelemetry_pb2.OpenTelemetryConfig(
                http_service=http_service_pb2.HttpService(http_uri=to), service_name=EDGE_SERVICE
            )
        ),
    )
    return hcm_pb2.HttpConnectionManager.Tracing(
        client_sampling=percent_pb2.Percent(value=100),
        random_sampling=percent_pb2.Percent(value=100 * tracing.sample_ratio),
        overall_sampling=percent_pb2.Percent(value=100),
        provider=provider,
    )


def _lua(source: str) -> hcm_pb2.HttpFilter:
    code = lua_pb2.Lua(default_source_code=base_pb2.DataSource(inline_string=source))
    return hcm_pb2.HttpFilter(name="envoy.filters.http.lua", typed_config=_any(code))


def _edge_tls(san: string_pb2.StringMatcher | None = None) -> tls_pb2.CommonTlsContext:
    """Envoy's certificates are files, named as static secrets in its bootstrap."""
    context = tls_pb2.CommonTlsContext(
        tls_certificate_sds_secret_configs=[tls_secret(EDGE_CERTIFICATE)],
        alpn_protocols=["h2"],
    )
    if san is None:
        context.validation_context_sds_secret_config.CopyFrom(tls_secret(MESH_CA))
        return context
    combined = context.combined_validation_context
    combined.validation_context_sds_secret_config.CopyFrom(tls_secret(MESH_CA))
    combined.default_validation_context.match_typed_subject_alt_names.append(
        common_pb2.SubjectAltNameMatcher(san_type=common_pb2.SubjectAltNameMatcher.URI, matcher=san)
    )
    return context


def tls_secret(name: str) -> secret_pb2.SdsSecretConfig:
    return secret_pb2.SdsSecretConfig(name=name)


def _client_tls(san: string_pb2.StringMatcher) -> tls_pb2.CommonTlsContext:
    """gRPC takes certificates from the provider that its own bootstrap names (gRFC A29).

    The names are in the deprecated, untyped field: gRPC 1.85 silently ignores the typed one, and
    would then accept any certificate of the mesh as this cell's.
    """
    plugin = common_pb2.CertificateProviderPluginInstance(instance_name=PROVIDER)
    return tls_pb2.CommonTlsContext(
        tls_certificate_provider_instance=plugin,
        validation_context=common_pb2.CertificateValidationContext(
            ca_certificate_provider_instance=plugin, match_subject_alt_names=[san]
        ),
    )


def _routes(name: str, topology: Topology, kind: NodeKind) -> route_pb2.RouteConfiguration:
    """A route a range; before it, one a method that has a policy of its own."""
    routes = []
    policies = {
        cell: (of_cell(topology.traffic, cell), of_methods(topology.traffic, cell))
        for cell in topology.slot_map.cells()
    }
    prefix = "" if kind == NodeKind.CLIENT else "/"
    edge = kind == NodeKind.EDGE
    for owned in topology.slot_map.ranges:
        of_all, by_method = policies[owned.cell]
        matches = [(f"/{method}", traffic) for method, traffic in by_method.items()]
        for path, traffic in [*matches, ("", of_all)]:
            match = route_components_pb2.RouteMatch(
                headers=[
                    route_components_pb2.HeaderMatcher(
                        name=SLOT_HEADER,
                        range_match=range_pb2.Int64Range(start=owned.first, end=owned.last + 1),
                    )
                ]
            )
            if path:
                match.path = path
            else:
                match.prefix = prefix
            route = route_components_pb2.Route(match=match, route=_action(owned.cell, kind))
            apply_to_route(route, traffic, edge=edge)
            routes.append(route)
    host = route_components_pb2.VirtualHost(name=name, domains=["*"], routes=routes)
    if edge:
        apply_to_host(host, topology.traffic)
    return route_pb2.RouteConfiguration(name=name, virtual_hosts=[host])


def _action(cell: str, kind: NodeKind) -> route_components_pb2.RouteAction:
    """No timeout of the route's own: the caller's deadline rules; at the edge within a bound."""
    action = route_components_pb2.RouteAction(cluster=cluster_name(cell), timeout=_duration(0))
    # A slot's requests go to the same process of its cell, whose lane then meets no other (A42).
    action.hash_policy.add().header.header_name = SLOT_HEADER
    if kind == NodeKind.EDGE:
        # Who sends no deadline, or one of days, and no message holds a place at a cell so long.
        action.max_stream_duration.max_stream_duration.CopyFrom(_duration(_EDGE_STREAM_MS))
        action.max_stream_duration.grpc_timeout_header_max.CopyFrom(_duration(_EDGE_STREAM_MS))
        action.retry_policy.CopyFrom(_edge_retries())
        action.internal_redirect_policy.CopyFrom(
            route_components_pb2.InternalRedirectPolicy(
                max_internal_redirects=UInt32Value(value=_EDGE_REDIRECTS),
                redirect_response_codes=[_REDIRECT],
            )
        )
    return action


def _edge_retries() -> route_components_pb2.RetryPolicy:
    """Edge clients have no SDK: Envoy retries what did not run or may be repeated by its key.

    A retry goes to the same cluster; moved.lua sees to it that a slot's new home is found.
    """
    return route_components_pb2.RetryPolicy(
        retry_on="unavailable,connect-failure,refused-stream,reset-before-request",
        num_retries=UInt32Value(value=_EDGE_RETRIES),
        retry_back_off=route_components_pb2.RetryPolicy.RetryBackOff(
            base_interval=_duration(_EDGE_BACKOFF_BASE_MS),
            max_interval=_duration(_EDGE_BACKOFF_CAP_MS),
        ),
    )


def _cluster(cell: str, rules: TrafficRules, kind: NodeKind) -> cluster_pb2.Cluster:
    san = string_pb2.StringMatcher(exact=spiffe_id("cell", cell))
    context = _client_tls(san) if kind == NodeKind.CLIENT else _edge_tls(san)
    cluster = cluster_pb2.Cluster(
        name=cluster_name(cell),
        type=cluster_pb2.Cluster.EDS,
        eds_cluster_config=cluster_pb2.Cluster.EdsClusterConfig(eds_config=_ads()),
        connect_timeout=_duration(_CONNECT_TIMEOUT_MS),
        lb_policy=cluster_pb2.Cluster.RING_HASH,
        ring_hash_lb_config=cluster_pb2.Cluster.RingHashLbConfig(
            minimum_ring_size=UInt64Value(value=_RING_SIZE_MIN)
        ),
        transport_socket=base_pb2.TransportSocket(
            name="envoy.transport_sockets.tls",
            typed_config=_any(tls_pb2.UpstreamTlsContext(common_tls_context=context)),
        ),
    )
    if kind == NodeKind.EDGE:
        options = http_protocol_options_pb2.HttpProtocolOptions()
        options.explicit_http_config.http2_protocol_options.SetInParent()
        codec = _any(upstream_codec_pb2.UpstreamCodec())
        options.http_filters.extend(
            [
                _lua(_MOVED_LUA),
                hcm_pb2.HttpFilter(name="envoy.filters.http.upstream_codec", typed_config=codec),
            ]
        )
        budget = circuit_breaker_pb2.CircuitBreakers.Thresholds.RetryBudget(
            budget_percent=percent_pb2.Percent(value=_EDGE_RETRY_BUDGET_PERCENT),
            min_retry_concurrency=UInt32Value(value=_EDGE_RETRIES_AT_A_TIME_MIN),
        )
        cluster.circuit_breakers.thresholds.append(
            circuit_breaker_pb2.CircuitBreakers.Thresholds(retry_budget=budget)
        )
        cluster.typed_extension_protocol_options[
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        ].CopyFrom(_any(options))
    apply_to_cluster(cluster, of_cell(rules, cell), edge=kind == NodeKind.EDGE)
    return cluster


def _assignment(cell: str, addresses: Sequence[str]) -> endpoint_pb2.ClusterLoadAssignment:
    assignment = endpoint_pb2.ClusterLoadAssignment(cluster_name=cluster_name(cell))
    if not addresses:
        return assignment
    assignment.endpoints.append(
        endpoint_components_pb2.LocalityLbEndpoints(
            locality=base_pb2.Locality(region=cell),
            load_balancing_weight=UInt32Value(value=1),
            lb_endpoints=[
                endpoint_components_pb2.LbEndpoint(
                    endpoint=endpoint_components_pb2.Endpoint(address=_address(host, int(port)))
                )
                for host, _, port in (address.rpartition(":") for address in addresses)
            ],
        )
    )
    return assignment


def _address(host: str, port: int) -> address_pb2.Address:
    return address_pb2.Address(
        socket_address=address_pb2.SocketAddress(address=host, port_value=port)
    )
