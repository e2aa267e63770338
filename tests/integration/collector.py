"""The collector that is outside in production: a process that takes OTLP over HTTP and shows what
it took. As a small one of the tests' own it keeps everything and decides nothing.

    python -m tests.integration.collector        prints the port that it listens on
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from cellpay.telemetry.v1.otlp_pb2 import ExportTraceServiceRequest, KeyValue

ROOT = Path(__file__).resolve().parents[2]
# Nothing here measures time: this only ends a test that hangs.
_PATIENCE_S = 60.0
_BODY_BYTES_MAX = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Span:
    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: int
    began_ns: int
    ended_ns: int
    # Empty: it went well.
    error: str
    attributes: dict[str, Any]
    links: list[list[str]]
    # service.name, and the cell where it has one.
    service: str
    cell: str


@dataclass(frozen=True, slots=True)
class Collector:
    url: str

    def spans(self, trace_id: str = "") -> list[Span]:
        """Of one trace, or all."""
        return [Span(**item) for item in json.loads(self._get(f"/spans?trace_id={trace_id}"))]

    def raw(self) -> bytes:
        """Every byte that was said, unzipped."""
        return self._get("/raw")

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=_PATIENCE_S) as answer:
            found: bytes = answer.read()
            return found

    async def until(
        self, trace_id: str, names: Sequence[str], services: Sequence[str] = ()
    ) -> list[Span]:
        """The trace's spans, once it has one of each of these names (as often as named), and one
        of each of these services."""
        until = time.monotonic() + _PATIENCE_S
        while True:
            spans = await asyncio.to_thread(self.spans, trace_id)
            have = [span.name for span in spans]
            missing = [name for name in set(names) if have.count(name) < names.count(name)]
            missing += set(services) - {span.service for span in spans}
            if not missing:
                return spans
            assert time.monotonic() < until, f"no {missing} among {sorted(have)}"
            await asyncio.sleep(0.1)


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.collector"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield Collector(f"http://127.0.0.1:{int(process.stdout.readline())}")
    finally:
        process.kill()
        process.wait()


class _Server:
    def __init__(self) -> None:
        self._spans: list[dict[str, Any]] = []
        self._raw: list[bytes] = []

    async def take(self, request: web.Request) -> web.Response:
        # aiohttp has unzipped it.
        body = await request.read()
        self._raw.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            of_process = _attributes(resource.resource.attributes)
            for scope in resource.scope_spans:
                self._spans += [_shown(span, of_process) for span in scope.spans]
        # An ExportTraceServiceResponse that says nothing: all was taken.
        return web.Response(content_type="application/x-protobuf")

    async def spans(self, request: web.Request) -> web.Response:
        wanted = request.query.get("trace_id", "")
        found = [span for span in self._spans if wanted in {"", span["trace_id"]}]
        return web.json_response(found)

    async def raw(self, _request: web.Request) -> web.Response:
        return web.Response(body=b"\n".join(self._raw))


def _attributes(pairs: Sequence[KeyValue]) -> dict[str, Any]:
    found = {}
    for pair in pairs:
        kind = pair.value.WhichOneof("value")
        found[pair.key] = getattr(pair.value, kind) if kind else None
    return found


def _shown(span: Any, of_process: dict[str, Any]) -> dict[str, Any]:
    return {
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent_id": span.parent_span_id.hex(),
        "name": span.name,
        "kind": span.kind,
        "began_ns": span.start_time_unix_nano,
        "ended_ns": span.end_time_unix_nano,
        "error": (span.status.message or "error") if span.status.code == 2 else "",
        "attributes": _attributes(span.attributes),
        "links": [[link.trace_id.hex(), link.span_id.hex()] for link in span.links],
        "service": of_process.get("service.name", ""),
        "cell": of_process.get("cellpay.cell", ""),
    }


async def _serve() -> None:
    server = _Server()
    application = web.Application(client_max_size=_BODY_BYTES_MAX)
    application.router.add_post("/v1/traces", server.take)
    application.router.add_get("/spans", server.spans)
    application.router.add_get("/raw", server.raw)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address: Any = runner.addresses[0]
    print(address[1], flush=True)
    # Ends with who started it.
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve())
