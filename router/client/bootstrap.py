"""gRPC's xDS bootstrap: where the xDS server is, who we are, where our certificates lie.

Formats: gRFC A27 (bootstrap), A29 (certificate providers), A65 (mTLS to the xDS server).
"""

from __future__ import annotations

from typing import Any

from router.client.tls import TlsFiles

PROVIDER = "default"
# Certificates are reread this often, so that they can be rotated without a restart.
_REFRESH_S = 600


def xds_bootstrap(xds_address: str, tls: TlsFiles, node_id: str) -> dict[str, Any]:
    """The document for GRPC_XDS_BOOTSTRAP. `node_id` begins with `client-` or `cell-`."""
    files = {
        "ca_certificate_file": tls.ca,
        "certificate_file": tls.certificate,
        "private_key_file": tls.key,
        "refresh_interval": f"{_REFRESH_S}s",
    }
    return {
        "xds_servers": [
            {
                "server_uri": xds_address,
                "channel_creds": [{"type": "tls", "config": files}],
                "server_features": ["xds_v3"],
            }
        ],
        "node": {"id": node_id, "metadata": {"kind": "client"}},
        "certificate_providers": {PROVIDER: {"plugin_name": "file_watcher", "config": files}},
    }
