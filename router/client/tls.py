"""Paths of a workload's certificate: PEM files, reread by gRPC when they are rotated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True, slots=True)
class TlsFiles:
    ca: str
    certificate: str
    key: str

    def _read(self) -> tuple[bytes, bytes, bytes]:
        return (
            Path(self.ca).read_bytes(),
            Path(self.key).read_bytes(),
            Path(self.certificate).read_bytes(),
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        ca, key, certificate = self._read()
        return grpc.ssl_channel_credentials(ca, key, certificate)

    def server_credentials(self) -> grpc.ServerCredentials:
        """mTLS: a client without a certificate of the mesh's CA is not heard."""
        ca, key, certificate = self._read()
        return grpc.ssl_server_credentials(
            [(key, certificate)], root_certificates=ca, require_client_auth=True
        )
