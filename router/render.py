"""Bootstraps for Envoy and for gRPC's xDS, written where they are read: in a pod, before it starts.

python -m router.render edge SETTINGS.json OUT.json
python -m router.render client SETTINGS.json OUT.json
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from router.client.bootstrap import xds_bootstrap
from router.client.tls import TlsFiles
from router.documents import BadSettings, read_document
from router.edge.bootstrap import OFF, HttpEdge, edge_bootstrap
from router.tracing.model import TracingSettings


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    xds_servers: list[str]
    # host:port of Envoy's own pages; loopback.
    admin: str
    tls: TlsFiles
    node_id: str
    # Whom it believes to be the control plane: SPIFFE IDs that begin so.
    control_spiffe_prefix: str
    http: HttpEdge | None = None
    # The controllers' has the same endpoint, and the share of traces that Envoy begins.
    tracing: TracingSettings = OFF


@dataclass(frozen=True, slots=True)
class ClientSettings:
    xds_servers: list[str]
    tls: TlsFiles
    # Begins with `client-` or `cell-`.
    node_id: str


def render(kind: str, settings: Path) -> dict[str, Any]:
    """The document. Raises BadSettings, ValidationError."""
    document = read_document(settings)
    if kind == "edge":
        edge = TypeAdapter(EdgeSettings).validate_json(document)
        return edge_bootstrap(
            edge.xds_servers,
            edge.admin,
            edge.tls,
            edge.node_id,
            edge.control_spiffe_prefix,
            edge.http,
            edge.tracing,
        )
    client = TypeAdapter(ClientSettings).validate_json(document)
    return xds_bootstrap(client.xds_servers, client.tls, client.node_id)


def main() -> None:
    match sys.argv[1:]:
        case ["edge" | "client" as kind, settings, out]:
            try:
                document = render(kind, Path(settings))
            except (BadSettings, ValidationError, OSError) as error:
                raise SystemExit(str(error)) from None
            Path(out).write_text(json.dumps(document), encoding="utf-8")
        case _:
            raise SystemExit(f"usage: {__doc__}")


if __name__ == "__main__":
    main()
