"""Traffic policies as xDS, for what gRPC 1.85 and Envoy each carry out. Pure.

    policy                gRPC                          Envoy
    circuit_breaker       cluster, max_requests (A32)   the same, and connections and pending calls
    outlier_detection     cluster, failure share (A50)  the same, and failures in a row
    retry                 route (A44); no budget        route; the budget is the cluster's
    timeout_ms            route, max_stream_duration    the same, and a longer grpc-timeout is cut
                          (A31)
    fault                 HTTP filter, by route (A33)   the same
    limits' `edge`        -                             local rate limit of the virtual host

Of several policies for one thing the most specific wins, field by field: a method before a cell
before the mesh; then the one whose name comes last.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2, outlier_detection_pb2
from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.common.ratelimit.v3 import ratelimit_pb2
from envoy.extensions.filters.common.fault.v3 import fault_pb2 as common_fault_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.filters.http.local_ratelimit.v3 import local_rate_limit_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.type.v3 import percent_pb2, token_bucket_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import UInt32Value

from router.errors import STATUS_DETAILS_KEY, rate_limited
from router.policies.model import EdgeRate, Fault, Limits, Retry, Traffic
from router.policies.rules import PolicySet

FAULT_FILTER = "envoy.filters.http.fault"
RATE_FILTER = "envoy.filters.http.local_ratelimit"
_FIELDS = ("circuit_breaker", "outlier_detection", "retry", "timeout_ms", "fault")
# Envoy's own bound of what is at once, where only another bound is set.
_UNLIMITED = 2**31
_GRPC_CODES = {
    "CANCELLED": 1,
    "DEADLINE_EXCEEDED": 4,
    "RESOURCE_EXHAUSTED": 8,
    "ABORTED": 10,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
}


@dataclass(frozen=True)
class TrafficRules:
    """Everything that policies say of how calls travel."""

    traffic: tuple[Traffic, ...] = ()
    edge: tuple[EdgeRate, ...] = ()


NO_RULES = TrafficRules()
_SILENT = Traffic()


def traffic_of(policies: PolicySet) -> TrafficRules:
    edge = [rate for limits in policies.of(Limits) for rate in limits.edge]
    return TrafficRules(tuple(policies.of(Traffic)), tuple(edge))


def of_cell(rules: TrafficRules, cell: str) -> Traffic:
    """What holds for a cell, whatever the method."""
    return _merged(item for item in _for(rules, cell) if not item.methods)


def of_methods(rules: TrafficRules, cell: str) -> Mapping[str, Traffic]:
    """What holds for each method that has a policy of its own in a cell."""
    items = _for(rules, cell)
    names = sorted({name for item in items for name in item.methods})
    return {
        name: _merged(item for item in items if not item.methods or name in item.methods)
        for name in names
    }


def _for(rules: TrafficRules, cell: str) -> list[Traffic]:
    """The least specific first; `sorted` is stable, so names decide among equals."""
    mine = [item for item in rules.traffic if not item.cells or cell in item.cells]
    return sorted(mine, key=lambda item: (bool(item.methods), bool(item.cells)))


def _merged(items: Iterable[Traffic]) -> Traffic:
    merged = _SILENT
    for item in items:
        said: dict[str, Any] = {
            name: getattr(item, name) for name in _FIELDS if getattr(item, name) is not None
        }
        merged = replace(merged, **said)
    return merged


def pack(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message, deterministic=True)
    return packed


def duration(milliseconds: int) -> Duration:
    made = Duration()
    made.FromMilliseconds(milliseconds)
    return made


def filters(rules: TrafficRules, *, edge: bool) -> list[hcm_pb2.HttpFilter]:
    """The filters that carry policies out, in front of the router.

    Envoy always has them, so that a policy changes its routes only: another listener would drain
    its clients' connections. A gRPC client has the fault filter while there is a fault.
    """
    fault = hcm_pb2.HttpFilter(name=FAULT_FILTER, typed_config=pack(fault_pb2.HTTPFault()))
    if not edge:
        return [fault] if any(item.fault for item in rules.traffic) else []
    idle = local_rate_limit_pb2.LocalRateLimit(stat_prefix="edge")
    return [hcm_pb2.HttpFilter(name=RATE_FILTER, typed_config=pack(idle)), fault]


def apply_to_cluster(cluster: cluster_pb2.Cluster, traffic: Traffic, *, edge: bool) -> None:
    breaker, outliers = traffic.circuit_breaker, traffic.outlier_detection
    if breaker is not None:
        thresholds = _thresholds(cluster)
        thresholds.max_requests.value = breaker.requests_max
        if edge:
            thresholds.max_connections.value = breaker.connections_max or _UNLIMITED
            thresholds.max_pending_requests.value = breaker.pending_max or breaker.requests_max
    if edge and traffic.retry is not None and traffic.retry.budget_percent is not None:
        budget = _thresholds(cluster).retry_budget
        budget.budget_percent.value = traffic.retry.budget_percent
    if outliers is not None:
        detection = outlier_detection_pb2.OutlierDetection(
            interval=duration(outliers.interval_ms),
            base_ejection_time=duration(outliers.base_ejection_ms),
            max_ejection_time=duration(outliers.max_ejection_ms),
            max_ejection_percent=UInt32Value(value=outliers.ejected_percent_max),
            enforcing_success_rate=UInt32Value(value=0),
            failure_percentage_threshold=UInt32Value(value=outliers.failure_percent),
            enforcing_failure_percentage=UInt32Value(value=100),
            failure_percentage_minimum_hosts=UInt32Value(value=outliers.hosts_min),
            failure_percentage_request_volume=UInt32Value(value=outliers.requests_min),
        )
        if edge:
            row = outliers.consecutive_failures
            detection.consecutive_5xx.value = row or 0
            detection.enforcing_consecutive_5xx.value = 100 if row else 0
            detection.enforcing_consecutive_gateway_failure.value = 0
        cluster.outlier_detection.CopyFrom(detection)


def _thresholds(cluster: cluster_pb2.Cluster) -> Any:
    """Of the default priority; Envoy's clusters have them from the start."""
    if not cluster.circuit_breakers.thresholds:
        cluster.circuit_breakers.thresholds.append(circuit_breaker_pb2.CircuitBreakers.Thresholds())
    return cluster.circuit_breakers.thresholds[0]


