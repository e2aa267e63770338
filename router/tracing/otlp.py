"""From lines to OTLP: spans of OpenTelemetry, as a collector takes them.

Made directly and not by OpenTelemetry's SDK, whose spans cost several times as much
(docs/decisions/0017-traces-are-noted-and-made-later.md). The last line of defence is here: no
attribute leaves that looks like a card's number, a secret or a key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from cellpay.telemetry.v1.otlp_pb2 import ExportTraceServiceRequest, KeyValue, Span, Status

from router.redaction import redacted, redacted_value
from router.tracing.groups import LINKS_MAX, Waited
from router.tracing.model import Line, SpanKind

SCOPE_NAME = "cellpay"
_TEXT_CHARACTERS_MAX = 256


def expand(lines: Iterable[Line | Waited]) -> Iterator[Line]:
    """A member's part of a group becomes its wait and its commit."""
    for line in lines:
        if isinstance(line, Waited):
            yield from _of_group(line)
        else:
            yield line


def _of_group(waited: Waited) -> Iterator[Line]:
    group = waited.group
    internal = SpanKind.INTERNAL
    yield Line(
        waited.wait_id, waited.parent_id, "ledger.wait", internal, waited.queued, group.began,
        None, "",
    )  # fmt: skip
    said: dict[str, Any] = {
        "cellpay.group.size": group.size,
        "cellpay.group.tries": group.tries,
    }
    before = group.began
    for stage, moment in group.stages:
        said[f"cellpay.group.{stage}_ms"] = round((moment - before) * 1000, 3)
        before = moment
    # Of this trace too: a request may have had several commands in the group.
    others = [member for member in group.kept if member[1] != waited.commit_id][:LINKS_MAX]
    yield Line(
        waited.commit_id, waited.parent_id, "ledger.commit", internal, group.began, group.ended,
        said, "", tuple(others),
    )  # fmt: skip


class Batch:
    """Spans on their way into one request."""

    def __init__(self, resource: Mapping[str, str], version: str) -> None:
        self._request = ExportTraceServiceRequest()
        of_process = self._request.resource_spans.add()
        for name, value in resource.items():
            _set(of_process.resource.attributes.add(), name, value)
        self._spans = of_process.scope_spans.add()
        self._spans.scope.name = SCOPE_NAME
        self._spans.scope.version = version

    def add(self, trace_id: str, line: Line, offset_ns: int) -> None:
        """`offset_ns`: what added to a moment of `time.perf_counter` makes it a time of day."""
        span = self._spans.spans.add(
            trace_id=bytes.fromhex(trace_id),
            span_id=line.span_id.to_bytes(8, "big"),
            parent_span_id=line.parent_id.to_bytes(8, "big") if line.parent_id else b"",
            name=line.name,
            kind=Span.SpanKind.ValueType(line.kind),
            start_time_unix_nano=offset_ns + int(line.began * 1e9),
            end_time_unix_nano=offset_ns + int(line.ended * 1e9),
        )
        for name, value in (line.attributes or {}).items():
            _set(span.attributes.add(), name, value)
        for linked_trace, linked_span in line.links:
            span.links.add(
                trace_id=bytes.fromhex(linked_trace), span_id=linked_span.to_bytes(8, "big")
            )
        if line.error:
            span.status.code = Status.STATUS_CODE_ERROR
            span.status.message = redacted(line.error)[:_TEXT_CHARACTERS_MAX]

    def __len__(self) -> int:
        return len(self._spans.spans)

    def serialize(self) -> bytes:
        data: bytes = self._request.SerializeToString()
        return data


def _set(into: KeyValue, name: str, value: Any) -> None:
    into.key = name
    if type(value) is str:
        into.value.string_value = _text(name, value)
        return
    shown = redacted_value(value, name)
    if isinstance(shown, bool):
        into.value.bool_value = shown
    elif isinstance(shown, int):
        into.value.int_value = shown
    elif isinstance(shown, float):
        into.value.double_value = shown
    else:
        into.value.string_value = str(shown)[:_TEXT_CHARACTERS_MAX]


@lru_cache(maxsize=2048)
def _text(name: str, value: str) -> str:
    """Most are of few kinds: methods, statuses, channels."""
    return str(redacted_value(value, name))[:_TEXT_CHARACTERS_MAX]
