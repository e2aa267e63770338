"""Traces: what is noted, what the tail keeps, what leaves the process."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import socket
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
import structlog
from cellpay.payments.v1 import payments_pb2 as pb
from cellpay.telemetry.v1.otlp_pb2 import ExportTraceServiceRequest
from google.protobuf.descriptor import Descriptor
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as official

from router.errors import Refusal
from router.logs import add_trace
from router.tracing import SpanKind, Tracer, TracingSettings, current_scope, span, traceparent_now
from router.tracing.calls import attributes_of
from router.tracing.current import current, error_of, within
from router.tracing.export import Exporter, open_tracer
from router.tracing.groups import LINKS_MAX, Group, Waited
from router.tracing.interop import outside_traceparent
from router.tracing.model import LINES_MAX, Line, Trace
from router.tracing.otlp import Batch, expand
from router.tracing.rules import (
    failure_of,
    is_sampled,
    parse_traceparent,
    threshold_of,
)
from router.tracing.tracer import root

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
ORDER = "ord_00" + "0" * 26


class Kept:
    """Stands where the exporter stands."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, Line | Waited]] = []
        self.waiting = 0
        self.lost = 0

    def put(self, trace_id: str, lines: Sequence[Line | Waited]) -> None:
        self.lines += [(trace_id, line) for line in lines]

    def names(self) -> list[str]:
        return [line.name for _, line in self.lines if isinstance(line, Line)]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tracer(kept: Kept, clock: Clock) -> Tracer:
    """Its sample has nothing."""
    return Tracer(TracingSettings(endpoint="http://x", sample_ratio=0.0), kept, clock)


@pytest.mark.parametrize(
    ("text", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-ff", True),
        # A later version may have more.
        (f"01-{TRACE}-{SPAN}-01-what-comes", True),
        (f"01-{TRACE}-{SPAN}-03", True),
    ],
)
def test_a_traceparent_is_read_as_w3c_has_it(text: str, sampled: bool) -> None:
    assert parse_traceparent(text) == (TRACE, int(SPAN, 16), sampled)


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}",
        f"01-{TRACE}-{SPAN}-01-{'x' * 300}",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        "4111111111111111",
    ],
)
def test_what_is_no_traceparent_begins_a_new_trace(text: str) -> None:
    assert parse_traceparent(text) is None


@given(st.text())
def test_no_text_breaks_the_reader(text: str) -> None:
    assert parse_traceparent(text) is None or text.isascii()


@given(
    st.integers(1, 2**128 - 1),
    st.floats(0, 1, allow_nan=False),
    st.floats(0, 1, allow_nan=False),
)
def test_who_has_a_larger_ratio_keeps_all_that_a_smaller_one_keeps(
    trace_id: int, one: float, other: float
) -> None:
    small, large = sorted((threshold_of(one), threshold_of(other)), reverse=True)
    assert not is_sampled(trace_id, small) or is_sampled(trace_id, large)
    assert is_sampled(trace_id, threshold_of(1.0))
    assert not is_sampled(trace_id, threshold_of(0.0))


def test_of_many_ids_the_sample_has_its_share() -> None:
    tracer = Tracer(TracingSettings(endpoint="http://x", sample_ratio=0.25), Kept())
    count = sum(tracer.begin("x", SpanKind.SERVER).trace.sampled for _ in range(8000))
    assert 1800 < count < 2200


@pytest.mark.parametrize(
    ("code", "reason", "failure"),
    [
        ("OK", "", ""),
        ("FAILED_PRECONDITION", "INSUFFICIENT_FUNDS", "FAILED_PRECONDITION INSUFFICIENT_FUNDS"),
        ("UNAVAILABLE", "SLOT_MOVED", ""),
        ("UNAVAILABLE", "DATABASE_AWAY", "UNAVAILABLE DATABASE_AWAY"),
        # To record what is shed would add to the load.
        ("RESOURCE_EXHAUSTED", "LANE_FULL", ""),
        ("CANCELLED", "", "CANCELLED"),
        ("INTERNAL", "INTERNAL", "INTERNAL"),
    ],
)
def test_what_counts_as_failed(code: str, reason: str, failure: str) -> None:
    assert failure_of(code, reason) == failure


def test_the_tail_keeps_what_failed_or_was_slow_and_nothing_else(
    tracer: Tracer, kept: Kept, clock: Clock
) -> None:
    assert not tracer.end(tracer.begin("fine", SpanKind.SERVER))
    assert tracer.end(tracer.begin("failed", SpanKind.SERVER), "UNAVAILABLE")
    slow = tracer.begin("slow", SpanKind.SERVER)
    clock.now += 0.25
    assert tracer.end(slow)
    assert kept.names() == ["failed", "slow"]
    assert tracer.kept == {"failed": 1, "slow": 1, "sampled": 0}


