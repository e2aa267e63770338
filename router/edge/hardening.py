"""What Envoy's guide says of an edge ("Configuring Envoy as an edge proxy"), for both listeners.

Documents, as in JSON: the HTTP listener is one, and the control plane reads them into the messages
that it sends. Where we leave the guide, a comment says why. docs/security.md has it by line.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from router.access import STREAMS, internal_services
from router.edge.resources import type_of

RBAC_FILTER = "envoy.filters.http.rbac"
BUFFER_FILTER = "envoy.filters.http.buffer"
_HEADERS_KB_MAX = 16
_HEADERS_MAX = 64
_STREAMS_MAX = 100
_HEADERS_TIMEOUT = "5s"
_HANDSHAKE_TIMEOUT = "5s"
# From a request's first byte to its last.
_REQUEST_TIMEOUT = "10s"
_IDLE_TIMEOUT = "300s"
_CONNECTION_AGE = "600s"
_CONNECTIONS_MAX = 10_000
# Of a whole Envoy; what it holds of requests is bounded by connections, streams and buffers.
_HEAP_BYTES_MAX = 1024 * 1024 * 1024
# More streams than this on a connection, and most of them ended by the client within a second: it
# is closed (CVE-2023-44487, rapid reset). Envoy's own value is 500.
_RESETS_MAX = 100
# Requests of one connection in one turn of Envoy's loop, so that one client does not hold it up.
_REQUESTS_A_TURN_MAX = 8


@dataclass(frozen=True, slots=True)
class Ranges:
    """From where an edge may be called, as CIDR ranges of the address that its socket sees.

    For what lasts: networks of partners, of sanctions. What changes by the minute is for the risk
    engine's lists. Raises ValueError for what is no range.
    """

    # Empty: from everywhere.
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for text in (*self.allow, *self.deny):
            ipaddress.ip_network(text)


NO_RANGES = Ranges()


def manager_bounds(*, escaped_slashes: str, forward: str) -> dict[str, Any]:
    """Of an HTTP connection manager. `forward`: what becomes of x-forwarded-client-cert."""
    return {
        # Nobody is internal, neighbours on a loopback included: x-envoy-… headers are taken off.
        "use_remote_address": True,
        "internal_address_config": {"cidr_ranges": []},
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": escaped_slashes,
        "common_http_protocol_options": {
            "headers_with_underscores_action": "REJECT_REQUEST",
            "idle_timeout": _IDLE_TIMEOUT,
            "max_connection_duration": _CONNECTION_AGE,
            "max_headers_count": _HEADERS_MAX,
        },
        "http2_protocol_options": {
            "max_concurrent_streams": _STREAMS_MAX,
            "initial_stream_window_size": 65_536,
            "initial_connection_window_size": 1_048_576,
        },
        "max_request_headers_kb": _HEADERS_KB_MAX,
        "request_headers_timeout": _HEADERS_TIMEOUT,
        "request_timeout": _REQUEST_TIMEOUT,
        "stream_idle_timeout": _IDLE_TIMEOUT,
        # Whose certificate it was, for router/identity.py.
        "forward_client_cert_details": forward,
        "set_current_client_cert_details": {"uri": True},
    }


def chain_bounds() -> dict[str, Any]:
    """Of a filter chain: who connects and says nothing."""
    return {"transport_socket_connect_timeout": _HANDSHAKE_TIMEOUT}


def access_filters(ranges: Ranges, *, internal: bool) -> list[dict[str, Any]]:
    """Filters that refuse by address and, with `internal`, what is for cells among themselves, and
    streams, of which `whole` would wait for the end.

    Cells refuse the former too (router/access.py); an edge need not carry it there.
    """
    anything = [{"any": True}]
    policies = {}
    if ranges.deny:
        policies["ranges"] = {"permissions": anything, "principals": _principals(ranges.deny)}
    if internal:
        paths = [{"url_path": {"path": {"prefix": f"/{name}/"}}} for name in internal_services()]
        paths += [{"url_path": {"path": {"exact": f"/{name}"}}} for name in STREAMS]
        policies["internal"] = {"permissions": paths, "principals": anything}
    found = [_rbac("DENY", policies)] if policies else []
    if ranges.allow:
        allowed = {"permissions": anything, "principals": _principals(ranges.allow)}
        found.append(_rbac("ALLOW", {"ranges": allowed}))
    return found


def whole(bytes_max: int) -> dict[str, Any]:
    """A filter that sends a request on when all of it is there.

    What never comes whole holds a place at the edge for `_REQUEST_TIMEOUT`, of which it has many,
    and none at a cell, of which Envoy gives 1,024 at a time to all of its clients together.
    """
    return {
        "name": BUFFER_FILTER,
        "typed_config": {
            "@type": type_of("filters.http.buffer.v3.Buffer"),
            "max_request_bytes": bytes_max,
        },
    }


def _principals(ranges: Sequence[str]) -> list[dict[str, Any]]:
    networks = [ipaddress.ip_network(text) for text in ranges]
    return [
        {
            "direct_remote_ip": {
                "address_prefix": str(network.network_address),
                "prefix_len": network.prefixlen,
            }
        }
        for network in networks
    ]


def _rbac(action: str, policies: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": RBAC_FILTER,
        "typed_config": {
            "@type": type_of("filters.http.rbac.v3.RBAC"),
            "rules": {"action": action, "policies": policies},
        },
    }


def overload_manager() -> dict[str, Any]:
    """An Envoy that runs out of memory sheds load before the kernel ends it."""
    heap, connections = (
        "envoy.resource_monitors.fixed_heap",
        "envoy.resource_monitors.global_downstream_max_connections",
    )

    def action(name: str, threshold: float) -> dict[str, Any]:
        return {
            "name": f"envoy.overload_actions.{name}",
            "triggers": [{"name": heap, "threshold": {"value": threshold}}],
        }

    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [
            {
                "name": heap,
                "typed_config": {
                    "@type": type_of("resource_monitors.fixed_heap.v3.FixedHeapConfig"),
                    "max_heap_size_bytes": _HEAP_BYTES_MAX,
                },
            },
            {
                "name": connections,
                "typed_config": {
                    "@type": type_of(
                        "resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
                    ),
                    "max_active_downstream_connections": _CONNECTIONS_MAX,
                },
            },
        ],
        "actions": [
            action("shrink_heap", 0.90),
            action("stop_accepting_connections", 0.95),
            action("stop_accepting_requests", 0.98),
        ],
    }


# A layer of Envoy's switches that no other setting has.
RUNTIME: dict[str, Any] = {
    "name": "edge",
    "static_layer": {
        "overload.premature_reset_total_stream_count": _RESETS_MAX,
        "http.max_requests_per_io_cycle": _REQUESTS_A_TURN_MAX,
    },
}
