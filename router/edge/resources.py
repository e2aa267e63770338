"""What documents for Envoy are made of."""

from __future__ import annotations

from typing import Any

# Static secrets of the bootstrap: Envoy's own certificate, and whom it trusts.
EDGE_CERTIFICATE = "edge_certificate"
MESH_CA = "mesh_ca"
# The cluster of the bootstrap to which spans go, and OpenTelemetry's service.name of Envoy.
COLLECTOR = "collector"
EDGE_SERVICE = "cellpay-edge"


def type_of(name: str) -> str:
    """The type of an extension's settings, `filters.http.router.v3.Router`."""
    return f"type.googleapis.com/envoy.extensions.{name}"


def address_of(address: str) -> dict[str, Any]:
    """host:port as Envoy wants it."""
    host, _, port = address.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}