def test_whoever_called_says_whether_the_sample_has_it(tracer: Tracer, kept: Kept) -> None:
    in_it = tracer.begin("in", SpanKind.SERVER, f"00-{TRACE}-{SPAN}-01")
    everything = Tracer(TracingSettings(endpoint="http://x", sample_ratio=1.0), kept)
    out_of_it = everything.begin("out", SpanKind.SERVER, f"00-{TRACE}-{SPAN}-00")
    assert tracer.end(in_it)
    assert not everything.end(out_of_it)
    ((trace_id, line),) = kept.lines
    assert isinstance(line, Line)
    assert (trace_id, line.parent_id) == (TRACE, int(SPAN, 16))
    assert in_it.traceparent == f"00-{TRACE}-{in_it.span_id:016x}-01"


def test_when_there_is_little_room_the_sample_yields_to_what_failed() -> None:
    kept = Kept()
    settings = TracingSettings(endpoint="http://x", sample_ratio=1.0, queue_max=100)
    tracer = Tracer(settings, kept)
    kept.waiting = 50
    assert not tracer.end(tracer.begin("sampled", SpanKind.SERVER))
    assert tracer.end(tracer.begin("failed", SpanKind.SERVER), "INTERNAL")
    kept.waiting = 100
    assert not tracer.end(tracer.begin("failed", SpanKind.SERVER), "INTERNAL")
    assert tracer.dropped == 2


async def test_spans_lie_below_each_other_and_beside_each_other(tracer: Tracer, kept: Kept) -> None:
    async def beside(name: str) -> None:
        with span(name):
            await asyncio.sleep(0)
            with span(f"{name}.below"):
                await asyncio.sleep(0)

    with root(tracer, "root", SpanKind.SERVER) as watching:
        async with asyncio.TaskGroup() as group:
            group.create_task(beside("one"))
            group.create_task(beside("other"))
        watching.fail("so that it is kept")
    lines = {line.name: line for _, line in kept.lines if isinstance(line, Line)}
    ids = {line.span_id: line.name for line in lines.values()}
    assert {name: ids.get(line.parent_id) for name, line in lines.items()} == {
        "root": None, "one": "root", "other": "root", "one.below": "one", "other.below": "other",
    }  # fmt: skip
    assert current_scope() is None


def test_where_nothing_is_recorded_spans_are_nothing() -> None:
    with root(None, "root", SpanKind.SERVER, f"00-{TRACE}-{SPAN}-01") as watching, span("x") as one:
        one.note(n=1)
        one.fail("whatever")
        assert one.scope is None
        assert traceparent_now() == ""
        # What came in goes on.
        assert watching.traceparent == f"00-{TRACE}-{SPAN}-01"
    with within(None):
        assert current_scope() is None


def test_a_span_tells_the_kind_of_an_error_and_never_its_text(tracer: Tracer, kept: Kept) -> None:
    with (
        pytest.raises(ValueError, match="4111"),
        root(tracer, "root", SpanKind.SERVER),
        span("below"),
    ):
        raise ValueError("card 4111111111111111 is bad")
    errors = [line.error for _, line in kept.lines if isinstance(line, Line)]
    assert errors == ["ValueError", "ValueError"]
    refusal = Refusal(grpc.StatusCode.NOT_FOUND, "ORDER_NOT_FOUND", "secret")
    assert error_of(refusal) == "NOT_FOUND ORDER_NOT_FOUND"
    assert error_of(asyncio.CancelledError()) == "CANCELLED"


def test_what_ends_after_its_root_is_kept_with_it_or_for_itself(tracer: Tracer, kept: Kept) -> None:
    with root(tracer, "kept", SpanKind.SERVER) as watching:
        late = span("late")
        scope = watching.scope
        watching.fail("INTERNAL")
    with within(scope), late:
        pass
    with root(tracer, "dropped", SpanKind.SERVER) as watching:
        scope = watching.scope
    with within(scope):
        with span("late and fine"):
            pass
        with span("late and failed") as failing:
            failing.fail("declined")
    assert kept.names() == ["kept", "late", "late and failed"]


def test_a_trace_notes_no_more_than_its_share(tracer: Tracer, kept: Kept) -> None:
    with root(tracer, "root", SpanKind.SERVER) as watching:
        for _ in range(LINES_MAX + 50):
            with span("one of many"):
                pass
        watching.fail("INTERNAL")
    assert len(kept.lines) == LINES_MAX + 1


