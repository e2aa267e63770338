"""Does the model still see what it was trained on? Population stability of scores and inputs.

The population stability index of a binned quantity is Σ (now - then) * ln(now / then) over its
bins' shares; by the banks' rule of thumb (Siddiqi 2006) under 0.1 is nothing, over 0.25 a change.
Counted over the last day, because nights differ from days; in this process alone. Pure: hours are
given.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence

from router.risk.trees import Model, Reference

HOURS = 24
# Below it, chance alone makes an index of some hundredths.
REQUESTS_MIN = 1_000
# A bin that was empty then or is now: as if this share of requests were in it.
_SHARE_MIN = 1e-4
SCORE = "score"


class _Binned:
    """One quantity: counts a bin, the newest hour's last."""

    def __init__(self, name: str, reference: Reference) -> None:
        self.name = name
        self.edges = reference.edges
        self.shares = reference.shares
        self.hours: deque[list[int]] = deque(maxlen=HOURS)
        self.begin_hour()

    def begin_hour(self) -> None:
        self.hours.append([0] * len(self.shares))

    def index(self) -> float:
        counts = [sum(column) for column in zip(*self.hours, strict=True)]
        return stability(self.shares, counts)


def stability(shares: Sequence[float], counts: Sequence[int]) -> float:
    """The index of counts now against shares then; 0 of nothing."""
    total = sum(counts)
    if not total:
        return 0.0
    pairs = [
        (max(share, _SHARE_MIN), max(count / total, _SHARE_MIN))
        for share, count in zip(shares, counts, strict=True)
    ]
    return sum((now - then) * math.log(now / then) for then, now in pairs)


class Drift:
    """Of one model. Two microseconds a request."""

    def __init__(self, model: Model) -> None:
        self._score = _Binned(SCORE, model.score)
        self._inputs = [
            (place, _Binned(model.inputs[place].told, reference))
            for place, reference in sorted(model.inputs_reference.items())
        ]
        self._hour: int | None = None
        self._requests: deque[int] = deque([0], maxlen=HOURS)

    @property
    def requests(self) -> int:
        """Of the last day."""
        return sum(self._requests)

    def note(self, hour: int, numbers: Sequence[float], score: float) -> None:
        """`hour`: whole hours since anything."""
        if hour != self._hour:
            self._turn(hour)
        self._requests[-1] += 1
        self._score.hours[-1][bisect_left(self._score.edges, score)] += 1
        for place, binned in self._inputs:
            binned.hours[-1][bisect_left(binned.edges, numbers[place])] += 1

    def indices(self, hour: int) -> Iterator[tuple[str, float]]:
        """(what, index); nothing while there are too few requests to say."""
        if self._hour is not None and hour != self._hour:
            self._turn(hour)
        if self.requests < REQUESTS_MIN:
            return
        yield SCORE, self._score.index()
        for _, binned in self._inputs:
            yield binned.name, binned.index()

    def _turn(self, hour: int) -> None:
        """Hours in which nothing came count as well."""
        passed = 1 if self._hour is None else min(max(hour - self._hour, 1), HOURS)
        self._hour = hour
        for _ in range(passed):
            self._requests.append(0)
            for binned in (self._score, *(item for _, item in self._inputs)):
                binned.begin_hour()
