"""Who calls: the SPIFFE ID in the caller's certificate, `spiffe://cellpay.local/<kind>/<name>`.

Kinds: cell, controller, edge, service, operator. mTLS has checked the certificate before we look.
"""

from __future__ import annotations

from typing import Any, NamedTuple

TRUST_DOMAIN = "cellpay.local"


class Caller(NamedTuple):
    spiffe_id: str
    kind: str
    name: str


def spiffe_id(kind: str, name: str) -> str:
    return f"spiffe://{TRUST_DOMAIN}/{kind}/{name}"


def parse_spiffe_id(text: str) -> Caller | None:
    scheme, _, rest = text.partition("://")
    parts = rest.split("/")
    if scheme != "spiffe" or len(parts) != 3 or parts[0] != TRUST_DOMAIN:
        return None
    return Caller(text, parts[1], parts[2])


def caller_of(context: Any) -> Caller | None:
    """The caller behind a grpc.aio ServicerContext; None without a certificate of ours."""
    auth = context.auth_context()
    for key in ("peer_spiffe_id", "x509_subject_alternative_name"):
        for value in auth.get(key, ()):
            caller = parse_spiffe_id(value.decode("utf-8", "replace"))
            if caller is not None:
                return caller
    return None
