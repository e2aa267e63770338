"""Traces: what happened to one request, across processes, for who asks why it failed or was slow.

    with span("transfer.try", {"cellpay.transfer_id": transfer_id}):
        …

A span of OpenTelemetry's SDK costs half of what a payment costs, so the path of a payment only
notes moments; spans are made of them, in another thread, once the tail has decided that the trace
is kept: every one that failed or was slow, and a sample of the rest. Without an endpoint nothing is
noted.

model.py    settings, lines, what a trace and a place in it are
rules.py    W3C's traceparent, the sample, what counts as failed (pure)
current.py  the place in a trace at which this task is, and spans there
tracer.py   roots, the tail's decision
groups.py   a commit that many traces share
otlp.py     from lines to OTLP
export.py   the thread that sends them
"""

from router.tracing.current import current_scope, span, traceparent_now
from router.tracing.model import SpanKind, TracingSettings
from router.tracing.tracer import Tracer

__all__ = [
    "SpanKind",
    "Tracer",
    "TracingSettings",
    "current_scope",
    "span",
    "traceparent_now",
]
