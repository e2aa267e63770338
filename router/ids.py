"""IDs that carry the slot of their home, so that any ID routes without a lookup.

    pay_7Z01JDQ6T5R8V3K4M9XWEB2CHN5G
    ^^^ what it is
        ^^ slot, two Crockford base-32 digits (0..1023)
          ^^^^^^^^^^^^^^^^^^^^^^^^^^ 26 digits: a ULID (48 bits of ms, 80 random bits), or, for
                                     IDs that must be computed, the first 128 bits of a SHA-256

The slot comes first so that primary keys start with it; time comes only behind it, so that new
rows spread over the ranges of CockroachDB. Alphabet: Crockford's base 32 (no I, L, O, U).
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from functools import lru_cache

from router.slots import SLOT_COUNT, slot_of_user

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VALUES = {digit: value for value, digit in enumerate(ALPHABET)}
_DIGITS = frozenset(ALPHABET)
_PAIRS = [high + low for high in ALPHABET for low in ALPHABET]
_BODY_DIGITS = 26


class Kind(StrEnum):
    ACCOUNT = "acc"
    MOVEMENT = "mov"
    ORDER = "ord"
    PAYMENT = "pay"
    REFUND = "ref"
    TRANSFER = "tra"
    BRANCH = "brn"
    EVENT = "evt"
    DELIVERY = "dlv"
    # Money pulled from a card or bank account, or sent to one, and each request to a bank for it.
    CHARGE = "chg"
    PAYOUT = "pyo"
    ATTEMPT = "att"
    # A card or bank account that a user has registered.
    INSTRUMENT = "ins"
    # What finance posts to make the books agree with a bank's.
    ADJUSTMENT = "adj"
    # A difference between our books and a bank's.
    BREAK = "brk"
    # What risk decided of a request, what it asks a person for, and a user's second factor.
    DECISION = "dec"
    CHALLENGE = "chl"
    REVIEW = "rvw"
    FACTOR = "fac"
    # A public key by which a merchant signs.
    KEY = "key"


class Purpose(StrEnum):
    """Why an account exists; part of what its ID is computed from."""

    BALANCE = "balance"
    COLLECTION = "collection"
    CLEARING = "clearing"
    EXTERNAL = "external"
    # What a bank owes us (or we it), until it pays: falls when it has taken money for us.
    CHANNEL = "channel"
    # What banks took for their service, and differences whose owner is not known yet.
    FEES = "fees"
    SUSPENSE = "suspense"


def encode_slot(slot: int) -> str:
    if not 0 <= slot < SLOT_COUNT:
        raise ValueError(f"slot {slot} is outside 0..{SLOT_COUNT - 1}")
    return _PAIRS[slot]


def _encode_128(number: int) -> str:
    pairs = _PAIRS
    digits = []
    for _ in range(13):
        number, pair = number >> 10, number & 1023
        digits.append(pairs[pair])
    digits.reverse()
    return "".join(digits)


def mint(kind: Kind, slot: int, *, unix_ms: int, random_80: int) -> str:
    """A new ID. `unix_ms` only spreads and sorts keys; nothing compares it between machines."""
    number = ((unix_ms & ((1 << 48) - 1)) << 80) | (random_80 & ((1 << 80) - 1))
    return f"{kind}_{encode_slot(slot)}{_encode_128(number)}"


@lru_cache(maxsize=16)
def time_digits(unix_ms: int) -> str:
    """The first ten digits of an ID's body."""
    return _encode_128((unix_ms & ((1 << 48) - 1)) << 80)[:10]


def derive(kind: Kind, slot: int, *parts: str) -> str:
    """An ID computed from what it names: the same parts give the same ID, anywhere.

    Parts are joined by U+001F, which no part may contain.
    """
    if any("\x1f" in part for part in parts):
        raise ValueError("a part holds the separator U+001F")
    digest = hashlib.sha256("\x1f".join(parts).encode("utf-8")).digest()
    return f"{kind}_{encode_slot(slot)}{_encode_128(int.from_bytes(digest[:16], 'big'))}"


@lru_cache(maxsize=65_536)
def account_id(user_id: str, currency: str) -> str:
    """The account of a user in a currency."""
    return derive(Kind.ACCOUNT, slot_of_user(user_id), Purpose.BALANCE, user_id, currency)


@lru_cache(maxsize=65_536)
def collection_account_id(slot: int, merchant_id: str, currency: str) -> str:
    """Where payments of payers in `slot` to this merchant gather until they are settled."""
    return derive(Kind.ACCOUNT, slot, Purpose.COLLECTION, merchant_id, currency)


@lru_cache(maxsize=16_384)
def clearing_account_id(slot: int, currency: str) -> str:
    """Money on its way between cells, seen from `slot`."""
    return derive(Kind.ACCOUNT, slot, Purpose.CLEARING, str(slot), currency)


@lru_cache(maxsize=16_384)
def external_account_id(slot: int, currency: str) -> str:
    """The world outside: deposits come from it, withdrawals go to it."""
    return derive(Kind.ACCOUNT, slot, Purpose.EXTERNAL, str(slot), currency)


@lru_cache(maxsize=16_384)
def channel_account_id(slot: int, channel: str, currency: str) -> str:
    """What lies with a bank, as far as users of `slot` are concerned."""
    return derive(Kind.ACCOUNT, slot, Purpose.CHANNEL, str(slot), channel, currency)


@lru_cache(maxsize=16_384)
def own_account_id(slot: int, purpose: Purpose, currency: str) -> str:
    """Cellpay's own account in a slot: fees, suspense."""
    return derive(Kind.ACCOUNT, slot, purpose, str(slot), currency)


def slot_of_id(identifier: str) -> int:
    """The slot that an ID carries. Raises ValueError when it is not one of ours."""
    kind, underscore, rest = identifier.partition("_")
    if not underscore or len(rest) != 2 + _BODY_DIGITS or kind not in _KINDS:
        raise ValueError(f"{identifier[:64]!r} is not a Cellpay ID")
    if not _DIGITS.issuperset(rest):
        digit = next(digit for digit in rest if digit not in _DIGITS)
        raise ValueError(f"{identifier[:64]!r} holds {digit!r}, no base-32 digit")
    return _VALUES[rest[0]] * 32 + _VALUES[rest[1]]


def kind_of_id(identifier: str) -> Kind:
    slot_of_id(identifier)
    return _KINDS[identifier.partition("_")[0]]


_KINDS = {kind.value: kind for kind in Kind}
