"""From a slot map to routes, clusters and endpoints: what gRPC and Envoy are told."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, cast

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.trace.v3 import opentelemetry_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf import json_format

from control.xds.translate import (
    NodeKind,
    Topology,
    edge_tracing_of,
    read_edge_lua,
    translate,
)
from router.client.bootstrap import PROVIDER, xds_bootstrap
from router.client.tls import TlsFiles
from router.edge.bootstrap import edge_bootstrap
from router.edge.resources import MESH_CA
from router.slotmap import Move, SlotMap
from router.slots import SLOT_COUNT, SLOT_HEADER
from router.tracing.model import TracingSettings

CELLS = ("a", "b", "c")
ENDPOINTS = {"a": ("127.0.0.1:7001",), "b": ("127.0.0.1:7002",), "c": ("127.0.0.1:7003",)}
TOPOLOGY = Topology(SlotMap.even(CELLS), ENDPOINTS, "127.0.0.1:8443", "-- Lua")
NAMES = {NodeKind.CLIENT: "cellpay", NodeKind.EDGE: "edge"}
BOTH = pytest.mark.parametrize("kind", list(NodeKind))


def _routes(topology: Topology, kind: NodeKind) -> list[Any]:
    configuration: Any = translate(topology, kind).routes[NAMES[kind]]
    (host,) = configuration.virtual_hosts
    return list(host.routes)


def _cluster(kind: NodeKind, name: str = "cell-a") -> Any:
    return translate(TOPOLOGY, kind).clusters[name]


def _upstream_tls(kind: NodeKind) -> Any:
    context = tls_pb2.UpstreamTlsContext()
    assert _cluster(kind).transport_socket.typed_config.Unpack(context)
    return context.common_tls_context


def _manager(kind: NodeKind) -> Any:
    listener: Any = translate(TOPOLOGY, kind).listeners[NAMES[kind]]
    manager = hcm_pb2.HttpConnectionManager()
    packed = (
        listener.api_listener.api_listener
        if kind == NodeKind.CLIENT
        else listener.filter_chains[0].filters[0].typed_config
    )
    assert packed.Unpack(manager)
    return manager


@BOTH
def test_every_slot_matches_exactly_one_route_and_that_is_its_owners(kind: NodeKind) -> None:
    slot_map = TOPOLOGY.slot_map.apply([Move(5, 9, "a", "b", 2), Move(700, 700, "c", "a", 2)])
    routes = _routes(replace(TOPOLOGY, slot_map=slot_map), kind)
    for slot in range(SLOT_COUNT):
        matching = [
            route.route.cluster
            for route in routes
            if route.match.headers[0].range_match.start
            <= slot
            < route.match.headers[0].range_match.end
        ]
        assert matching == [f"cell-{slot_map.at(slot).cell}"]


@BOTH
def test_routes_match_the_slot_header_and_leave_time_to_the_caller(kind: NodeKind) -> None:
    for route in _routes(TOPOLOGY, kind):
        (header,) = route.match.headers
        assert header.name == SLOT_HEADER
        assert route.route.HasField("timeout")
        assert route.route.timeout.ToMilliseconds() == 0


def test_both_kinds_are_routed_alike() -> None:
    client, edge = (_routes(TOPOLOGY, kind) for kind in NodeKind)
    assert [(r.match.headers[0], r.route.cluster) for r in client] == [
        (r.match.headers[0], r.route.cluster) for r in edge
    ]


def test_only_the_edge_retries_because_clients_do_so_themselves() -> None:
    client, edge = (_routes(TOPOLOGY, kind)[0].route for kind in NodeKind)
    assert not client.HasField("retry_policy")
    assert not client.HasField("internal_redirect_policy")
    assert edge.retry_policy.num_retries.value == 8
    backoff = edge.retry_policy.retry_back_off
    assert backoff.base_interval.ToMilliseconds() == 25
    assert backoff.max_interval.ToMilliseconds() == 250
    assert list(edge.internal_redirect_policy.redirect_response_codes) == [307]
    assert edge.max_stream_duration.HasField("grpc_timeout_header_max")


def test_envoy_hands_traces_on_and_sends_its_own_where_the_bootstrap_has_a_collector() -> None:
    settings = TracingSettings(endpoint="http://collector:4318/", sample_ratio=0.25)
    traced = replace(TOPOLOGY, tracing=edge_tracing_of(settings))
    manager = _manager_of(traced, NodeKind.EDGE)
    assert manager.tracing.random_sampling.value == 25
    tracer = opentelemetry_pb2.OpenTelemetryConfig()
    assert manager.tracing.provider.typed_config.Unpack(tracer)
    to = tracer.http_service.http_uri
    assert to.uri == "http://collector:4318/v1/traces"
    tls = TlsFiles("ca", "cert", "key")
    document = edge_bootstrap("x:1", "127.0.0.1:2", tls, "edge", "s", tracing=settings)
    (cluster,) = [c for c in document["static_resources"]["clusters"] if c["name"] == to.cluster]
    place = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]
    assert place == {"socket_address": {"address": "collector", "port_value": 4318}}
    assert "transport_socket" not in cluster
    secure = edge_bootstrap(
        "x:1", "127.0.0.1:2", tls, "edge", "s", tracing=TracingSettings(endpoint="https://c")
    )
    (cluster,) = [c for c in secure["static_resources"]["clusters"] if c["name"] == to.cluster]
    assert cluster["transport_socket"]["typed_config"]["sni"] == "c"


def test_an_edge_that_traces_is_as_hard_as_one_that_does_not() -> None:
    tls = TlsFiles("ca", "cert", "key")
    plain = edge_bootstrap("x:1", "127.0.0.1:2", tls, "edge", "s")
    traced = edge_bootstrap(
        "x:1", "127.0.0.1:2", tls, "edge", "s", tracing=TracingSettings(endpoint="http://c:1")
    )
    layers = [layer["name"] for layer in traced["layered_runtime"]["layers"]]
    assert layers == ["edge", "tracing"]
    assert plain["layered_runtime"]["layers"] == traced["layered_runtime"]["layers"][:1]
    assert {key: traced[key] for key in plain.keys() - {"layered_runtime", "static_resources"}} == {
        key: plain[key] for key in plain.keys() - {"layered_runtime", "static_resources"}
    }


def test_without_a_collector_envoy_makes_no_spans() -> None:
    assert edge_tracing_of(TracingSettings()) is None
    assert not _manager_of(TOPOLOGY, NodeKind.EDGE).HasField("tracing")
    traced = replace(TOPOLOGY, tracing=edge_tracing_of(TracingSettings(endpoint="http://c:1")))
    # gRPC has no such thing in its listeners.
    assert not _manager_of(traced, NodeKind.CLIENT).HasField("tracing")


def _manager_of(topology: Topology, kind: NodeKind) -> Any:
    (listener,) = translate(topology, kind).listeners.values()
    found: Any = listener
    packed = (
        found.api_listener.api_listener
        if kind == NodeKind.CLIENT
        else found.filter_chains[0].filters[0].typed_config
    )
    manager = hcm_pb2.HttpConnectionManager()
    assert packed.Unpack(manager)
    return manager


@BOTH
def test_a_cell_without_a_live_endpoint_has_an_empty_assignment(kind: NodeKind) -> None:
    topology = replace(TOPOLOGY, endpoints={"b": ("[::1]:7002",)})
    resources = translate(topology, kind)
    dead: Any = resources.endpoints["cell-a"]
    live: Any = resources.endpoints["cell-b"]
    assert dead.cluster_name == "cell-a"
    assert not dead.endpoints
    (place,) = live.endpoints[0].lb_endpoints
    assert place.endpoint.address.socket_address.port_value == 7002


@BOTH
def test_a_live_cell_without_slots_has_its_cluster_before_it_gets_some(kind: NodeKind) -> None:
    topology = Topology(SlotMap.even(["a"]), ENDPOINTS, "127.0.0.1:8443")
    assert set(translate(topology, kind).clusters) == {"cell-a", "cell-b", "cell-c"}


def test_grpc_pins_the_cells_identity_in_the_field_that_it_reads() -> None:
    """gRPC ignores match_typed_subject_alt_names: the pin would be gone without a word."""
    context = _upstream_tls(NodeKind.CLIENT)
    validation = context.validation_context
    assert [m.exact for m in validation.match_subject_alt_names] == [
        "spiffe://cellpay.local/cell/a"
    ]
    assert validation.ca_certificate_provider_instance.instance_name == PROVIDER
    assert context.tls_certificate_provider_instance.instance_name == PROVIDER


def test_envoy_pins_the_cells_identity_and_takes_its_secrets_from_its_bootstrap() -> None:
    context = _upstream_tls(NodeKind.EDGE)
    combined = context.combined_validation_context
    (match,) = combined.default_validation_context.match_typed_subject_alt_names
    assert match.matcher.exact == "spiffe://cellpay.local/cell/a"
    named = {context.tls_certificate_sds_secret_configs[0].name}
    named.add(combined.validation_context_sds_secret_config.name)
    bootstrap = edge_bootstrap("x:1", "127.0.0.1:2", TlsFiles("ca", "cert", "key"), "edge", "s")
    assert named == {secret["name"] for secret in bootstrap["static_resources"]["secrets"]}


def test_the_edge_hears_only_clients_with_a_certificate_of_the_mesh() -> None:
    listener: Any = translate(TOPOLOGY, NodeKind.EDGE).listeners["edge"]
    (chain,) = listener.filter_chains
    context = tls_pb2.DownstreamTlsContext()
    assert chain.transport_socket.typed_config.Unpack(context)
    assert context.require_client_certificate.value
    trusted = context.common_tls_context.validation_context_sds_secret_config.name
    assert trusted == MESH_CA
    assert listener.address.socket_address.port_value == 8443


@BOTH
def test_routes_come_over_ads_and_the_router_is_the_last_filter(kind: NodeKind) -> None:
    manager = _manager(kind)
    assert manager.rds.route_config_name == NAMES[kind]
    assert manager.rds.config_source.HasField("ads")
    policing = ["envoy.filters.http.local_ratelimit", "envoy.filters.http.fault"]
    first = [f"envoy.filters.http.{name}" for name in ("rbac", "buffer", "lua")]
    edge = [*first, *policing, "router"]
    expected = ["router"] if kind == NodeKind.CLIENT else edge
    assert [item.name for item in manager.http_filters] == expected
    cluster = _cluster(kind)
    assert cluster.eds_cluster_config.eds_config.HasField("ads")


def test_only_the_edge_speaks_http2_to_cells_by_name_and_sends_refused_calls_on() -> None:
    assert not _cluster(NodeKind.CLIENT).typed_extension_protocol_options
    (packed,) = _cluster(NodeKind.EDGE).typed_extension_protocol_options.values()
    options = http_protocol_options_pb2.HttpProtocolOptions()
    assert packed.Unpack(options)
    assert options.explicit_http_config.HasField("http2_protocol_options")
    assert [item.name for item in options.http_filters] == [
        "envoy.filters.http.lua",
        "envoy.filters.http.upstream_codec",
    ]


@BOTH
def test_the_same_topology_gives_the_same_resources(kind: NodeKind) -> None:
    assert translate(TOPOLOGY, kind) == translate(TOPOLOGY, kind)


def test_the_lua_of_the_edge_is_in_the_package() -> None:
    assert "envoy_on_request" in read_edge_lua()


def test_the_clients_bootstrap_shows_its_certificate_to_the_control_plane_too() -> None:
    document = xds_bootstrap("127.0.0.1:1", TlsFiles("ca", "cert", "key"), "client-1")
    (server,) = document["xds_servers"]
    (credentials,) = server["channel_creds"]
    files = {"ca_certificate_file": "ca", "certificate_file": "cert", "private_key_file": "key"}
    assert credentials["type"] == "tls"
    assert credentials["config"].items() >= files.items()
    provider = document["certificate_providers"][PROVIDER]
    assert provider["plugin_name"] == "file_watcher"
    assert provider["config"].items() >= files.items()
    assert json.loads(json.dumps(document)) == document


def test_resources_can_be_shown_to_people() -> None:
    for kind in NodeKind:
        resources = translate(TOPOLOGY, kind)
        for message in [*resources.listeners.values(), *resources.clusters.values()]:
            assert json_format.MessageToDict(message)


@BOTH
def test_a_slot_goes_always_to_the_same_of_a_cells_processes(kind: NodeKind) -> None:
    endpoints = {"a": ("127.0.0.1:7001", "127.0.0.1:7011"), "b": ("127.0.0.1:7002",)}
    resources = translate(replace(TOPOLOGY, endpoints=endpoints), kind)
    assignment: Any = resources.endpoints["cell-a"]
    ports = [
        place.endpoint.address.socket_address.port_value
        for place in assignment.endpoints[0].lb_endpoints
    ]
    assert ports == [7001, 7011]
    (routes,) = resources.routes.values()
    for route in cast(Any, routes).virtual_hosts[0].routes:
        assert [policy.header.header_name for policy in route.route.hash_policy] == [SLOT_HEADER]
    cluster: Any = resources.clusters["cell-a"]
    assert cluster.lb_policy == cluster_pb2.Cluster.RING_HASH
