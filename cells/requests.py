"""Reading requests: field checks that name every wrong field, hashes, deadlines, pages, masks.

Checked by hand and not by protovalidate: its CEL costs more than the whole payment
(docs/decisions/0004-validation-by-hand.md).
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache, lru_cache
from typing import Any, TypeVar

from cellpay.money.v1.money_pb2 import Money
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from iso4217 import Currency

from cells.ledger.model import MAX_AMOUNT_MINOR, Idempotency
from router.errors import Violation, bad_request
from router.home import home_field
from router.ids import Kind, kind_of_id

CURRENCIES = frozenset(currency.code for currency in Currency)
_ID_CHARACTERS_MAX = 64
_TEXT_CHARACTERS_MAX = 256
_PAGE_SIZE_DEFAULT = 100
_PAGE_SIZE_MAX = 1000
_CONTEXT = "risk_context"

# A NUL no database takes; U+001E separates values on the way there.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

M = TypeVar("M", bound=Message)


class Checker:
    """Collects what is wrong with a request; `done` raises it all at once (AIP-193)."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    def wrong(self, field: str, description: str) -> None:
        self.violations.append(Violation(field, description))

    def name(self, field: str, value: str) -> str:
        """A user's ID or an idempotency key: 1 to 64 printable characters."""
        if not value:
            self.wrong(field, "must not be empty")
        elif len(value) > _ID_CHARACTERS_MAX:
            self.wrong(field, f"has {len(value)} characters; at most {_ID_CHARACTERS_MAX}")
        elif not value.isprintable():
            self.wrong(field, "holds characters that cannot be printed")
        return value

    def text(self, field: str, value: str) -> str:
        if len(value) > _TEXT_CHARACTERS_MAX:
            self.wrong(field, f"has {len(value)} characters; at most {_TEXT_CHARACTERS_MAX}")
        elif _CONTROL.search(value):
            self.wrong(field, "holds control characters")
        return value

    def identifier(self, field: str, value: str, kind: Kind) -> str:
        try:
            found = kind_of_id(value)
        except ValueError as error:
            self.wrong(field, str(error))
        else:
            if found != kind:
                self.wrong(field, f"is the ID of another kind ({found}_…, not {kind}_…)")
        return value

    def currency(self, field: str, value: str) -> str:
        if value not in CURRENCIES:
            self.wrong(field, f"{value[:16]!r} is no ISO 4217 code")
        return value

    def amount(self, field: str, money: Money) -> int:
        self.currency(f"{field}.currency", money.currency)
        if money.minor_units <= 0:
            self.wrong(f"{field}.minor_units", "must be greater than zero")
        elif money.minor_units > MAX_AMOUNT_MINOR:
            self.wrong(f"{field}.minor_units", "must not exceed 2^53")
        return money.minor_units

    def page_size(self, value: int) -> int:
        if value < 0:
            self.wrong("page_size", "must not be negative")
        return min(value or _PAGE_SIZE_DEFAULT, _PAGE_SIZE_MAX)

    def done(self) -> None:
        if self.violations:
            raise bad_request(self.violations)


def idempotency_of(check: Checker, method: str, request: Message) -> Idempotency:
    """The request's key, scoped by its home field, with a hash of everything else in it but who
    asks."""
    fields: Any = request
    key: str = check.name("idempotency_key", fields.idempotency_key)
    scope: str = getattr(request, home_field(request.DESCRIPTOR) or "")
    hashed = _without_context(request)
    digest = hashlib.sha256(hashed.SerializeToString(deterministic=True)).digest()[:16]
    return Idempotency(scope, key, method, digest)


def _without_context(request: M) -> M:
    """Who asks is no part of what is asked: a repeat may come from another address."""
    if not _has_context(request.DESCRIPTOR) or not request.HasField(_CONTEXT):
        return request
    kept = type(request)()
    kept.CopyFrom(request)
    kept.ClearField(_CONTEXT)
    return kept


@cache
def _has_context(descriptor: Any) -> bool:
    return _CONTEXT in descriptor.fields_by_name


def timeout_of(context: Any) -> float | None:
    """Seconds that the caller will still wait; None: no deadline."""
    left: float | None = context.time_remaining()
    return left


def page_token(values: list[str]) -> str:
    """An opaque token (AIP-158): where the next page starts."""
    return base64.urlsafe_b64encode("\x1f".join(values).encode()).decode().rstrip("=")


def page_start(check: Checker, token: str, parts: int) -> list[str] | None:
    if not token:
        return None
    try:
        padded = token + "=" * (-len(token) % 4)
        values = base64.urlsafe_b64decode(padded.encode("ascii")).decode().split("\x1f")
    except (ValueError, UnicodeError):
        values = []
    # A NUL that a forged token holds would fail in the database, as a fault of ours.
    if len(values) != parts or not all(value.isprintable() for value in values):
        check.wrong("page_token", "is not a token that this method returned")
        return None
    return values


def masked(message: M, mask: FieldMask) -> M:
    """Only the fields that the caller asked for (AIP-157); all when it named none."""
    if not mask.paths:
        return message
    descriptor: Any = message.DESCRIPTOR
    if not mask.IsValidForDescriptor(descriptor):
        raise bad_request([Violation("read_mask", "names a field that does not exist")])
    kept = type(message)()
    mask.MergeMessage(message, kept)
    return kept


@lru_cache(maxsize=256)
def timestamp(moment: Any) -> Timestamp:
    """Cached: what one group made has one time. Not to be changed; messages copy it."""
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def money(currency: str, minor_units: int) -> Money:
    return Money(currency=currency, minor_units=minor_units)


__all__ = [
    "CURRENCIES",
    "Checker",
    "idempotency_of",
    "masked",
    "money",
    "page_start",
    "page_token",
    "timeout_of",
    "timestamp",
]
