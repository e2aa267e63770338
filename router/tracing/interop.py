"""Traces of a caller that records with OpenTelemetry's own API: the SDK goes on with its span."""

from __future__ import annotations

import sys
from typing import Any

_API = "opentelemetry.trace"


def outside_traceparent() -> str:
    """Of the span in which OpenTelemetry's API is now; empty when nobody here uses it.

    It is looked up and not imported: who has not imported it has no span.
    """
    api: Any = sys.modules.get(_API)
    if api is None:
        return ""
    context = api.get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
