"""JSON lines to standard error. Nothing here prints parameters of SQL (pitfall 34), and card
numbers, secrets and keys are taken out of whatever a line holds, tracebacks included."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any

import structlog

from router.redaction import redacted, redacted_value
from router.tracing.current import current_scope

# Written by the processors themselves.
_OWN = frozenset({"level", "timestamp", "trace_id", "span_id"})


def configure_logs(**bound: str) -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            add_trace,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact_line,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**bound)
    _redact_others()


def add_trace(logger: Any, method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog's processor: which trace this line belongs to, when one is recorded."""
    scope = current_scope()
    if scope is not None:
        line["trace_id"] = scope.trace.trace_id
        line["span_id"] = f"{scope.span_id:016x}"
    return line


def redact_line(
    logger: Any, method: str, line: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """structlog's processor. A line that the level keeps out never comes here."""
    for name, value in line.items():
        if name not in _OWN:
            line[name] = redacted_value(value, name)
    return line


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


def _redact_others() -> None:
    """What libraries log, and the traceback of an end, go the same way out."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Redacting("%(levelname)s:%(name)s:%(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    sys.excepthook = _print_redacted


def _print_redacted(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace))))
