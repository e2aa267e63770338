"""Metrics in Prometheus' text format. What is in the path of a payment only adds to plain numbers;
everything else happens when somebody scrapes.

RED of each method: requests and errors by status, durations as a histogram. Names follow
Prometheus' conventions: base units, `_total` for counters.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

# Seconds. A payment takes some ms; what takes ten seconds has run out of its caller's patience.
BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Source = Callable[[], Iterable[Metric]]


class _Series:
    __slots__ = ("buckets", "sum_s")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0


class Calls:
    """What a server answered. One event loop uses it."""

    def __init__(self) -> None:
        self._by_outcome: dict[tuple[str, str], _Series] = {}
        # Answered so far, and under way now: whoever leaves waits until both stand still.
        self.ended = 0
        self.under_way = 0

    def note(self, method: str, code: str, duration_s: float) -> None:
        self.ended += 1
        series = self._by_outcome.get((method, code))
        if series is None:
            series = self._by_outcome[method, code] = _Series()
        series.buckets[bisect_left(BOUNDS_S, duration_s)] += 1
        series.sum_s += duration_s

    def __call__(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(
            "cellpay_request_duration_seconds",
            "Requests that a server answered, by method and gRPC status.",
            labels=["method", "code"],
        )
        for (method, code), series in sorted(self._by_outcome.items()):
            total, cumulated = 0, []
            for bound, count in zip([*map(str, BOUNDS_S), "+Inf"], series.buckets, strict=True):
                total += count
                cumulated.append((bound, total))
            family.add_metric([method, code], cumulated, sum_value=series.sum_s)
        yield family


class _Adapter(Collector):
    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        for source in self._sources:
            yield from source()


class Metrics:
    """What one process tells, with its own use of the machine."""

    def __init__(self, *sources: Source) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        self._registry.register(_Adapter(sources))

    def render(self) -> str:
        return generate_latest(self._registry).decode("utf-8")


def merged(texts: Sequence[tuple[str, str]]) -> str:
    """What several processes tell, as one page: (process, text) pairs; each sample says whose."""
    families: dict[str, Metric] = {}
    for process, text in texts:
        for family in text_string_to_metric_families(text):
            whole = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            for sample in family.samples:
                whole.samples.append(sample._replace(labels={**sample.labels, "process": process}))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Adapter([families.values]))
    return generate_latest(registry).decode("utf-8")


def counter(name: str, text: str, values: Iterable[tuple[Sequence[str], float]],
            labels: Sequence[str] = ()) -> Metric:  # fmt: skip
    family = CounterMetricFamily(name, text, labels=list(labels))
    for of, value in values:
        family.add_metric(list(of), value)
    return family


def gauge(name: str, text: str, values: Iterable[tuple[Sequence[str], float]],
          labels: Sequence[str] = ()) -> Metric:  # fmt: skip
    family = GaugeMetricFamily(name, text, labels=list(labels))
    for of, value in values:
        family.add_metric(list(of), value)
    return family
