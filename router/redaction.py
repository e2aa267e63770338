"""What must not be told: card numbers, secrets and keys, taken out of text and of fields by name.

The last line of defence, behind code that does not tell (pitfall 34): logs, tracebacks and error
details go through here. A run of digits counts as a card number when it has 13 to 19 of them, with
single spaces or hyphens between or not, and Luhn's check digit is right; one ordinary number
of that length in ten goes with it, which costs a log line a number and nothing else. Longer runs
are taken for what a bank's message looks like, and go whole when any part of them would.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

REDACTED = "[redacted]"
_DEPTH_MAX = 8
_PAN_DIGITS = range(13, 20)
# Whoever logs more at once wants a file, not a log.
_DIGITS = re.compile(r"\d(?:[ \-]?\d){12,}")
_SEPARATORS = re.compile(r"[ \-]")

# Whole words of a field's name, between underscores or hyphens.
_SECRET_NAME = re.compile(
    r"(?:^|[_\-.])(?:pan|card_?number|account_?number|cvv2?|cvc2?|cvn2?|pin|pass(?:word|wd|phrase)?"
    r"|secret|secrets|authorization|cookie|credentials?|private_?key|api_?key|secret_?key"
    r"|master_?key|data_?key|wrapped|keyset|holder|phone|identity(?:_number)?|id_number)$",
    re.IGNORECASE,
)
# name=value, name: value, "name": "value", as people and drivers write them into text.
_NAMED = re.compile(
    r"(?P<name>\b(?:[a-z0-9]+[_\-])*(?:pan|card_?number|cvv2?|cvc2?|password|passwd|passphrase"
    r"|secret|authorization|private_?key|api_?key|secret_?key|master_?key|holder|phone"
    r"|identity(?:_number)?|keyMaterialValue)\b[\"']?\s*[=:]\s*)"
    r"(?P<value>b?\"(?:[^\"\\]|\\.)*\"|b?'(?:[^'\\]|\\.)*'|(?:Bearer\s+|Basic\s+)?[^\s,;&)\]}\"']+)",
    re.IGNORECASE,
)
_SHAPES: tuple[tuple[re.Pattern[str], str], ...] = (
    # user:password@ of a URL.
    (re.compile(r"(?<=://)([^\s/:@]+):[^\s/@]+@"), rf"\1:{REDACTED}@"),
    (
        re.compile(r"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY)-----.*?(?:-----END \1-----|$)", re.DOTALL),
        REDACTED,
    ),
    # A key of Tink's, as JSON.
    (
        re.compile(r"(\"value\":\s*\")[A-Za-z0-9+/=]{16,}(?=\",\s*\"keyMaterialType\")"),
        rf"\1{REDACTED}",
    ),
    # What drivers of databases quote: SQLAlchemy, PostgreSQL's details, asyncpg.
    (re.compile(r"\[parameters: .*\]"), f"[parameters: {REDACTED}]"),
    (
        re.compile(r"(DETAIL:\s+(?:Key \([^)]*\)=|Failing row contains ))\(.*\)"),
        rf"\1({REDACTED})",
    ),
    (
        re.compile(r"(invalid input for query argument \$\d+: ).*?(?= \(|$)", re.MULTILINE),
        rf"\1{REDACTED}",
    ),
    (
        re.compile(r"(invalid input syntax for [^:\n]*: )\".*?\"(?=$|\s)", re.MULTILINE),
        rf"\1{REDACTED}",
    ),
)
# What a text must hold one of before the shapes are worth a look: most texts hold none.
_HINTS = (
    "pan", "card", "cvv", "cvc", "pass", "secret", "author", "key", "holder", "phone", "identity",
    "://", "parameters", "detail", "invalid",
)  # fmt: skip


def is_luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit)
        if place % 2:
            value = value * 2 - 9 if value > 4 else value * 2
        total += value
    return total % 10 == 0


def _judged(match: re.Match[str]) -> str:
    text = match.group()
    digits = _SEPARATORS.sub("", text)
    if len(digits) in _PAN_DIGITS:
        return REDACTED if is_luhn(digits) else text
    windows = (
        digits[start : start + length]
        for length in _PAN_DIGITS
        for start in range(len(digits) - length + 1)
    )
    return REDACTED if any(map(is_luhn, windows)) else text


def without_pans(text: str) -> str:
    """The text without what may be a card's number."""
    return _DIGITS.sub(_judged, text) if len(text) >= _PAN_DIGITS.start else text


def redacted(text: str) -> str:
    """The text without card numbers, secrets and keys."""
    if len(text) < _PAN_DIGITS.start and "=" not in text and ":" not in text:
        # Too short for a number, and nothing in it has a name: most of what errors tell.
        return text
    text = without_pans(text)
    low = text.lower()
    for hint in _HINTS:
        if hint in low:
            break
    else:
        return text
    for pattern, instead in _SHAPES:
        text = pattern.sub(instead, text)
    return _NAMED.sub(lambda match: f"{match['name']}{REDACTED}", text)


@lru_cache(maxsize=1024)
def is_secret_name(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def redacted_value(value: Any, name: str = "", depth: int = 0) -> Any:
    """A value of a log line or of an error's details; containers are copied when they change."""
    if type(value) is str:
        # What nearly all are, so it comes first.
        return REDACTED if value and name and is_secret_name(name) else redacted(value)
    if value is None or isinstance(value, bool | float):
        return value
    if name and is_secret_name(name):
        return REDACTED if value not in ("", b"") else value
    if isinstance(value, int):
        # Amounts and times are long too: what names them says so.
        own = name.endswith(("_minor_units", "_ms", "_ns", "_s", "_max"))
        return value if own or abs(value) < 10**12 else _number(value)
    if isinstance(value, str):
        return redacted(value)
    if depth >= _DEPTH_MAX:
        return REDACTED
    if isinstance(value, Mapping):
        return {key: redacted_value(item, str(key), depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redacted_value(item, name, depth + 1) for item in value]
    # Bytes, exceptions, messages: as the renderer would show them.
    return redacted(repr(value))


def _number(value: int) -> Any:
    digits = str(abs(value))
    return REDACTED if len(digits) in _PAN_DIGITS and is_luhn(digits) else value