def test_a_trace_that_is_not_kept_dies_without_the_garbage_collector(tracer: Tracer) -> None:
    class Watched(Trace):
        __slots__ = ("__weakref__",)

    gc.disable()
    try:
        begun = tracer.begin("x", SpanKind.SERVER)
        begun.trace = Watched(TRACE, tracer, sampled=False)
        seen = weakref.ref(begun.trace)
        group = Group(1)
        token = current.set(begun)
        with span("below"):
            pass
        current.reset(token)
        begun.trace.lines.append(Waited(begun.span_id, 0.0, group))
        tracer.end(begun)
        del begun, token
        assert seen() is None
    finally:
        gc.enable()


def test_members_of_a_commit_are_linked_to_those_that_are_kept(tracer: Tracer, kept: Kept) -> None:
    group = Group(3)
    group.begin()
    for stage in ("fence", "load", "decide", "write", "commit"):
        group.passed(stage)
    group.end()
    roots = [tracer.begin(f"pay {number}", SpanKind.SERVER) for number in range(3)]
    for begun in roots:
        begun.trace.lines.append(Waited(begun.span_id, group.began - 0.001, group))
    tracer.end(roots[0], "INTERNAL")
    tracer.end(roots[1])
    tracer.end(roots[2], "INTERNAL")
    commits = {
        trace_id: line
        for trace_id, entry in kept.lines
        for line in expand([entry])
        if line.name == "ledger.commit"
    }
    first, third = roots[0].trace.trace_id, roots[2].trace.trace_id
    assert commits.keys() == {first, third}
    assert commits[first].links == ((third, commits[third].span_id),)
    assert commits[third].links == ((first, commits[first].span_id),)
    said = commits[first].attributes
    assert said is not None
    assert said["cellpay.group.size"] == 3
    assert {"cellpay.group.fence_ms", "cellpay.group.commit_ms"} <= said.keys()


def test_a_large_group_has_a_bounded_number_of_links() -> None:
    group = Group(512)
    group.kept += [(f"{number:032x}", number) for number in range(1, 512)]
    *_, commit = expand([Waited(1, 0.0, group)])
    assert len(commit.links) == LINKS_MAX


def _sent(lines: Sequence[tuple[str, Line]]) -> Any:
    batch = Batch({"service.name": "x"}, "1")
    for trace_id, line in lines:
        batch.add(trace_id, line, 1_000)
    (resource,) = ExportTraceServiceRequest.FromString(batch.serialize()).resource_spans
    return resource.scope_spans[0].spans


def test_a_line_becomes_a_span_of_otlp() -> None:
    said = {"cellpay.slot": 7, "cellpay.kept": "failed", "flag": True, "ms": 1.5}
    line = Line(5, 6, "pay", SpanKind.SERVER, 1.0, 2.5, said, "UNAVAILABLE", ((TRACE, 9),))
    (found,) = _sent([(TRACE, line)])
    assert (found.trace_id.hex(), found.span_id.hex()) == (TRACE, f"{5:016x}")
    assert (found.parent_span_id.hex(), found.kind) == (f"{6:016x}", 2)
    assert (found.start_time_unix_nano, found.end_time_unix_nano) == (1_000_001_000, 2_500_001_000)
    assert (found.status.code, found.status.message) == (2, "UNAVAILABLE")
    assert found.links[0].span_id.hex() == f"{9:016x}"
    values = {pair.key: pair.value for pair in found.attributes}
    assert values["cellpay.slot"].int_value == 7
    assert values["flag"].bool_value is True
    assert values["ms"].double_value == 1.5


def _fields(message: Descriptor) -> dict[str, tuple[int, bool]]:
    """Each field's path of numbers, with its type and whether there are many."""
    found: dict[str, tuple[int, bool]] = {}
    for field in message.fields:
        found[str(field.number)] = (field.type, field.is_repeated)
        # An official AnyValue holds AnyValues.
        if field.message_type and field.message_type.name not in {"ArrayValue", "KeyValueList"}:
            inner = _fields(field.message_type)
            found |= {f"{field.number}.{path}": kind for path, kind in inner.items()}
    return found


def test_it_is_otlp_field_by_field() -> None:
    """Against whichever version of the official stubs is there: of names nothing is on the wire."""
    ours = _fields(ExportTraceServiceRequest.DESCRIPTOR)
    theirs = _fields(official.ExportTraceServiceRequest.DESCRIPTOR)
    assert len(ours) > 25
    assert ours.items() <= theirs.items()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cellpay.order_id", "4111111111111111"),
        ("cellpay.note", "card 4111 1111 1111 1111"),
        ("cellpay.number", 4111111111111111),
        ("cellpay.api_key", "s3cr3t"),
        ("cellpay.note", "postgresql://cellpay:s3cr3t@db/cellpay"),
        ("cellpay.holder", "CANARY"),
    ],
)
def test_no_attribute_leaves_with_a_number_a_secret_or_a_name(name: str, value: Any) -> None:
    line = Line(1, 0, "x", SpanKind.SERVER, 0.0, 0.0, {name: value}, f"failed: {value}")
    (found,) = _sent([(TRACE, line)])
    shown = str(found.attributes)
    for secret in ("4111111111111111", "4111 1111", "s3cr3t", "CANARY"):
        assert secret not in shown


