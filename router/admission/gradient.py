"""How many calls may be under way: the limit follows the gradient of latency. Pure.

After Netflix's concurrency-limits, `Gradient2Limit`: the limit is multiplied by the ratio of the
long-term average latency to the latest one, between 0.5 and 1, and may grow by a small queue. Like
Netflix's `WindowedLimit` we look at averages of windows, not at single calls.
"""

from __future__ import annotations

from typing import NamedTuple

from router.policies.model import Concurrency

# Calls that the limit may grow by in a window while latency stays.
_QUEUE = 4.0
# Windows that the long-term average remembers.
_LONG_WINDOW = 600
_WARM_UP = 10
_GRADIENT_MIN = 0.5
# A long-term average that is so much too high decays at once, not over hundreds of windows.
_DRIFT = 2.0
_DECAY = 0.95


class Gradient(NamedTuple):
    limit: float
    # Long-term average of latency, and how many windows it was made of.
    long_s: float = 0.0
    windows: int = 0


def begin(settings: Concurrency) -> Gradient:
    return Gradient(float(settings.initial))


def after_window(
    now: Gradient, settings: Concurrency, latency_s: float, in_flight_max: int
) -> Gradient:
    """The limit after a window of this average latency, and so many calls at once at its peak."""
    if latency_s <= 0:
        return now
    long_s = _remembered(now, latency_s)
    if long_s / latency_s > _DRIFT:
        long_s *= _DECAY
    windows = min(now.windows + 1, _LONG_WINDOW)
    if in_flight_max < now.limit / 2:
        # The callers, not we, decide how many there are: that tells nothing of a higher limit.
        return Gradient(now.limit, long_s, windows)
    ratio = settings.tolerance * long_s / latency_s
    gradient = max(_GRADIENT_MIN, min(1.0, ratio))
    wanted = now.limit * gradient + _QUEUE
    limit = now.limit * (1 - settings.smoothing) + wanted * settings.smoothing
    bounded = max(float(settings.minimum), min(float(settings.maximum), limit))
    return Gradient(bounded, long_s, windows)


def _remembered(now: Gradient, latency_s: float) -> float:
    """An average that is plain while it is young, and exponential from then on."""
    if now.windows < _WARM_UP:
        return (now.long_s * now.windows + latency_s) / (now.windows + 1)
    factor = 2.0 / (_LONG_WINDOW + 1)
    return now.long_s * (1 - factor) + latency_s * factor
