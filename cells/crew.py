"""A cell's processes, as each of them sees the others: who they are, how they come and how they go.

Three kinds: the first, which holds the cell's lease; further ones on its machine, which it starts
(workers.py); and those that join it from elsewhere (joining.py). All are warm before the mesh hears
of them, and unknown to it before they end (leaving.py).
"""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from prometheus_client.metrics_core import Metric
from sqlalchemy.ext.asyncio import AsyncEngine

from cells.elasticity.load import Meter, tell_load
from cells.elasticity.warming import warm
from cells.elasticity.worker import Elasticity
from cells.joining import Joined, Joining, Runner
from cells.leaving import Leaving, Signals
from cells.ledger.worker import Lanes
from cells.membership import Membership
from cells.metrics import BusinessMetrics, CellMetrics, Telling
from cells.policing import Policing
from cells.reading import ReadEngine
from cells.settings import CellSettings
from cells.workers import Workers, tell_line, until_parent_gone
from router.guard import SlotsHere
from router.metrics import Calls
from router.policies.model import Forecast
from router.store.model import Store

_GRACE_S = 2.0


@dataclass(frozen=True)
class Role:
    """Which of a cell's processes this is."""

    settings: Path
    # A worker's: of the cell that it belongs to, and where to tell its address.
    incarnation: str = ""
    tell: int = -1
    # Of a worker: 1 is the first beside the cell's first process.
    number: int = 0
    # It belongs to a cell whose first process runs elsewhere.
    joins: bool = False

    @property
    def is_first(self) -> bool:
        return not self.incarnation and not self.joins

    def name(self, cell: str) -> str:
        if self.joins:
            return f"{cell}-joined-{socket.gethostname()}-{os.getpid()}"
        return f"{cell}-1" if self.is_first else f"{cell}-worker-{os.getpid()}"


@dataclass(frozen=True, slots=True)
class Crew:
    """A cell's processes, as this one sees them: who they are, what they feel, how they end."""

    membership: Membership
    workers: Workers
    leaving: Leaving
    meter: Meter
    telling: Telling
    joined: Joined
    joining: Joining
    # To be awaited before the mesh hears of this process.
    warming: Callable[[], Awaitable[int]]

    def runners(self, lanes: Lanes, role: Role) -> list[Runner]:
        """What the lanes run."""
        runners = lanes.runners()
        return [self.joining.guard(run) for run in runners] if role.joins else runners


async def _ready(
    knowing: Iterable[Callable[[], Awaitable[None]]],
    lanes: Lanes,
    engine: AsyncEngine,
    merchants_max: int,
) -> int:
    for known in knowing:
        await known()
    return await warm(lanes, engine, merchants_max)


def crew_of(
    settings: CellSettings,
    role: Role,
    store: Store,
    here: SlotsHere,
    lanes: Lanes,
    engine: ReadEngine,
    policing: Policing,
    calls: Calls,
    address: str,
    gains: asyncio.Queue[frozenset[int]],
    knowing: Iterable[Callable[[], Awaitable[None]]],
    *more: Callable[[], Iterable[Metric]],
) -> Crew:
    """`address`: where this process listens; `gains`: told of slots that come here; `knowing`:
    what is waited for before the mesh hears of it; `more`: what else there is for whoever scrapes.
    """
    incarnation = role.incarnation or uuid.uuid4().hex
    workers = Workers(role.settings, incarnation, settings.elasticity.leave_max_s)
    joined = Joined(store, settings.cell)
    joining = Joining(store, here, address, settings.lease_ttl_s)
    membership = _membership(
        settings, store, here, incarnation,
        lambda: [address, *workers.addresses, *joined.addresses], gains,
    )  # fmt: skip
    watched = CellMetrics(here, lanes, policing, calls)
    business = BusinessMetrics(engine.primary, here) if role.is_first else None
    return Crew(
        membership,
        workers,
        Leaving(settings, membership, here, workers, joining, calls),
        Meter(lanes, policing.admission),
        Telling(watched, [calls, *more], business, lambda: workers.probes),
        joined,
        joining,
        partial(_ready, knowing, lanes, engine.primary, settings.elasticity.warm_merchants_max),
    )


async def _enter(crew: Crew) -> None:
    """Into the mesh, once it is warm."""
    await crew.warming()
    await crew.membership.keep_lease()


def size_in(
    group: asyncio.TaskGroup,
    settings: CellSettings,
    crew: Crew,
    forecasts: Callable[[], Iterable[Forecast]],
) -> None:
    """The cell itself, and as many further processes as its load asks for."""
    sizes = settings.elasticity
    elasticity = Elasticity(sizes, settings.workers, crew.meter, crew.workers, forecasts)
    group.create_task(crew.telling.probes.run(settings.probe_listen))
    group.create_task(_enter(crew))
    group.create_task(crew.workers.run(crew.membership.announce))
    group.create_task(crew.joined.follow(crew.membership.announce))
    group.create_task(elasticity.run())


def join_in(group: asyncio.TaskGroup, settings: CellSettings, crew: Crew) -> None:
    """A process that a cell elsewhere tells the mesh of."""

    async def enter() -> None:
        await crew.warming()
        await crew.joining.keep()

    group.create_task(crew.telling.probes.run(settings.probe_listen))
    group.create_task(crew.joining.follow_lease())
    group.create_task(enter())


async def live_with_the_first(
    settings: CellSettings, role: Role, address: str, here: SlotsHere, crew: Crew
) -> None:
    """Tells the cell's first process where this one listens and what it feels; ends with it."""
    await crew.warming()
    while not here.takes_work():
        await asyncio.sleep(0.02)
    # The pipe is never waited for.
    os.set_blocking(role.tell, False)
    async with asyncio.TaskGroup() as group:
        probes = crew.telling.probes
        if settings.probe_listen:
            group.create_task(probes.run("127.0.0.1:0"))
            while not probes.address:
                await asyncio.sleep(0.01)
        tell_line(role.tell, f"{address} {probes.address}")
        pace_s = settings.elasticity.look_interval_s
        group.create_task(tell_load(crew.meter, role.tell, pace_s))
        await until_parent_gone()
        raise Terminated


def _membership(
    settings: CellSettings,
    store: Store,
    here: SlotsHere,
    incarnation: str,
    addresses: Callable[[], list[str]],
    gains: asyncio.Queue[frozenset[int]],
) -> Membership:
    return Membership(
        store,
        here,
        region=settings.region,
        addresses=addresses,
        incarnation=incarnation,
        lease_ttl_s=settings.lease_ttl_s,
        on_gain=gains.put_nowait,
    )


class Terminated(Exception):
    """SIGTERM or SIGINT came."""


async def until_terminated(
    servers: list[grpc.aio.Server],
    leaving: Leaving,
    health_servicer: Any,
    role: Role,
    drain: Callable[[], Awaitable[None]],
) -> None:
    """`drain`: what must still be told once the last call has ended."""
    signals = Signals()
    await signals.asked()
    if role.is_first:
        await leaving.slots_away(signals)
    elif role.joins:
        await leaving.parted(signals)
    elif signals.empty_first:
        await leaving.emptied(signals)
    leaving.stop_workers()
    await health_servicer.enter_graceful_shutdown()
    async with asyncio.TaskGroup() as group:
        for server in servers:
            group.create_task(server.stop(_GRACE_S))
    await drain()
    await leaving.leave()
    raise Terminated
