"""Faults that are too much of something good: a slow webhook endpoint, more load than fits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from cellpay.notifications.v1 import notifications_pb2

from control.drills.probe import Probe
from control.drills.rules import latency_ms_of
from control.drills.site import NotPossible, Site

_CALIBRATION_S = 2.0
_CALIBRATION_PAYERS = 48
_CONNECTIONS_MAX = 256
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


async def slow_channel(site: Site) -> str:
    """The probe's merchant has an endpoint that answers late. Payments must not notice."""
    probe = _probe(site)
    late_ms = latency_ms_of(site.spec)
    port = await site.held.enter_async_context(_endpoint(late_ms / 1000))
    await probe.mesh.notifications.SetEndpoint(
        notifications_pb2.SetEndpointRequest(
            merchant_id=probe.shop,
            url=f"http://127.0.0.1:{port}/drill",
            secret=b"a drill's secret, of 32 bytes ..",
        ),
        timeout=10,
    )
    return f"webhooks to {probe.shop} are answered after {late_ms} ms"


@contextlib.asynccontextmanager
async def _endpoint(late_s: float) -> AsyncIterator[int]:
    """Late until the block ends; then it answers at once, for what is still to be delivered."""
    late = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await reader.readuntil(b"\r\n\r\n")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(late_s):
                    await late.wait()
            writer.write(_ANSWER)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=_CONNECTIONS_MAX)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        # Not closed: deliveries are tried again until they succeed; it ends with this process.
        late.set()


async def overload(site: Site) -> str:
    """As many times what the mesh was just seen to do. The load comes from this very process, so on
    a small machine it also takes processor time from the mesh."""
    probe = _probe(site)
    times = site.spec.times or 3
    peak = await _peak_per_s(probe)
    load = Probe(probe.mesh, probe.users, probe.shop)
    site.held.callback(site.group.create_task(load.run(max(1.0, peak * times))).cancel)
    return f"{peak * times:.0f} payments/s are asked for, {times} times {peak:.0f}/s"


async def _peak_per_s(probe: Probe) -> float:
    loop = asyncio.get_running_loop()
    until = loop.time() + _CALIBRATION_S
    paid = 0

    async def payer(number: int) -> None:
        nonlocal paid
        while loop.time() < until:
            made = await probe.pay(number)
            # Not `paid += await …`, which adds to what it was before the wait.
            paid += made
            number += _CALIBRATION_PAYERS

    async with asyncio.TaskGroup() as group:
        for number in range(_CALIBRATION_PAYERS):
            group.create_task(payer(number))
    return paid / _CALIBRATION_S


def _probe(site: Site) -> Probe:
    if site.probe is None:
        raise NotPossible("there is no probe")
    return site.probe
