"""Paths of a workload's certificate: PEM files, read again when they are rotated."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc


@dataclass(frozen=True, slots=True)
class TlsFiles:
    ca: str
    certificate: str
    key: str

    def stamp(self) -> tuple[int, ...]:
        """Another one after each rotation; empty while a file is missing."""
        try:
            return tuple(
                Path(path).stat().st_mtime_ns for path in (self.ca, self.certificate, self.key)
            )
        except OSError:
            return ()

    def _read(self) -> tuple[bytes, bytes, bytes]:
        return (
            Path(self.ca).read_bytes(),
            Path(self.key).read_bytes(),
            Path(self.certificate).read_bytes(),
        )

    def client_context(self) -> ssl.SSLContext:
        """For clients that are not gRPC's: shows the certificate, and checks the server's name."""
        context = ssl.create_default_context(cafile=self.ca)
        self.show_in(context)
        return context

    def show_in(self, context: ssl.SSLContext) -> None:
        """The certificate as it is now, for the handshakes to come. Raises OSError."""
        context.load_cert_chain(self.certificate, self.key)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        ca, key, certificate = self._read()
        return grpc.ssl_channel_credentials(ca, key, certificate)

    def server_credentials(self) -> grpc.ServerCredentials:
        """mTLS: a client without a certificate of the mesh's CA is not heard.

        The files are read again at a handshake after they have changed, so they can be rotated
        under a server that runs.
        """
        known = self.stamp()
        first = self._server_configuration()

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal known
            now = self.stamp()
            if now in ((), known):
                return None
            try:
                configuration = self._server_configuration()
            except OSError:
                return None
            known = now
            return configuration

        # Its types do not know that None means: as before.
        return grpc.dynamic_ssl_server_credentials(
            first, cast(Any, changed), require_client_authentication=True
        )

    def _server_configuration(self) -> grpc.ServerCertificateConfiguration:
        ca, key, certificate = self._read()
        return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=ca)
