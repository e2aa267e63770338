"""Who calls: the SPIFFE ID in the caller's certificate, `spiffe://cellpay.local/<kind>/<name>`.

mTLS has checked the certificate before we look. An edge speaks for others: Envoy says in
`x-forwarded-client-cert` whose certificate it was shown, and in `x-forwarded-for` from where. Both
are believed of edges alone, and read from the right: whatever a client sent stands on the left.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from router.access import Kind
from router.call import NOT_ASKED, Call

TRUST_DOMAIN = "cellpay.local"
EDGE = "edge"
CERTIFICATE_HEADER = "x-forwarded-client-cert"
ADDRESS_HEADER = "x-forwarded-for"


class Caller(NamedTuple):
    spiffe_id: str
    kind: str
    name: str


def spiffe_id(kind: str, name: str) -> str:
    return f"spiffe://{TRUST_DOMAIN}/{kind}/{name}"


@lru_cache(maxsize=4096)
def parse_spiffe_id(text: str) -> Caller | None:
    scheme, _, rest = text.partition("://")
    parts = rest.split("/")
    if scheme != "spiffe" or len(parts) != 3 or parts[0] != TRUST_DOMAIN or not all(parts):
        return None
    return Caller(text, parts[1], parts[2])


def caller_of(context: Any) -> Caller | None:
    """The caller behind a grpc.aio ServicerContext; None without a certificate of ours."""
    if not isinstance(context, Call):
        return _caller_of(context)
    if context.caller is NOT_ASKED:
        context.caller = _caller_of(context)
    found: Caller | None = context.caller
    return found


def _caller_of(context: Any) -> Caller | None:
    auth = context.auth_context()
    for key in ("peer_spiffe_id", "x509_subject_alternative_name"):
        for value in auth.get(key, ()):
            caller = parse_spiffe_id(value.decode("utf-8", "replace"))
            if caller is not None:
                return caller
    return None


def is_edge(caller: Caller | None) -> bool:
    """Whether it speaks for somebody else."""
    return caller is not None and caller.kind == EDGE


def principal_of(context: Any) -> Caller | None:
    """For whom the call is made: the caller, or whom an edge speaks for; never an edge itself."""
    if not isinstance(context, Call):
        return _principal_of(context)
    if context.principal is NOT_ASKED:
        context.principal = _principal_of(context)
    found: Caller | None = context.principal
    return found


def _principal_of(context: Any) -> Caller | None:
    caller = caller_of(context)
    if caller is None or caller.kind != EDGE:
        return caller
    for shown in _shown(context):
        if shown is None or shown.kind != EDGE:
            return shown
    return None


def merchant_of(context: Any) -> str:
    """Whose certificate it is, shown to an edge or to us; empty when it is no merchant's."""
    principal = principal_of(context)
    return principal.name if principal is not None and principal.kind == Kind.MERCHANT else ""


def address_of_client(context: Any) -> str:
    """The address from which an edge was called; empty when no edge was, or it did not say."""
    caller = caller_of(context)
    if caller is None or caller.kind != EDGE:
        return ""
    # The HTTP edge calls the gRPC one: each edge that was shown an edge's certificate is a hop.
    hops = 0
    for shown in _shown(context):
        if shown is None or shown.kind != EDGE:
            break
        hops += 1
    said = [part.strip() for part in _header(context, ADDRESS_HEADER).split(",")]
    if len(said) <= hops:
        return ""
    try:
        return str(ipaddress.ip_address(said[-1 - hops]))
    except ValueError:
        return ""


def _shown(context: Any) -> Iterator[Caller | None]:
    """Whose certificates edges were shown, the nearest edge's first."""
    for element in reversed(_header(context, CERTIFICATE_HEADER).split(",")):
        names = [part[4:] for part in element.split(";") if part.startswith("URI=")]
        yield parse_spiffe_id(names[0]) if len(names) == 1 else None


def _header(context: Any, name: str) -> str:
    """As one list, if it came several times."""
    found = [str(value) for key, value in context.invocation_metadata() or () if key == name]
    return ",".join(found)
