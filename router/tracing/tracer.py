"""Roots of traces, and the tail's decision: what is kept is known when it has ended.

The tail is this process's own. It keeps its part of every trace that failed or was slow here, and
of all that the sample has, in which every process agrees. To have whole traces of what was slow in
one process only, a collector must decide (docs/observability.md).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextvars import Token
from types import TracebackType
from typing import Any, Protocol

from router.tracing.current import current, error_of, new_span_id, noted
from router.tracing.groups import Waited
from router.tracing.model import Line, Root, Scope, SpanKind, Trace, TracingSettings
from router.tracing.rules import is_sampled, parse_traceparent, threshold_of


class Export(Protocol):
    """Where kept lines go. Never waits and never raises."""

    @property
    def waiting(self) -> int:
        """Lines that have not been sent yet."""
        ...

    @property
    def lost(self) -> int:
        """Spans that no collector took."""
        ...

    def put(self, trace_id: str, lines: Sequence[Line | Waited]) -> None: ...


class Tracer:
    """One process's. One event loop uses it."""

    def __init__(
        self,
        settings: TracingSettings,
        export: Export,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._export = export
        self._clock = clock
        self._slow_s = settings.slow_ms / 1000
        self._threshold = threshold_of(settings.sample_ratio)
        self._queue_max = settings.queue_max
        # Parts of traces that are sent, by why; and those for which there was no room.
        self.kept = {"failed": 0, "slow": 0, "sampled": 0}
        self.dropped = 0

    @property
    def lost(self) -> int:
        return self._export.lost

    def begin(self, name: str, kind: SpanKind, traceparent: str = "") -> Root:
        """The first span here. Whoever called says whether the sample has it; a new trace's ID
        does."""
        parent = parse_traceparent(traceparent) if traceparent else None
        if parent is not None:
            trace_id, parent_id, sampled = parent
        else:
            number, parent_id = random.getrandbits(128) or 1, 0
            trace_id = f"{number:032x}"
            sampled = is_sampled(number, self._threshold)
        trace = Trace(trace_id, self, sampled=sampled)
        return Root(trace, new_span_id(), parent_id, name, kind, self._clock())

    def end(
        self, root: Root, error: str = "", attributes: Callable[[], dict[str, Any]] | None = None
    ) -> bool:
        """Whether it is kept; only then somebody is asked for attributes."""
        trace = root.trace
        ended = self._clock()
        trace.ended = True
        slow = ended - root.began >= self._slow_s
        if not (error or slow or trace.sampled):
            return False
        why = "failed" if error else "slow" if slow else "sampled"
        if not self._room(why):
            return False
        trace.kept = True
        self.kept[why] += 1
        said = {"cellpay.kept": why, **(root.attributes or {})}
        if root.slot >= 0:
            said["cellpay.slot"] = root.slot
        if attributes is not None:
            said |= attributes()
        line = Line(
            root.span_id, root.parent_id, root.name, root.kind, root.began, ended, said, error
        )
        self._put(trace, [line, *trace.lines])
        return True

    def take_late(self, trace: Trace, line: Line) -> None:
        """What began within a root and ended after it: a bank's answer, a shielded drive."""
        slow = line.ended - line.began >= self._slow_s
        if not (trace.kept or trace.sampled or line.error or slow):
            return
        if self._room("failed" if line.error else "slow" if slow else "sampled"):
            self._put(trace, [line])

    def _room(self, why: str) -> bool:
        limit = self._queue_max // 2 if why == "sampled" else self._queue_max
        if self._export.waiting < limit:
            return True
        self.dropped += 1
        return False

    def _put(self, trace: Trace, lines: Sequence[Line | Waited]) -> None:
        for line in lines:
            if isinstance(line, Waited):
                line.group.kept.append((trace.trace_id, line.commit_id))
        self._export.put(trace.trace_id, lines)


class root:
    """A root for the length of a block. `tracer` None: nothing is recorded."""

    __slots__ = ("_error", "_kind", "_name", "_token", "_traceparent", "_tracer", "scope")

    def __init__(
        self, tracer: Tracer | None, name: str, kind: SpanKind, traceparent: str = ""
    ) -> None:
        self._tracer = tracer
        self._name = name
        self._kind = kind
        self._traceparent = traceparent
        self._error = ""
        self.scope: Root | None = None

    def __enter__(self) -> root:
        if self._tracer is not None:
            self.scope = self._tracer.begin(self._name, self._kind, self._traceparent)
            self._token: Token[Scope | None] = current.set(self.scope)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.scope is None or self._tracer is None:
            return
        current.reset(self._token)
        if error is not None and not self._error:
            self._error = error_of(error)
        self._tracer.end(self.scope, self._error)

    @property
    def traceparent(self) -> str:
        """Of this span; without a tracer what came in goes on."""
        return self.scope.traceparent if self.scope is not None else self._traceparent

    def note(self, **attributes: Any) -> None:
        if self.scope is not None:
            self.scope.attributes = noted(self.scope.attributes, attributes)

    def fail(self, error: str) -> None:
        self._error = error
