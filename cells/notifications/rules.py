"""Where webhooks go, how they are signed, when they come again. Pure: commands over the book."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

from cells.ledger.book import Book
from cells.ledger.model import Accepted, Idempotency, Key, Outcome, PlainCommand, Reason, Refused
from cells.notifications.model import (
    TRANSITIONS,
    Delivery,
    DeliveryEvent,
    DeliveryState,
    Endpoint,
    Retrying,
)
from cells.notifications.tables import DELIVERIES, ENDPOINTS
from router.ids import Kind, derive

URL_CHARACTERS_MAX = 2048
SECRET_BYTES_MIN = 24
SECRET_BYTES_MAX = 64
# What of an error is kept for the merchant to read.
ERROR_CHARACTERS_MAX = 256

# Their last 32 bits are an IPv4 address: of NAT64, of translators (RFC 2765), and of RFC 4291's
# "compatible" ones, which nothing routes and a strange stack might.
_EMBEDDING = tuple(IPv6Network(text) for text in ("64:ff9b::/96", "::ffff:0:0:0/96", "::/96"))
# Names that resolve inside some network, never in the public DNS (RFC 6761, RFC 6762, RFC 9476).
_PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".intranet", ".home.arpa", ".alt")


def public_address(address: str) -> bool:
    """Whether a webhook may go to this IP address: it belongs to the public Internet."""
    try:
        found = ip_address(address)
    except ValueError:
        return False
    return all(one.is_global and not one.is_multicast for one in _meant_by(found))


def _meant_by(address: IPv4Address | IPv6Address) -> list[IPv4Address | IPv6Address]:
    """The address and any IPv4 address that it stands for: packets may end there."""
    meant: list[IPv4Address | IPv6Address] = [address]
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return [address.ipv4_mapped]
        if address.sixtofour is not None:
            meant.append(address.sixtofour)
        if address.teredo is not None:
            meant.extend(address.teredo)
        if any(address in network for network in _EMBEDDING):
            meant.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return meant


def url_fault(url: str, *, allow_private: bool) -> str | None:
    """What is wrong with an endpoint's URL; None when nothing is.

    A first answer for the merchant. What a host's name resolves to is checked at each connect.
    """
    if not url:
        return "must not be empty"
    if len(url) > URL_CHARACTERS_MAX:
        return f"has {len(url)} characters; at most {URL_CHARACTERS_MAX}"
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        return "holds characters that a URL must not have"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "is not a valid URL"
    if parts.scheme not in {"http", "https"}:
        return "must be an https URL" + (" or an http URL" if allow_private else "")
    if not host or port == 0:
        return "must name a host, and a port that exists"
    if parts.username is not None or parts.password is not None:
        return "must not hold a user name or a password"
    if parts.fragment:
        return "must not have a fragment"
    if allow_private:
        return None
    if parts.scheme != "https":
        return "must be an https URL"
    if not _public_host(host):
        return "must be a host of the public Internet"
    return None


def _public_host(host: str) -> bool:
    name = host.rstrip(".").lower()
    last = name.rpartition(".")[2]
    # A host whose last part is a number is an IPv4 address to somebody, however it is written.
    if ":" in name or last.isdigit() or last.startswith("0x"):
        return public_address(name)
    return "." in name and not name.endswith(_PRIVATE_SUFFIXES)


def signature(secret: bytes, webhook_id: str, unix_s: int, body: str) -> str:
    """The webhook-signature header of the Standard Webhooks specification, version 1."""
    digest = hmac.new(secret, signed_content(webhook_id, unix_s, body), hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def signed_content(webhook_id: str, unix_s: int, body: str) -> bytes:
    return f"{webhook_id}.{unix_s}.{body}".encode()


def public_signature(made: bytes) -> str:
    """The same specification's asymmetric one: Ed25519 of `signed_content`."""
    return f"v1a,{base64.b64encode(made).decode()}"


