"""What Kubernetes asks a process: plain HTTP on its own port, for kubelets have no certificate.

/live   the event loop turns. Nothing else: a database that is away is no reason to be killed.
/ready  the process takes work now: 200, or 503.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from aiohttp import web

log = structlog.get_logger(__name__)


async def serve_probes(listen: str, ready: Callable[[], bool]) -> None:
    """Answers on host:port until it is cancelled; with an empty address there is nothing to do."""
    if not listen:
        return

    async def live(_request: web.Request) -> web.Response:
        return web.Response(text="live\n")

    async def readiness(_request: web.Request) -> web.Response:
        if ready():
            return web.Response(text="ready\n")
        return web.Response(status=503, text="not ready\n")

    application = web.Application()
    application.router.add_get("/live", live)
    application.router.add_get("/ready", readiness)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        host, _, port = listen.rpartition(":")
        await web.TCPSite(runner, host, int(port)).start()
        log.info("probes", listen=listen)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