def test_a_call_tells_the_ids_that_cellpay_minted_and_no_others() -> None:
    request, answer = pb.PayRequest(order_id=ORDER), pb.Payment(payment_id="4111111111111111")
    said = attributes_of("cellpay.payments.v1.PaymentsService/Pay", "OK", request, answer)
    assert said["cellpay.order_id"] == ORDER
    assert "cellpay.payment_id" not in said
    # What failed has no answer, and what is malformed no fields.
    malformed: Any = object()
    assert "cellpay.order_id" not in attributes_of("s/M", "INTERNAL", malformed, None)
    assert said["rpc.method"] == "Pay"


def test_log_lines_know_their_trace(tracer: Tracer) -> None:
    plain: dict[str, Any] = {"event": "x"}
    assert add_trace(None, "info", dict(plain)) == plain
    with root(tracer, "root", SpanKind.SERVER, f"00-{TRACE}-{SPAN}-00") as watching, span("below"):
        line = add_trace(structlog.get_logger(), "info", dict(plain))
        scope = current_scope()
        assert scope is not None
        assert watching.scope is not None
        assert line["trace_id"] == TRACE
        assert line["span_id"] == f"{scope.span_id:016x}"
        json.dumps(line)


def test_without_an_endpoint_there_is_no_tracer() -> None:
    with open_tracer(TracingSettings(), "x") as tracer:
        assert tracer is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"sample_ratio": 1.5},
        {"sample_ratio": -0.1},
        {"slow_ms": 0},
        {"spans_per_s_max": 0},
        {"endpoint": "collector:4318"},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="tracing"):
        TracingSettings(**wrong)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Where nobody listens."""
    with socket.socket() as holding:
        holding.bind(("127.0.0.1", 0))
        yield holding.getsockname()[1]


def test_a_collector_that_is_away_costs_spans_and_nothing_else(silent_port: int) -> None:
    exporter = Exporter(TracingSettings(endpoint=f"http://127.0.0.1:{silent_port}"), {})
    exporter.start()
    line = Line(1, 0, "x", SpanKind.SERVER, 0.0, 0.0, None, "")
    exporter.put(TRACE, [line, line])
    assert exporter.waiting == 2
    exporter.close()
    assert (exporter.waiting, exporter.lost) == (0, 2)


@pytest.mark.parametrize(
    ("answers", "lost", "asked"), [([503, 429, 200], 0, 3), ([400], 1, 1), ([200], 0, 1)]
)
def test_a_collector_that_is_busy_is_asked_again_and_one_that_refuses_is_not(
    answers: list[int], lost: int, asked: int
) -> None:
    bodies: list[bytes] = []
    left = iter(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            assert self.headers["authorization"] == "Bearer token"
            body = self.rfile.read(int(self.headers["content-length"]))
            bodies.append(gzip.decompress(body))
            self.send_response(next(left))
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        settings = TracingSettings(
            endpoint=f"http://127.0.0.1:{server.server_port}/",
            headers={"Authorization": "Bearer token"},
        )
        exporter = Exporter(settings, {"service.name": "x"})
        exporter.start()
        exporter.put(TRACE, [Line(1, 0, "x", SpanKind.SERVER, 0.0, 0.0, None, "")])
        until = time.monotonic() + 30
        while len(bodies) < asked and time.monotonic() < until:
            time.sleep(0.01)
        exporter.close()
        server.shutdown()
        serving.join()
    assert (len(bodies), exporter.lost) == (asked, lost)
    (resource,) = ExportTraceServiceRequest.FromString(bodies[-1]).resource_spans
    assert resource.scope_spans[0].spans[0].trace_id.hex() == TRACE


def test_the_sdk_goes_on_with_a_span_of_opentelemetrys_own_api() -> None:
    theirs = trace.NonRecordingSpan(
        trace.SpanContext(int(TRACE, 16), int(SPAN, 16), False, trace.TraceFlags(1))
    )
    with trace.use_span(theirs):
        assert outside_traceparent() == f"00-{TRACE}-{SPAN}-01"
    assert outside_traceparent() == ""
