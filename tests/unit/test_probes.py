"""What kubelets ask: whether a process lives, and whether it takes work."""

from __future__ import annotations

import asyncio
import socket

import aiohttp

from router.probes import serve_probes


async def test_readiness_follows_the_process_and_liveness_does_not() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{probe.getsockname()[1]}"
    ready = False
    async with asyncio.TaskGroup() as group:
        task = group.create_task(serve_probes(listen, lambda: ready))
        async with aiohttp.ClientSession() as client:

            async def ask(path: str) -> int:
                while True:
                    try:
                        async with client.get(f"http://{listen}{path}") as answer:
                            return answer.status
                    except aiohttp.ClientConnectionError:
                        await asyncio.sleep(0.01)

            assert (await ask("/live"), await ask("/ready")) == (200, 503)
            ready = True
            assert (await ask("/live"), await ask("/ready")) == (200, 200)
            assert await ask("/anything") == 404
        task.cancel()


async def test_without_an_address_nobody_is_asked() -> None:
    await serve_probes("", lambda: True)
