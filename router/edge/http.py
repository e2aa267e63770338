"""The HTTP/JSON edge: a listener of Envoy that turns what merchants send into gRPC.

It forwards to the gRPC edge of the same Envoy, which finds new homes and carries out policies: a
listener of its own, because what the gRPC edge redirects must already be gRPC. Hardened as Envoy's
guide for edge proxies says ("Configuring Envoy as an edge proxy").
"""

from __future__ import annotations

import base64
from importlib import resources
from pathlib import Path
from typing import Any

import cellpay
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

import router.edge
from router.edge.bodies import lua_tables
from router.edge.hardening import (
    NO_RANGES,
    Ranges,
    access_filters,
    chain_bounds,
    manager_bounds,
    whole,
)
from router.edge.resources import (
    EDGE_CERTIFICATE,
    MESH_CA,
    address_of,
    type_of,
)
from router.identity import spiffe_id

CLUSTER = "edge"
_BODY_BYTES_MAX = 64 * 1024
_TIMEOUT = "15s"
_IDLE_TIMEOUT = "60s"


def descriptors() -> Path:
    """Where the descriptor set of all protos is."""
    return Path(str(resources.files(cellpay) / "descriptors.binpb"))


def described() -> descriptor_pb2.FileDescriptorSet:
    return descriptor_pb2.FileDescriptorSet.FromString(descriptors().read_bytes())


def transcoded_services() -> list[str]:
    """Full names of the services that have a method with google.api.http, sorted."""
    return sorted(
        f"{file.package}.{service.name}"
        for file in described().file
        for service in file.service
        if any(method.options.HasExtension(annotations_pb2.http) for method in service.method)
    )


def lua_source() -> str:
    """All that runs before the transcoder."""
    files = (_lua(name) for name in ("digest.lua", "strict.lua", "http.lua"))
    return "\n".join([lua_tables(described()), *files])


def http_listener(listen: str, ranges: Ranges = NO_RANGES) -> dict[str, Any]:
    """The listener's document."""
    manager = {
        "@type": type_of("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "http",
        "codec_type": "AUTO",
        # A user ID may hold a slash, which travels escaped; http.lua and the transcoder agree.
        **manager_bounds(escaped_slashes="KEEP_UNCHANGED", forward="SANITIZE_SET"),
        "stream_idle_timeout": _IDLE_TIMEOUT,
        "route_config": _routes(),
        "http_filters": [
            *access_filters(ranges, internal=False),
            whole(_BODY_BYTES_MAX),
            _filter("lua", "lua.v3.Lua", default_source_code={"inline_string": lua_source()}),
            _filter(
                "grpc_json_transcoder",
                "grpc_json_transcoder.v3.GrpcJsonTranscoder",
                **_transcoding(),
            ),
            _filter("router", "router.v3.Router"),
        ],
    }
    return {
        "name": "http",
        "address": address_of(listen),
        "per_connection_buffer_limit_bytes": 2 * _BODY_BYTES_MAX,
        "filter_chains": [
            {
                **chain_bounds(),
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }
                ],
                "transport_socket": {
                    "name": "envoy.transport_sockets.tls",
                    "typed_config": {
                        "@type": type_of("transport_sockets.tls.v3.DownstreamTlsContext"),
                        "require_client_certificate": True,
                        "common_tls_context": {
                            "alpn_protocols": ["h2", "http/1.1"],
                            "tls_certificate_sds_secret_configs": [{"name": EDGE_CERTIFICATE}],
                            "validation_context_sds_secret_config": {"name": MESH_CA},
                        },
                    },
                },
            }
        ],
    }


def _lua(name: str) -> str:
    return (Path(router.edge.__file__).parent / name).read_text(encoding="utf-8")


def edge_cluster(edge_listen: str, name: str) -> dict[str, Any]:
    """The gRPC edge, for the HTTP one: `name` is that of both in their certificate."""
    match = {"san_type": "URI", "matcher": {"exact": spiffe_id("edge", name)}}
    return {
        "name": CLUSTER,
        "type": "STATIC",
        "connect_timeout": "1s",
        "per_connection_buffer_limit_bytes": 2 * _BODY_BYTES_MAX,
        "load_assignment": {
            "cluster_name": CLUSTER,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address_of(edge_listen)}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": type_of("upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": {"http2_protocol_options": {}},
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


def _routes() -> dict[str, Any]:
    route = {
        "match": {"prefix": "/"},
        "route": {"cluster": CLUSTER, "timeout": _TIMEOUT},
    }
    return {
        "name": "http",
        "virtual_hosts": [{"name": "http", "domains": ["*"], "routes": [route]}],
    }


def _transcoding() -> dict[str, Any]:
    return {
        # Not a path: Envoy may run where this package is not.
        "proto_descriptor_bin": base64.b64encode(descriptors().read_bytes()).decode("ascii"),
        "services": transcoded_services(),
        "convert_grpc_status": True,
        # A user ID may hold any character; percent-encoded in the path it comes out as it was.
        "url_unescape_spec": "ALL_CHARACTERS",
        "request_validation_options": {
            "reject_unknown_method": True,
            "reject_unknown_query_parameters": True,
            "reject_binding_body_field_collisions": True,
        },
        # An amount of 0 is said, not left out.
        "print_options": {
            "preserve_proto_field_names": True,
            "always_print_primitive_fields": True,
        },
    }


def _filter(name: str, type_: str, **settings: Any) -> dict[str, Any]:
    return {
        "name": f"envoy.filters.http.{name}",
        "typed_config": {"@type": type_of(f"filters.http.{type_}"), **settings},
    }
