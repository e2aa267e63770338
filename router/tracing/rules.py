"""W3C's traceparent, who is in the sample, what counts as failed. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

TRACEPARENT = "traceparent"
# https://www.w3.org/TR/trace-context/. Read for every call, so the one in use is tried first.
_FIELDS = r"-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})"
_SHAPE = re.compile("00" + _FIELDS)
_LATER_SHAPE = re.compile("[0-9a-f]{2}" + _FIELDS + "(?:-.*)?")
_LATER_CHARACTERS_MAX = 256
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
# The last bit of a hexadecimal digit: sampled.
_ODD = "13579bdf"
_RANDOM_BITS = 56
_RANDOM = (1 << _RANDOM_BITS) - 1

# Not the payment's failure: the mesh tries again elsewhere, and says so itself if it cannot.
_ROUTING = frozenset({"SLOT_MOVED", "SLOT_MOVING", "NOT_HOME", "NOT_OWNER", "CELL_NOT_READY"})
# Load that is shed before it was looked at. To record each would add to the load that it is shed
# for; the caller's own trace has it, and a metric counts it.
_SHED = "RESOURCE_EXHAUSTED"


class Parent(NamedTuple):
    # 32 hexadecimal digits.
    trace_id: str
    span_id: int
    sampled: bool


def parse_traceparent(text: str) -> Parent | None:
    """None: it is none, and a new trace begins."""
    found = _SHAPE.fullmatch(text) or _later(text)
    if found is None:
        return None
    trace_id, span_id, flags = found.groups()
    if trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return Parent(trace_id, int(span_id, 16), flags[1] in _ODD)


def _later(text: str) -> re.Match[str] | None:
    """Of a version after 00, which may have more behind what is known."""
    if text.startswith(("00", "ff")) or len(text) > _LATER_CHARACTERS_MAX:
        return None
    return _LATER_SHAPE.fullmatch(text)


def threshold_of(ratio: float) -> int:
    """For `is_sampled`."""
    return round((1.0 - ratio) * (1 << _RANDOM_BITS))


def is_sampled(random_128: int, threshold: int) -> bool:
    """Consistent probability sampling (OpenTelemetry's OTEP 235): the last 56 bits are random, and
    who has a larger ratio keeps all that those with smaller ones keep."""
    return random_128 & _RANDOM >= threshold


def failure_of(code: str, reason: str) -> str:
    """What to say of a call's end; empty: it is no failure to be kept for."""
    if code in {"OK", _SHED} or reason in _ROUTING:
        return ""
    return f"{code} {reason}" if reason and reason != code else code
