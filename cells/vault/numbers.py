"""What a number says of itself: check digits, scheme, issuer. Pure.

The table of BINs is configuration (`bins.json`, or a file of the operator's own): prefixes are
matched longest first, so that an issuer's prefix refines its scheme's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter

from router.redaction import is_luhn

BIN_DIGITS = 6
_SEPARATORS = re.compile(r"[ \-]")
_ACCOUNT = re.compile(r"[A-Z0-9]{4,34}")
_IBAN = re.compile(r"[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}")
_BIC = re.compile(r"[A-Z]{4}([A-Z]{2})[A-Z0-9]{2}([A-Z0-9]{3})?")
_CNAPS = re.compile(r"[0-9]{12}")
PACKAGED_BINS = Path(__file__).parent / "bins.json"


@dataclass(frozen=True, slots=True)
class Scheme:
    name: str
    # First digits, one by one ("34") or from and to ("2221-2720").
    prefixes: tuple[str, ...]
    lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Issuer:
    name: str
    # ISO 3166-1.
    country: str
    prefixes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CardKind:
    scheme: str
    lengths: tuple[int, ...]
    issuer: str = ""
    country: str = ""


@dataclass(frozen=True, slots=True)
class _Table:
    schemes: tuple[Scheme, ...]
    issuers: tuple[Issuer, ...] = ()


class BinTable:
    """Prefix → whose card it is."""

    def __init__(self, schemes: tuple[Scheme, ...], issuers: tuple[Issuer, ...]) -> None:
        self._schemes = {prefix: scheme for scheme in schemes for prefix in _each(scheme.prefixes)}
        self._issuers = {prefix: issuer for issuer in issuers for prefix in _each(issuer.prefixes)}
        self._longest = max(map(len, [*self._schemes, *self._issuers]), default=0)

    def kind_of(self, number: str) -> CardKind | None:
        """None for a scheme that the table does not know."""
        scheme, issuer = None, None
        for length in range(self._longest, 0, -1):
            prefix = number[:length]
            scheme = scheme or self._schemes.get(prefix)
            issuer = issuer or self._issuers.get(prefix)
        if scheme is None:
            return None
        if issuer is None:
            return CardKind(scheme.name, scheme.lengths)
        return CardKind(scheme.name, scheme.lengths, issuer.name, issuer.country)


def _each(prefixes: tuple[str, ...]) -> list[str]:
    found: list[str] = []
    for prefix in prefixes:
        first, _, last = prefix.partition("-")
        found += map(str, range(int(first), int(last or first) + 1))
    return found


@cache
def read_bins(path: str = "") -> BinTable:
    """`path` empty: the table of the package."""
    table = TypeAdapter(_Table).validate_json((Path(path) if path else PACKAGED_BINS).read_bytes())
    return BinTable(table.schemes, table.issuers)


def bare(number: str) -> str:
    """Without what people put between digits, in capitals."""
    return _SEPARATORS.sub("", number).upper()


def card_fault(number: str, kind: CardKind | None) -> str:
    """What is wrong with a bare card number; empty when nothing is. It never quotes the number."""
    if not (number.isascii() and number.isdigit()) or not 12 <= len(number) <= 19:
        return "must have 12 to 19 digits"
    if not is_luhn(number):
        return "has a wrong check digit"
    if kind is None:
        return "is of no scheme that is known here"
    if len(number) not in kind.lengths:
        return f"is too long or too short for {kind.scheme}"
    return ""


def account_fault(number: str) -> str:
    """The same for a bank account's number."""
    if not _ACCOUNT.fullmatch(number):
        return "must have 4 to 34 letters and digits"
    if _IBAN.fullmatch(number) and not _is_iban(number):
        return "is an IBAN with wrong check digits"
    return ""


def _is_iban(number: str) -> bool:
    """ISO 13616: the rearranged number, letters as 10 to 35, leaves 1 when divided by 97."""
    return int("".join(str(int(digit, 36)) for digit in number[4:] + number[:4])) % 97 == 1


def country_of_account(number: str, bank: str) -> str:
    """ISO 3166-1, as far as the IBAN or the bank's code tells; else empty."""
    if _IBAN.fullmatch(number):
        return number[:2]
    if found := _BIC.fullmatch(bank):
        return found[1]
    return "CN" if _CNAPS.fullmatch(bank) else ""


def expiry_fault(year: int, month: int, this_year: int) -> str:
    """What is wrong with a card's expiry beside being past, which the database's clock decides."""
    if not 1 <= month <= 12:
        return "is no month"
    if not 2000 <= year <= this_year + 30:
        return "is a year that no card expires in"
    return ""
