"""Metrics in Prometheus' text format. What is in the path of a payment only adds to plain numbers;
everything else happens when somebody scrapes.

RED of each method: requests and errors by status, durations as a histogram, whose buckets name a
trace as an example where one is kept (OpenMetrics). RED of sixteen ranges of slots, so that a range
that fares badly shows without a series for each slot. Names follow Prometheus' conventions: base
units, `_total` for counters.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as families_of_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from router.slots import SLOT_COUNT

if TYPE_CHECKING:
    from router.tracing.tracer import Tracer

# Seconds. A payment takes some ms; what takes ten seconds has run out of its caller's patience.
BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
OPENMETRICS_TYPE: str = CONTENT_TYPE_LATEST
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Source = Callable[[], Iterable[Metric]]


# Ranges of slots that are counted apart: few enough to be a label beside the method.
SLOT_RANGES = 16
_SLOTS_A_RANGE = SLOT_COUNT // SLOT_RANGES


class _Series:
    __slots__ = ("buckets", "exemplars", "sum_s")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0
        # By bucket: a trace that is kept, its duration, when (Unix s).
        self.exemplars: dict[int, tuple[str, float, float]] = {}

    def add(self, duration_s: float, trace_id: str = "") -> None:
        bucket = bisect_left(BOUNDS_S, duration_s)
        self.buckets[bucket] += 1
        self.sum_s += duration_s
        if trace_id:
            self.exemplars[bucket] = (trace_id, duration_s, time.time())

    def cumulated(self) -> list[Any]:
        """As HistogramMetricFamily takes it."""
        total, found = 0, []
        for number, bound in enumerate([*map(str, BOUNDS_S), "+Inf"]):
            total += self.buckets[number]
            known = self.exemplars.get(number)
            example = known and Exemplar({"trace_id": known[0]}, *known[1:])
            found.append((bound, total, example))
        return found


class SlotCalls:
    """Calls of one method at home here, by range of slots and status."""

    __slots__ = ("_by_code", "_durations")

    def __init__(self, durations: list[_Series]) -> None:
        self._by_code: dict[str, list[int]] = {}
        self._durations = durations

    def note(self, slot: int, code: str, duration_s: float) -> None:
        number = slot // _SLOTS_A_RANGE
        counts = self._by_code.get(code)
        if counts is None:
            counts = self._by_code[code] = [0] * SLOT_RANGES
        counts[number] += 1
        self._durations[number].add(duration_s)

    def counts(self) -> Iterator[tuple[str, str, int]]:
        """(range, status, calls), without those that had none."""
        for code, counts in sorted(self._by_code.items()):
            for number, count in enumerate(counts):
                if count:
                    yield slot_range(number), code, count


def slot_range(number: int) -> str:
    first = number * _SLOTS_A_RANGE
    return f"{first:04}-{first + _SLOTS_A_RANGE - 1:04}"


class Calls:
    """What a server answered. One event loop uses it."""

    def __init__(self) -> None:
        self._by_outcome: dict[tuple[str, str], _Series] = {}
        # Answered so far, and under way now: whoever leaves waits until both stand still.
        self.ended = 0
        self.under_way = 0

        self._by_method: dict[str, SlotCalls] = {}
        self._by_range = [_Series() for _ in range(SLOT_RANGES)]

    def note(self, method: str, code: str, duration_s: float, trace_id: str = "") -> None:
        """`trace_id`: of a trace that is kept; else empty."""
        self.ended += 1
        series = self._by_outcome.get((method, code))
        if series is None:
            series = self._by_outcome[method, code] = _Series()
        series.add(duration_s, trace_id)

    def of_slots(self, method: str) -> SlotCalls:
        # Several servers of a process offer the same methods.
        return self._by_method.setdefault(method, SlotCalls(self._by_range))

    def __call__(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(
            "cellpay_request_duration_seconds",
            "Requests that a server answered, by method and gRPC status.",
            labels=["method", "code"],
        )
        for (method, code), series in sorted(self._by_outcome.items()):
            family.add_metric([method, code], series.cumulated(), sum_value=series.sum_s)
        yield family
        yield counter(
            "cellpay_slot_requests",
            "Requests that had their home here, by method, range of slots and gRPC status.",
            [
                ((method, slots, code), count)
                for method, calls in sorted(self._by_method.items())
                for slots, code, count in calls.counts()
            ],
            labels=("method", "slots", "code"),
        )
        by_range = HistogramMetricFamily(
            "cellpay_slot_request_duration_seconds",
            "Requests that had their home here, by range of slots.",
            labels=["slots"],
        )
        for number, series in enumerate(self._by_range):
            if any(series.buckets):
                by_range.add_metric([slot_range(number)], series.cumulated(), series.sum_s)
        yield by_range


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

    def render(self, *, openmetrics: bool = False) -> str:
        """`openmetrics`: with examples, for who asks for that format."""
        generate = generate_openmetrics if openmetrics else generate_latest
        return generate(self._registry).decode("utf-8")


def merged(texts: Sequence[tuple[str, str]], *, openmetrics: bool = False) -> str:
    """What several processes tell, as one page: (process, text) pairs; each sample says whose."""
    families: dict[str, Metric] = {}
    parse: Any = families_of_openmetrics if openmetrics else text_string_to_metric_families
    for process, text in texts:
        for family in parse(text) if text else ():
            whole = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            for sample in family.samples:
                whole.samples.append(sample._replace(labels={**sample.labels, "process": process}))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Adapter([families.values]))
    generate = generate_openmetrics if openmetrics else generate_latest
    return generate(registry).decode("utf-8")


def wants_openmetrics(accept: str) -> bool:
    """By the Accept header of who scrapes."""
    return "application/openmetrics-text" in accept


def tracing_metrics(tracer: Tracer | None) -> Source:
    """What becomes of traces; nothing where none are recorded."""

    def tell() -> Iterator[Metric]:
        if tracer is None:
            return
        yield counter(
            "cellpay_traces_kept",
            "Parts of traces that are sent, by why they are kept.",
            [((why,), count) for why, count in tracer.kept.items()],
            labels=("why",),
        )
        yield counter(
            "cellpay_traces_dropped",
            "Parts of traces that were to be kept and for which there was no room.",
            [((), tracer.dropped)],
        )
        yield counter("cellpay_spans_lost", "Spans that no collector took.", [((), tracer.lost)])

    return tell


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
