"""Faults that are too much of something good: a slow webhook endpoint, more load than fits."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable

import grpc
from cellpay.money.v1.money_pb2 import Money
from cellpay.notifications.v1 import notifications_pb2
from cellpay.transfers.v1 import transfers_pb2

from control.drills.probe import Probe
from control.drills.rules import latency_ms_of
from control.drills.site import NotPossible, Proof, Site
from router.errors import Refusal

_CALIBRATION_S = 2.0
_CALIBRATION_PAYERS = 48
_CONNECTIONS_MAX = 256
_TRANSFER_INTERVAL_S = 0.5
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


async def slow_channel(site: Site) -> str:
    """The probe's merchant has an endpoint that answers late. Payments must not notice."""
    probe = _probe(site)
    late_ms = latency_ms_of(site.spec)
    answered: list[float] = []
    port = await site.held.enter_async_context(_endpoint(late_ms / 1000, answered))
    site.proof = lambda: Proof(bool(answered), f"{len(answered)} webhooks were answered late")
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
async def _endpoint(late_s: float, answered: list[float]) -> AsyncIterator[int]:
    """Late until the block ends; then it answers at once, for what is still to be delivered."""
    over = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await reader.readuntil(b"\r\n\r\n")
            try:
                async with asyncio.timeout(late_s):
                    await over.wait()
            except TimeoutError:
                answered.append(late_s)
            writer.write(_ANSWER)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=_CONNECTIONS_MAX)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        # Not closed: deliveries are tried again until they succeed; it ends with this process.
        over.set()


async def overload(site: Site) -> str:
    """As many times what the mesh was just seen to do. The load comes from this very process, so on
    a small machine it also takes processor time from the mesh."""
    probe = _probe(site)
    times = site.spec.times or 3
    peak = await _peak_per_s(probe)
    load = Probe(probe.mesh, probe.users, probe.shop)
    began_ms = load.now_ms()

    def proof() -> Proof:
        seconds = (load.now_ms() - began_ms) / 1000
        ended = len(load.samples)
        paid = sum(sample.paid for sample in load.samples)
        seen = f"{ended / seconds:.0f}/s were answered, {paid / seconds:.0f}/s of them paid"
        # What is asked for and not answered is more than the mesh can do.
        return Proof(paid / seconds < peak * times, seen)

    site.proof = proof
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


def transfers_across(site: Site) -> Callable[[], str]:
    """Users of the two cells send each other money until the fault is healed; returns what came of
    it so far. Payments never cross cells, so without these a partition would be about nothing."""
    probe = _probe(site)
    cell, other = site.spec.cell, site.spec.other_cell
    for name in (cell, other):
        if not probe.users.get(name):
            raise NotPossible(f"cell {name} owns no slots")
    done: Counter[str] = Counter()

    async def send_money(payer: str, payee: str) -> None:
        request = transfers_pb2.CreateTransferRequest(
            payer_id=payer, payee_id=payee, amount=Money(currency="USD", minor_units=1)
        )
        try:
            answer = await probe.mesh.transfers.CreateTransfer(request)
        except (grpc.aio.AioRpcError, Refusal):
            done["failed"] += 1
            return
        done[transfers_pb2.Transfer.State.Name(answer.state).removeprefix("STATE_").lower()] += 1

    async def keep_sending() -> None:
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                there = probe.users[cell][number % len(probe.users[cell])]
                here = probe.users[other][number % len(probe.users[other])]
                group.create_task(send_money(*((there, here) if number % 2 else (here, there))))
                done["begun"] += 1
                await asyncio.sleep(_TRANSFER_INTERVAL_S)

    site.held.callback(site.group.create_task(keep_sending()).cancel)
    return lambda: "transfers: " + ", ".join(f"{n} {what}" for what, n in sorted(done.items()))


def _probe(site: Site) -> Probe:
    if site.probe is None:
        raise NotPossible("there is no probe")
    return site.probe
