"""Amounts from text, exactly: digits to minor units by the currency's exponent, never a float."""

from __future__ import annotations

import re
from functools import lru_cache

from iso4217 import Currency

from cells.statements.model import FaultReason, StatementFault

# What a column of the database and of Parquet holds.
_MINOR_MAX = 2**63 - 1
_DECIMAL = re.compile(r"([+-]?)([0-9]{1,18})(?:\.([0-9]{1,9}))?", re.ASCII)
_MINOR = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)


@lru_cache(maxsize=512)
def exponent_of(currency: str) -> int:
    """How many digits its minor unit takes. Raises StatementFault when ISO 4217 has none."""
    try:
        exponent = Currency(currency).exponent
    except ValueError:
        exponent = None
    if exponent is None:
        raise StatementFault(
            FaultReason.CURRENCY, f"{currency[:8]!r} is no currency of ISO 4217 with a minor unit"
        )
    return exponent


def minor_units(text: str, currency: str, *, decimal_mark: str = ".") -> int:
    """`12.3` of a currency with two digits is 1230. More digits than it has must be zeros."""
    exponent = exponent_of(currency)
    if decimal_mark != ".":
        # A point must not pass for what it is not: 1.234 means a thousand where 1,5 is a half.
        text = text.replace(".", "?").replace(decimal_mark, ".")
    found = _DECIMAL.fullmatch(text)
    if found is None:
        raise StatementFault(FaultReason.AMOUNT, f"{text[:32]!r} is no decimal amount")
    sign, whole, fraction = found.group(1), found.group(2), found.group(3) or ""
    if fraction[exponent:].strip("0"):
        raise StatementFault(
            FaultReason.AMOUNT, f"{text[:32]!r} has more digits than {currency} has ({exponent})"
        )
    number = int(whole + fraction[:exponent].ljust(exponent, "0"))
    return _bounded(-number if sign == "-" else number, text)


def whole_minor_units(text: str, currency: str) -> int:
    """`000001230`: a number that counts minor units already."""
    exponent_of(currency)
    if not _MINOR.fullmatch(text):
        raise StatementFault(FaultReason.AMOUNT, f"{text[:32]!r} is no number of minor units")
    return _bounded(int(text), text)


def _bounded(number: int, text: str) -> int:
    if abs(number) > _MINOR_MAX:
        raise StatementFault(FaultReason.AMOUNT, f"{text[:32]!r} is more than 64 bits hold")
    return number
