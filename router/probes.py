"""What Kubernetes and Prometheus ask a process: plain HTTP on its own port, for kubelets have no
certificate.

/live     the event loop turns. Nothing else: a database that is away is no reason to be killed.
/ready    the process takes work now: 200, or 503.
/metrics  Prometheus' text format, or OpenMetrics' (which has examples) for who accepts it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiohttp import web

from router.metrics import CONTENT_TYPE, OPENMETRICS_TYPE, wants_openmetrics

log = structlog.get_logger(__name__)


class Probes:
    """`ready`: whether it takes work. `metrics`: the page, when it is asked for; given whether
    it is to be in OpenMetrics' format."""

    def __init__(
        self, ready: Callable[[], bool], metrics: Callable[[bool], Awaitable[str]]
    ) -> None:
        self._ready = ready
        self._metrics = metrics
        # host:port, once it listens.
        self.address = ""

    async def run(self, listen: str) -> None:
        """Answers on host:port until it is cancelled; with an empty address there is nothing to
        do."""
        if not listen:
            return
        application = web.Application()
        application.router.add_get("/live", self._live)
        application.router.add_get("/ready", self._readiness)
        application.router.add_get("/metrics", self._page)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        try:
            host, _, port = listen.rpartition(":")
            await web.TCPSite(runner, host, int(port)).start()
            bound: Any = runner.addresses[0]
            self.address = f"{host}:{bound[1]}"
            log.info("probes", listen=self.address)
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    async def _live(self, _request: web.Request) -> web.Response:
        return web.Response(text="live\n")

    async def _readiness(self, _request: web.Request) -> web.Response:
        if self._ready():
            return web.Response(text="ready\n")
        return web.Response(status=503, text="not ready\n")

    async def _page(self, request: web.Request) -> web.Response:
        openmetrics = wants_openmetrics(request.headers.get("accept", ""))
        kind = OPENMETRICS_TYPE if openmetrics else CONTENT_TYPE
        return web.Response(text=await self._metrics(openmetrics), headers={"content-type": kind})
