"""gRPC's xDS bootstrap: where the xDS server is, who we are, where our certificates lie.

Formats: gRFC A27 (bootstrap), A29 (certificate providers), A65 (mTLS to the xDS server), A71
(fallback).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from router.client.tls import TlsFiles

PROVIDER = "default"
# Certificates are reread this often, so that they can be rotated without a restart.
_REFRESH_S = 600


def xds_bootstrap(
    xds_servers: str | Sequence[str], tls: TlsFiles, node_id: str, refresh_s: int = _REFRESH_S
) -> dict[str, Any]:
    """The document for GRPC_XDS_BOOTSTRAP. `node_id` begins with `client-` or `cell-`.

    `xds_servers`: the first that can be reached serves; a later one only whoever starts while those
    before it are away (A71). Who has a configuration keeps it, and waits for the first. So several
    controllers are one address here, not several.
    """
    addresses = [xds_servers] if isinstance(xds_servers, str) else xds_servers
    files = {
        "ca_certificate_file": tls.ca,
        "certificate_file": tls.certificate,
        "private_key_file": tls.key,
        "refresh_interval": f"{refresh_s}s",
    }
    return {
        "xds_servers": [
            {
                "server_uri": address,
                "channel_creds": [{"type": "tls", "config": files}],
                "server_features": ["xds_v3"],
            }
            for address in addresses
        ],
        "node": {"id": node_id, "metadata": {"kind": "client"}},
        "certificate_providers": {PROVIDER: {"plugin_name": "file_watcher", "config": files}},
    }
