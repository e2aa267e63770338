"""Settings of tracing; what a process notes of a trace until its tail is decided.

Plain slots and tuples: they are made for every request, and thrown away for nearly all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from router.tracing.groups import Waited

# What one trace may note in one process; more is counted, not kept.
LINES_MAX = 256


class SpanKind(IntEnum):
    """OTLP's numbers."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


@dataclass(frozen=True, slots=True)
class TracingSettings:
    # Where spans go by OTLP over HTTP, as `http://collector:4318`; empty: nothing is recorded.
    endpoint: str = ""
    # Sent with each batch, such as an authorization.
    headers: Mapping[str, str] = field(default_factory=dict)
    # The share of traces that are kept whatever becomes of them, chosen by the trace's ID so that
    # all processes choose the same. 1 leaves the choice to a collector's tail; spans_per_s_max must
    # then be as large as the load.
    sample_ratio: float = 0.01
    # Kept whatever the sample says: longer than this. A payment's p99 is a tenth of it.
    slow_ms: int = 250
    # Spans that a process makes and sends a second; each takes some 15 µs of its processor. When
    # all is slow, all would be kept and make it slower: this is where that ends.
    spans_per_s_max: int = 2000
    # Spans that wait to be sent; more are dropped, and counted. At half of it the sample yields to
    # what failed or was slow.
    queue_max: int = 10_000

    def __post_init__(self) -> None:
        if not 0.0 <= self.sample_ratio <= 1.0:
            raise ValueError("tracing.sample_ratio must be from 0 to 1")
        if self.slow_ms <= 0 or self.spans_per_s_max <= 0 or self.queue_max <= 0:
            raise ValueError("tracing: slow_ms, spans_per_s_max and queue_max must be positive")
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError("tracing.endpoint must be an http or https URL")

    @property
    def traces_url(self) -> str:
        """As OTEL_EXPORTER_OTLP_ENDPOINT is read: the path of traces is added."""
        return f"{self.endpoint.rstrip('/')}/v1/traces"


class Line(NamedTuple):
    """A span to be. Moments are of `time.perf_counter`."""

    span_id: int
    # 0: it is the first of its trace.
    parent_id: int
    name: str
    kind: SpanKind
    began: float
    ended: float
    attributes: Mapping[str, Any] | None
    # Why it failed: a status, a reason, the name of an exception; never an exception's text.
    error: str
    # (trace ID, span ID) of others that it belongs to.
    links: tuple[tuple[str, int], ...] = ()


class Late(Protocol):
    """Who takes what is noted after the root has ended."""

    def take_late(self, trace: Trace, line: Line) -> None: ...


class Trace:
    """What this process has noted of a trace below one root. No reference leads back to here from
    what it holds: traces that are not kept must die without the garbage collector."""

    __slots__ = ("ended", "kept", "late", "lines", "sampled", "trace_id")

    def __init__(self, trace_id: str, late: Late, *, sampled: bool) -> None:
        # 32 hexadecimal digits: as it came, and as it goes on.
        self.trace_id = trace_id
        self.sampled = sampled
        self.late = late
        self.lines: list[Line | Waited] = []
        self.ended = False
        self.kept = False

    def add(self, line: Line) -> None:
        if self.ended:
            self.late.take_late(self, line)
        elif len(self.lines) < LINES_MAX:
            self.lines.append(line)


class Scope:
    """A place in a trace: what is noted here lies below `span_id`."""

    __slots__ = ("span_id", "trace")

    def __init__(self, trace: Trace, span_id: int) -> None:
        self.trace = trace
        self.span_id = span_id

    @property
    def traceparent(self) -> str:
        trace = self.trace
        return f"00-{trace.trace_id}-{self.span_id:016x}-{'01' if trace.sampled else '00'}"


class Root(Scope):
    """The first span of a trace in this process."""

    __slots__ = ("attributes", "began", "kind", "name", "parent_id", "slot")

    def __init__(
        self, trace: Trace, span_id: int, parent_id: int, name: str, kind: SpanKind, began: float
    ) -> None:
        self.trace = trace
        self.span_id = span_id
        self.parent_id = parent_id
        self.name = name
        self.kind = kind
        self.began = began
        self.slot = -1
        self.attributes: dict[str, Any] | None = None
