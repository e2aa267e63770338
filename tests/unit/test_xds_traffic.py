"""Traffic policies as xDS: who is told what, and which of two policies wins."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.filters.http.local_ratelimit.v3 import local_rate_limit_pb2

from control.xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, take_snapshot
from control.xds.traffic import FAULT_FILTER, RATE_FILTER, TrafficRules
from control.xds.translate import NodeKind, Topology, translate
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

PAY = "cellpay.payments.v1.PaymentsService/Pay"
BOTH = pytest.mark.parametrize("kind", list(NodeKind))


def _topology(*traffic: Traffic, edge: tuple[EdgeRate, ...] = ()) -> Topology:
    endpoints = {"a": ("127.0.0.1:1",), "b": ("127.0.0.1:2",)}
    rules = TrafficRules(traffic, edge)
    return Topology(SlotMap.even(["a", "b"]), endpoints, "127.0.0.1:3", "-- Lua", rules)


def _host(topology: Topology, kind: NodeKind) -> Any:
    (configuration,) = translate(topology, kind).routes.values()
    found: Any = configuration
    return found.virtual_hosts[0]


def _routes(topology: Topology, kind: NodeKind) -> dict[tuple[str, str], Any]:
    """By cell and path; '' is what has no policy of its own."""
    return {
        (route.route.cluster.removeprefix("cell-"), route.match.path): route
        for route in _host(topology, kind).routes
    }


def _cluster(topology: Topology, kind: NodeKind, cell: str = "a") -> Any:
    return translate(topology, kind).clusters[f"cell-{cell}"]


@BOTH
def test_a_breaker_and_outlier_detection_are_the_clusters(kind: NodeKind) -> None:
    policy = Traffic(
        ("a",), circuit_breaker=CircuitBreaker(7), outlier_detection=OutlierDetection(hosts_min=3)
    )
    topology = _topology(policy)
    cluster = _cluster(topology, kind)
    (thresholds,) = cluster.circuit_breakers.thresholds
    assert thresholds.max_requests.value == 7
    assert cluster.outlier_detection.failure_percentage_minimum_hosts.value == 3
    other = _cluster(topology, kind, "b")
    assert not other.HasField("outlier_detection")
    assert not any(item.HasField("max_requests") for item in other.circuit_breakers.thresholds)


def test_the_edge_keeps_its_retry_budget_beside_a_breaker_and_takes_the_policys() -> None:
    budget = Retry((RetryCode.UNAVAILABLE,), budget_percent=5)
    for policy, percent in ((Traffic(circuit_breaker=CircuitBreaker(7)), 25),
                            (Traffic(retry=budget), 5)):  # fmt: skip
        (thresholds,) = _cluster(_topology(policy), NodeKind.EDGE).circuit_breakers.thresholds
        assert thresholds.retry_budget.budget_percent.value == percent


@BOTH
def test_a_method_with_a_policy_has_a_route_of_its_own_before_the_others(kind: NodeKind) -> None:
    topology = _topology(Traffic(methods=(PAY,), timeout_ms=250), Traffic(("a",), timeout_ms=900))
    routes = _routes(topology, kind)
    limits = {
        key: route.route.max_stream_duration.max_stream_duration.ToMilliseconds()
        for key, route in routes.items()
    }
    # At the edge there is a bound without a policy, too.
    bound = 60_000 if kind == NodeKind.EDGE else 0
    assert limits == {
        ("a", f"/{PAY}"): 250, ("a", ""): 900, ("b", f"/{PAY}"): 250, ("b", ""): bound,
    }  # fmt: skip
    order = [route.match.path for route in _host(topology, kind).routes]
    assert order == [f"/{PAY}", "", f"/{PAY}", ""]


def test_the_edge_cuts_a_longer_deadline_of_the_caller_and_leaves_the_others() -> None:
    routes = _routes(_topology(Traffic(("a",), timeout_ms=250)), NodeKind.EDGE)
    limits = [
        route.route.max_stream_duration.grpc_timeout_header_max.ToMilliseconds()
        for _, route in sorted(routes.items())
    ]
    assert limits == [250, 60_000]


@BOTH
def test_the_most_specific_policy_wins_field_by_field(kind: NodeKind) -> None:
    retry = Retry((RetryCode.INTERNAL,), retries_max=3)
    topology = _topology(
        Traffic(("a",), (PAY,), timeout_ms=1),
        Traffic((), (PAY,), timeout_ms=2),
        Traffic(("a",), timeout_ms=3),
        Traffic(timeout_ms=4, retry=retry),
    )
    routes = _routes(topology, kind)
    assert {
        key: route.route.max_stream_duration.max_stream_duration.ToMilliseconds()
        for key, route in routes.items()
    } == {("a", f"/{PAY}"): 1, ("b", f"/{PAY}"): 2, ("a", ""): 3, ("b", ""): 4}
    for route in routes.values():
        assert route.route.retry_policy.num_retries.value == 3
        assert "internal" in route.route.retry_policy.retry_on


@BOTH
def test_a_fault_is_the_routes_and_its_percentages_are_exact(kind: NodeKind) -> None:
    fault = Fault(20, 0.5, AbortCode.UNAVAILABLE, 12.5)
    route = _routes(_topology(Traffic(("a",), fault=fault)), kind)["a", ""]
    made = fault_pb2.HTTPFault()
    assert route.typed_per_filter_config[FAULT_FILTER].Unpack(made)
    assert (made.delay.percentage.numerator, made.abort.percentage.numerator) == (5000, 125_000)
    assert made.abort.grpc_status == 14


def test_only_a_fault_changes_a_clients_listener_and_nothing_the_edges() -> None:
    plain = _topology()
    faulty = _topology(Traffic(fault=Fault(1, 1)), edge=(EdgeRate(1, 1),))
    timed = _topology(Traffic(timeout_ms=1))
    for kind, topology, same in (
        (NodeKind.CLIENT, faulty, False),
        (NodeKind.CLIENT, timed, True),
        (NodeKind.EDGE, faulty, True),
    ):
        versions = [take_snapshot(item, kind).types[LISTENER].version for item in (plain, topology)]
        assert (versions[0] == versions[1]) is same


@BOTH
def test_a_policy_of_routes_leaves_clusters_and_endpoints_as_they_are(kind: NodeKind) -> None:
    before = take_snapshot(_topology(), kind)
    after = take_snapshot(_topology(Traffic(methods=(PAY,), timeout_ms=9)), kind)
    same = {url: before.types[url].version == after.types[url].version for url in before.types}
    assert same == {LISTENER: True, ROUTE: False, CLUSTER: True, ENDPOINT: True}


def test_rates_at_the_edge_are_one_bucket_for_all_and_one_a_method() -> None:
    rates = (EdgeRate(100, 200), EdgeRate(50, 60), EdgeRate(5, 6, (PAY,)))
    host = _host(_topology(edge=rates), NodeKind.EDGE)
    limit = local_rate_limit_pb2.LocalRateLimit()
    assert host.typed_per_filter_config[RATE_FILTER].Unpack(limit)
    assert (limit.token_bucket.tokens_per_fill.value, limit.token_bucket.max_tokens) == (50, 60)
    (one,) = limit.descriptors
    assert one.entries[0].value == f"/{PAY}"
    assert one.token_bucket.max_tokens == 6
    assert not _host(_topology(edge=rates), NodeKind.CLIENT).typed_per_filter_config
