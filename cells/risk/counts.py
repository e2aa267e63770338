"""What the engine did, for metrics: decisions, how long they took, what was done without."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from router.metrics import counter

# Seconds: a decision takes a millisecond or two.
_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)


class Figures:
    """Of one process. What is in the path only adds to plain numbers."""

    def __init__(self) -> None:
        self.features_away = 0
        self._decisions: Counter[tuple[str, str]] = Counter()
        self._buckets = [0] * (len(_BOUNDS_S) + 1)
        self._sum_s = 0.0

    def note(self, operation: str, action: str, duration_s: float) -> None:
        self._decisions[operation, action] += 1
        self._buckets[bisect_left(_BOUNDS_S, duration_s)] += 1
        self._sum_s += duration_s

    def count(self, operation: str, action: str) -> int:
        return self._decisions[operation, action]

    def __call__(self) -> Iterator[Metric]:
        yield counter(
            "cellpay_risk_decisions",
            "Requests that risk looked at, by what it said.",
            [(key, count) for key, count in sorted(self._decisions.items())],
            labels=("operation", "action"),
        )
        yield counter(
            "cellpay_risk_features_away",
            "Requests that were judged without features.",
            [((), self.features_away)],
        )
        family = HistogramMetricFamily(
            "cellpay_risk_decision_seconds", "From request to verdict, waiting included."
        )
        total, cumulated = 0, []
        for bound, count in zip([*map(str, _BOUNDS_S), "+Inf"], self._buckets, strict=True):
            total += count
            cumulated.append((bound, total))
        family.add_metric([], cumulated, sum_value=self._sum_s)
        yield family