def apply_to_route(route: route_components_pb2.Route, traffic: Traffic, *, edge: bool) -> None:
    if traffic.timeout_ms is not None:
        limit = route.route.max_stream_duration
        limit.max_stream_duration.CopyFrom(duration(traffic.timeout_ms))
        if edge:
            limit.grpc_timeout_header_max.CopyFrom(duration(traffic.timeout_ms))
    if traffic.retry is not None:
        route.route.retry_policy.CopyFrom(_retry_policy(traffic.retry, edge=edge))
    if traffic.fault is not None:
        route.typed_per_filter_config[FAULT_FILTER].CopyFrom(pack(_fault(traffic.fault)))


def _retry_policy(retry: Retry, *, edge: bool) -> route_components_pb2.RetryPolicy:
    # At the edge a call that reached no cell is tried again whatever the codes say.
    always = ["connect-failure", "refused-stream", "reset-before-request"] if edge else []
    return route_components_pb2.RetryPolicy(
        retry_on=",".join([*retry.codes, *always]),
        num_retries=UInt32Value(value=retry.retries_max),
        retry_back_off=route_components_pb2.RetryPolicy.RetryBackOff(
            base_interval=duration(retry.backoff_base_ms),
            max_interval=duration(retry.backoff_cap_ms),
        ),
    )


def _share(percent: float) -> percent_pb2.FractionalPercent:
    return percent_pb2.FractionalPercent(
        numerator=round(percent * 10_000), denominator=percent_pb2.FractionalPercent.MILLION
    )


def _fault(fault: Fault) -> fault_pb2.HTTPFault:
    made = fault_pb2.HTTPFault()
    if fault.delay_percent:
        made.delay.CopyFrom(
            common_fault_pb2.FaultDelay(
                fixed_delay=duration(fault.delay_ms), percentage=_share(fault.delay_percent)
            )
        )
    if fault.abort_percent and fault.abort_code is not None:
        made.abort.CopyFrom(
            fault_pb2.FaultAbort(
                grpc_status=_GRPC_CODES[fault.abort_code], percentage=_share(fault.abort_percent)
            )
        )
    return made


def apply_to_host(host: route_components_pb2.VirtualHost, rules: TrafficRules) -> None:
    """Envoy's rate limits: one bucket for all calls, and one for each method that has one."""
    if not rules.edge:
        return
    of_all = [rate for rate in rules.edge if not rate.methods]
    limit = local_rate_limit_pb2.LocalRateLimit(
        stat_prefix="edge",
        token_bucket=_bucket(*min(((item.per_s, item.burst) for item in of_all), default=_NO_RATE)),
        filter_enabled=_always("edge_rate_enabled"),
        filter_enforced=_always("edge_rate_enforced"),
        rate_limited_as_resource_exhausted=True,
        response_headers_to_add=[
            base_pb2.HeaderValueOption(
                header=base_pb2.HeaderValue(key=STATUS_DETAILS_KEY, value=_DETAILS)
            )
        ],
    )
    by_path = route_components_pb2.RateLimit()
    headers = by_path.actions.add().request_headers
    headers.header_name, headers.descriptor_key = ":path", "path"
    limit.rate_limits.append(by_path)
    for method in sorted({name for rate in rules.edge for name in rate.methods}):
        chosen = min((r.per_s, r.burst) for r in rules.edge if method in r.methods)
        limit.descriptors.append(
            ratelimit_pb2.LocalRateLimitDescriptor(
                entries=[ratelimit_pb2.RateLimitDescriptor.Entry(key="path", value=f"/{method}")],
                token_bucket=_bucket(*chosen),
            )
        )
    host.typed_per_filter_config[RATE_FILTER].CopyFrom(pack(limit))


_NO_RATE = (_UNLIMITED, _UNLIMITED)
_DETAILS = base64.b64encode(
    rate_limited("edge", retry_after_ms=1000).to_status().SerializeToString()
).decode()


def _bucket(per_s: int, burst: int) -> token_bucket_pb2.TokenBucket:
    return token_bucket_pb2.TokenBucket(
        max_tokens=burst,
        tokens_per_fill=UInt32Value(value=per_s),
        fill_interval=duration(1000),
    )


def _always(key: str) -> base_pb2.RuntimeFractionalPercent:
    return base_pb2.RuntimeFractionalPercent(runtime_key=key, default_value=_share(100))


__all__ = [
    "FAULT_FILTER",
    "NO_RULES",
    "RATE_FILTER",
    "TrafficRules",
    "apply_to_cluster",
    "apply_to_host",
    "apply_to_route",
    "duration",
    "filters",
    "of_cell",
    "of_methods",
    "pack",
    "traffic_of",
]
