"""The thread that makes spans of kept lines and sends them by OTLP over HTTP.

Nothing of it is in the path of a request: the event loop puts lines into a bounded queue, the
thread takes so many a second, and lets go of the interpreter after each few. A collector that is
away costs traces, never payments.
"""

from __future__ import annotations

import contextlib
import contextvars
import gzip
import http.client
import os
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import structlog

from router.tracing.groups import Waited
from router.tracing.model import Line, TracingSettings
from router.tracing.tracer import Tracer

log = structlog.get_logger(__name__)

_TURN_S = 0.2
# Of one request: some hundred kB before it is compressed.
_BATCH_MAX = 512
# Spans that are made before the interpreter is let go of.
_AT_ONCE = 16
_TIMEOUT_S = 5.0
_TRIES_MAX = 4
_BACKOFF_BASE_S = 0.2
# What OTLP says may be sent again.
_AGAIN = frozenset({429, 502, 503, 504})
# At the end of the process.
_FAREWELL_S = 2.0


class Exporter:
    def __init__(self, settings: TracingSettings, resource: Mapping[str, str]) -> None:
        self._settings = settings
        self._resource = dict(resource)
        self._queue: deque[tuple[str, Sequence[Line | Waited]]] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._run,), name="traces", daemon=True
        )
        # No proxy: what a variable of the environment names is not asked for spans.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._waiting = 0
        self._lost = 0
        self._taken = 0
        self._put = 0

    @property
    def waiting(self) -> int:
        return self._waiting

    @property
    def lost(self) -> int:
        return self._lost

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Sends what there is, if that takes no longer than a moment."""
        self._stop.set()
        self._thread.join(_FAREWELL_S)

    def put(self, trace_id: str, lines: Sequence[Line | Waited]) -> None:
        # Only the event loop adds here and only the thread takes, each with a count of its own.
        self._put += len(lines)
        self._waiting = self._put - self._taken
        self._queue.append((trace_id, lines))

    def _run(self) -> None:
        a_turn = max(1, int(self._settings.spans_per_s_max * _TURN_S))
        while not self._stop.wait(_TURN_S):
            left = a_turn
            while left > 0 and self._queue:
                left -= self._send_batch(min(left, _BATCH_MAX))
        until = time.monotonic() + _FAREWELL_S
        while self._queue and time.monotonic() < until:
            self._send_batch(_BATCH_MAX)

    def _send_batch(self, count_max: int) -> int:
        """How many spans were made. Never raises: a thread that dies takes all traces with it."""
        # Imported here: who records nothing needs none of it.
        from router.tracing.otlp import Batch, expand

        offset_ns = time.time_ns() - time.perf_counter_ns()
        batch = Batch(self._resource, _version())
        while self._queue and len(batch) < count_max:
            trace_id, lines = self._queue.popleft()
            self._taken += len(lines)
            for line in expand(lines):
                try:
                    batch.add(trace_id, line, offset_ns)
                except Exception as error:
                    log.warning("a span cannot be made", span=line.name, error=type(error).__name__)
                if len(batch) % _AT_ONCE == 0:
                    time.sleep(0)
        self._waiting = self._put - self._taken
        if len(batch) and not self._post(batch.serialize()):
            self._lost += len(batch)
        return max(1, len(batch))

    def _post(self, body: bytes) -> bool:
        headers = {
            **self._settings.headers,
            "Content-Type": "application/x-protobuf",
            "Content-Encoding": "gzip",
        }
        url = self._settings.traces_url
        request = urllib.request.Request(url, gzip.compress(body, 1), headers, method="POST")
        for number in range(_TRIES_MAX):
            try:
                with self._opener.open(request, timeout=_TIMEOUT_S):
                    return True
            except urllib.error.HTTPError as error:
                error.close()
                if error.code not in _AGAIN:
                    log.warning("the collector refuses spans", status=error.code)
                    return False
            except (OSError, ValueError, http.client.HTTPException) as error:
                if number == 0:
                    log.info("the collector is away", error=type(error).__name__)
            if self._stop.is_set():
                return False
            self._stop.wait(_BACKOFF_BASE_S * 2**number)
        return False


def _version() -> str:
    try:
        return version("cellpay")
    except PackageNotFoundError:
        return ""


@contextlib.contextmanager
def open_tracer(
    settings: TracingSettings, service: str, **attributes: str
) -> Iterator[Tracer | None]:
    """A tracer whose spans are sent while the block runs; None without an endpoint.

    `service`: OpenTelemetry's service.name. `attributes`: of the process, as `cellpay.<name>`.
    """
    if not settings.endpoint:
        yield None
        return
    resource = {
        "service.name": service,
        "service.namespace": "cellpay",
        "service.version": _version(),
        "process.pid": str(os.getpid()),
        **{f"cellpay.{name}": value for name, value in attributes.items()},
    }
    exporter = Exporter(settings, resource)
    exporter.start()
    try:
        yield Tracer(settings, exporter)
    finally:
        exporter.close()
