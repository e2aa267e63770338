"""Envoy's bootstrap: ADS from the control plane over mTLS; its certificates as static secrets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from router.client.tls import TlsFiles
from router.edge.hardening import RUNTIME, Ranges, overload_manager
from router.edge.http import edge_cluster, http_listener
from router.edge.resources import COLLECTOR, EDGE_CERTIFICATE, MESH_CA, address_of, type_of
from router.tracing.model import TracingSettings

_CONTROL = "control"
_SYSTEM_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
OFF = TracingSettings()
# Spans wait for five seconds by default, which is long for who looks for what just happened.
_FLUSHING = {
    "name": "tracing",
    "static_layer": {
        "tracing.opentelemetry.flush_interval_ms": 1000,
        "tracing.opentelemetry.min_flush_spans": 64,
    },
}
# Tells Envoy to go to a server of a lower priority, and back.
_HEALTH_CHECK = {
    "timeout": "1s",
    "interval": "2s",
    "unhealthy_threshold": 1,
    "healthy_threshold": 1,
    "tcp_health_check": {},
}


@dataclass(frozen=True, slots=True)
class HttpEdge:
    """Where merchants without gRPC come in, and where their requests go on."""

    listen: str
    edge_listen: str
    # Of Envoy's certificate.
    name: str
    # Of the gRPC edge the controllers' settings say it (control/settings.py).
    ranges: Ranges = field(default_factory=Ranges)


def edge_bootstrap(
    xds_servers: str | Sequence[str],
    admin_address: str,
    tls: TlsFiles,
    node_id: str,
    control_spiffe_prefix: str,
    http: HttpEdge | None = None,
    tracing: TracingSettings = OFF,
) -> dict[str, Any]:
    """The document for `envoy --config-path` (JSON is YAML). Addresses are host:port.

    Of `xds_servers` the first that lives serves; the others are for when it does not. `tracing`:
    where the collector is to which the xDS server lets Envoy send its spans.
    """
    addresses = [xds_servers] if isinstance(xds_servers, str) else xds_servers
    ads = {"resource_api_version": "V3", "ads": {}}
    clusters = [_control_cluster(addresses, control_spiffe_prefix)]
    listeners = []
    if tracing.endpoint:
        clusters.append(collector_cluster(tracing.endpoint))
    if http is not None:
        clusters.append(edge_cluster(http.edge_listen, http.name))
        listeners.append(http_listener(http.listen, http.ranges))
    return {
        "node": {"id": node_id, "cluster": "edge", "metadata": {"kind": "edge"}},
        "admin": {"address": address_of(admin_address)},
        "overload_manager": overload_manager(),
        "layered_runtime": {"layers": [RUNTIME, *([_FLUSHING] if tracing.endpoint else [])]},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": _CONTROL}}],
            },
            "lds_config": ads,
            "cds_config": ads,
        },
        "static_resources": {
            "clusters": clusters,
            "listeners": listeners,
            "secrets": _secrets(tls),
        },
    }


def collector_cluster(endpoint: str) -> dict[str, Any]:
    """Of OTLP over HTTP; of https with the system's authorities."""
    url = urlsplit(endpoint)
    secure = url.scheme == "https"
    address = f"{url.hostname}:{url.port or (443 if secure else 80)}"
    tls = {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": type_of("transport_sockets.tls.v3.UpstreamTlsContext"),
            "sni": url.hostname,
            "auto_sni_san_validation": True,
            "common_tls_context": {
                "validation_context": {"trusted_ca": {"filename": _SYSTEM_AUTHORITIES}}
            },
        },
    }
    return {
        "name": COLLECTOR,
        "type": "STRICT_DNS",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": COLLECTOR,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address_of(address)}}]}],
        },
        **({"transport_socket": tls} if secure else {}),
    }


def _control_cluster(addresses: Sequence[str], spiffe_prefix: str) -> dict[str, Any]:
    match = {"san_type": "URI", "matcher": {"prefix": spiffe_prefix}}
    return {
        "name": _CONTROL,
        "type": "STRICT_DNS",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": _CONTROL,
            "endpoints": [
                {
                    "priority": number,
                    "lb_endpoints": [{"endpoint": {"address": address_of(address)}}],
                }
                for number, address in enumerate(addresses)
            ],
        },
        **({"health_checks": [_HEALTH_CHECK]} if len(addresses) > 1 else {}),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": type_of("upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": {
                    "http2_protocol_options": {
                        "connection_keepalive": {"interval": "5s", "timeout": "3s"}
                    }
                },
            }
        },
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": type_of("transport_sockets.tls.v3.UpstreamTlsContext"),
                "common_tls_context": {
                    "alpn_protocols": ["h2"],
                    "tls_certificate_sds_secret_configs": [{"name": EDGE_CERTIFICATE}],
                    "combined_validation_context": {
                        "validation_context_sds_secret_config": {"name": MESH_CA},
                        "default_validation_context": {"match_typed_subject_alt_names": [match]},
                    },
                },
            },
        },
    }


def _secrets(tls: TlsFiles) -> list[dict[str, Any]]:
    return [
        {
            "name": EDGE_CERTIFICATE,
            "tls_certificate": {
                "certificate_chain": {"filename": tls.certificate},
                "private_key": {"filename": tls.key},
            },
        },
        {"name": MESH_CA, "validation_context": {"trusted_ca": {"filename": tls.ca}}},
    ]
