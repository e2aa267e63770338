"""What risk is asked: a request, as far as it says itself, and who asks.

What a caller says of itself is believed as far as the caller is: services of the mesh tell their
users' addresses, but who comes through the edge has the address that the edge saw.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any, NamedTuple

from cellpay.risk.v1.risk_pb2 import RiskContext

from cells.requests import Checker
from cells.risk.cases.model import Operation
from router.identity import address_of_client

_COUNTRY = re.compile(r"[A-Z]{2}", re.ASCII)


class Whence(NamedTuple):
    """Who asks; what is not known is empty."""

    device: str = ""
    ip: str = ""
    ip_country: str = ""
    card: str = ""
    card_scheme: str = ""
    card_country: str = ""


NOWHERE = Whence()


class Asked(NamedTuple):
    """A request before anything was read for it."""

    operation: Operation
    slot: int
    # Whose key it is (the home field's value), and the key: what the request's cases hang on.
    scope: str
    key: str
    # Empty where the order says it: then so are payee, amount and currency.
    user_id: str
    payee_id: str
    amount: int
    currency: str
    # The order, if it is for one.
    order_id: str
    whence: Whence
    # A charge is for an order that was read already.
    payee_is_merchant: bool = False


def whence_of(check: Checker, context: RiskContext) -> Whence:
    """What a request says of who asks."""
    device, card = context.device_id, context.card_token
    if device:
        check.name("risk_context.device_id", device)
    if card:
        check.name("risk_context.card_token", card)
    if context.ip_country and not _COUNTRY.fullmatch(context.ip_country):
        check.wrong("risk_context.ip_country", "is no ISO 3166-1 code such as DE")
    ip = ""
    if context.ip_address:
        ip = _address(context.ip_address)
        if not ip:
            check.wrong("risk_context.ip_address", "is no IPv4 or IPv6 address")
    return Whence(device, ip, context.ip_country, card)


def requested(check: Checker, request: Any) -> Whence:
    """Of a request with the field `risk_context`."""
    if not request.HasField("risk_context"):
        return NOWHERE
    return whence_of(check, request.risk_context)


def seen_by_edge(whence: Whence, context: Any) -> Whence:
    """With the address that the edge saw, where the call came through it."""
    ip = address_of_client(context)
    if not ip or ip == whence.ip:
        return whence
    return whence._replace(ip=ip, ip_country="")


def _address(text: str) -> str:
    """As all of Cellpay writes it; empty when it is none."""
    try:
        return ipaddress.ip_address(text.strip()).compressed
    except ValueError:
        return ""
