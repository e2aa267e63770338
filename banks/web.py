"""TLS of a bank's own servers, and what a bank needs to call back: files, as a bank's are."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from banks.behaviour import DOCUMENT


@DOCUMENT
@dataclass(frozen=True, slots=True)
class TlsOptions:
    """PEM files. `client_ca`: whom to ask a certificate of; empty: nobody."""

    certificate: str
    key: str
    client_ca: str = ""


def server_tls(options: TlsOptions) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(options.certificate, options.key)
    if options.client_ca:
        context.load_verify_locations(options.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