def delivery_id(slot: int, event_id: str) -> str:
    """The one delivery of an event, at its merchant's slot."""
    return derive(Kind.DELIVERY, slot, event_id)


def backoff_ceiling_s(failures: int, base_s: float, cap_s: float) -> float:
    """The longest wait after so many failures in a row."""
    return min(cap_s, base_s * 2.0 ** min(failures - 1, 60))


def next_state(delivery: Delivery, event: DeliveryEvent) -> DeliveryState | None:
    return TRANSITIONS[DeliveryState(delivery.state)].get(event)


@dataclass(frozen=True, slots=True)
class SetEndpoint(PlainCommand):
    """A merchant says where its events go; the last word counts."""

    slot: int
    merchant_id: str
    url: str
    # As it is only where there is no KMS to seal it.
    secret: bytes
    idempotency: Idempotency
    secret_sealed: str = ""
    kms_version: str = ""
    resource_type = ENDPOINTS

    def reads(self) -> Iterable[Key]:
        return (Key(ENDPOINTS, self.slot, self.merchant_id),)

    def decide(self, book: Book) -> Outcome:
        return Accepted(
            book.put(
                ENDPOINTS,
                Endpoint(
                    self.slot, self.merchant_id, self.url, self.secret, book.now,
                    self.secret_sealed, self.kms_version,
                ),
            )
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ResealEndpoint(PlainCommand):
    """The same secret, sealed otherwise. What was set meanwhile stays."""

    # As it was when its secret was opened.
    before: Endpoint
    secret: bytes
    secret_sealed: str
    kms_version: str
    idempotency = None
    resource_type = ENDPOINTS

    @property
    def slot(self) -> int:
        return self.before.slot

    def reads(self) -> Iterable[Key]:
        return (Key(ENDPOINTS, self.slot, self.before.endpoint_id),)

    def decide(self, book: Book) -> Outcome:
        known = book.get(ENDPOINTS, self.before.endpoint_id)
        if known != self.before:
            return Accepted(known)
        changed = self.before._replace(
            secret=self.secret, secret_sealed=self.secret_sealed, kms_version=self.kms_version
        )
        return Accepted(book.put(ENDPOINTS, changed))


@dataclass(frozen=True, slots=True)
class EnqueueDelivery(PlainCommand):
    """An event is to be delivered; the same event again finds its delivery."""

    slot: int
    merchant_id: str
    event_id: str
    event_type: str
    body: str
    traceparent: str = ""
    # The event is the key: it is in the delivery's ID.
    idempotency = None
    resource_type = DELIVERIES

    @property
    def delivery_id(self) -> str:
        return delivery_id(self.slot, self.event_id)

    def reads(self) -> Iterable[Key]:
        return (
            Key(DELIVERIES, self.slot, self.delivery_id),
            Key(ENDPOINTS, self.slot, self.merchant_id),
        )

    def decide(self, book: Book) -> Outcome:
        identifier = self.delivery_id
        known = book.get(DELIVERIES, identifier)
        if known is not None:
            return Accepted(known, replayed=True)
        endpoint = book.get(ENDPOINTS, self.merchant_id)
        state = DeliveryState.SKIPPED if endpoint is None else DeliveryState.PENDING
        delivery = Delivery(
            self.slot, identifier, self.event_id, self.event_type, self.merchant_id, self.body,
            state, 0, "", book.now, book.now, self.traceparent,
        )  # fmt: skip
        # Nothing is kept for a merchant who does not listen: it would cost as much as his payments.
        return Accepted(delivery if endpoint is None else book.put(DELIVERIES, delivery))


@dataclass(frozen=True, slots=True)
class ClaimDelivery(PlainCommand):
    """A worker takes a due delivery for one attempt, so that another does not send it as well.

    Accepted(None): it is not due any more, somebody else has it. The claim ends by itself, should
    its holder die; the attempt counts nevertheless, so a delivery that kills its worker ends too.
    """

    slot: int
    delivery_id: str
    claim_s: float
    attempts_max: int
    idempotency = None
    resource_type = DELIVERIES

    def reads(self) -> Iterable[Key]:
        return (Key(DELIVERIES, self.slot, self.delivery_id),)

    def decide(self, book: Book) -> Outcome:
        delivery = book.get(DELIVERIES, self.delivery_id)
        if delivery is None:
            return Refused(Reason.DELIVERY_NOT_FOUND, "there is no such delivery")
        if delivery.state != DeliveryState.PENDING or delivery.next_attempt_at > book.now:
            return Accepted(None)
        if delivery.attempts >= self.attempts_max:
            book.put(
                DELIVERIES,
                delivery._replace(state=DeliveryState.DEAD, last_error="the attempt had no end"),
            )
            return Accepted(None)
        until = book.now + timedelta(seconds=self.claim_s)
        return Accepted(
            book.put(
                DELIVERIES,
                delivery._replace(attempts=delivery.attempts + 1, next_attempt_at=until),
            )
        )


@dataclass(frozen=True, slots=True)
class EndAttempt(PlainCommand):
    """How an attempt ended. `random_unit`, from 0 to 1, spreads the next one (full jitter)."""

    slot: int
    delivery_id: str
    # The claim's count: a failure that another attempt has overtaken changes nothing.
    attempt: int
    # Empty: the merchant has it.
    error: str
    random_unit: float
    retrying: Retrying
    idempotency = None
    resource_type = DELIVERIES

    def reads(self) -> Iterable[Key]:
        return (Key(DELIVERIES, self.slot, self.delivery_id),)

    def decide(self, book: Book) -> Outcome:
        delivery = book.get(DELIVERIES, self.delivery_id)
        if delivery is None:
            return Refused(Reason.DELIVERY_NOT_FOUND, "there is no such delivery")
        event = self._event()
        state = next_state(delivery, event)
        overtaken = event != DeliveryEvent.DELIVER and self.attempt != delivery.attempts
        if state is None or overtaken:
            return Accepted(delivery, replayed=True)
        changed = delivery._replace(state=state, last_error=self.error[:ERROR_CHARACTERS_MAX])
        if state == DeliveryState.PENDING:
            changed = changed._replace(next_attempt_at=book.now + self._wait())
        return Accepted(book.put(DELIVERIES, changed))

    def _event(self) -> DeliveryEvent:
        if not self.error:
            return DeliveryEvent.DELIVER
        if self.attempt >= self.retrying.attempts_max:
            return DeliveryEvent.GIVE_UP
        return DeliveryEvent.FAIL

    def _wait(self) -> timedelta:
        ceiling_s = backoff_ceiling_s(
            self.attempt, self.retrying.backoff_base_s, self.retrying.backoff_cap_s
        )
        return timedelta(seconds=self.random_unit * ceiling_s)


@dataclass(frozen=True, slots=True)
class RedeliverDelivery(PlainCommand):
    """A dead delivery is tried again, with all its attempts."""

    slot: int
    delivery_id: str
    idempotency: Idempotency
    resource_type = DELIVERIES

    def reads(self) -> Iterable[Key]:
        return (Key(DELIVERIES, self.slot, self.delivery_id),)

    def decide(self, book: Book) -> Outcome:
        delivery = book.get(DELIVERIES, self.delivery_id)
        if delivery is None:
            return Refused(Reason.DELIVERY_NOT_FOUND, "there is no such delivery")
        state = next_state(delivery, DeliveryEvent.REDELIVER)
        if state is None:
            return Refused(
                Reason.DELIVERY_NOT_DEAD,
                f"the delivery is {delivery.state}; only a dead one can be redelivered",
                {"state": delivery.state},
            )
        return Accepted(
            book.put(
                DELIVERIES, delivery._replace(state=state, attempts=0, next_attempt_at=book.now)
            )
        )
