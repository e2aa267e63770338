"""The composition root of a cell: the only file that knows everyone.

python -m cells.serve SETTINGS.json
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog
import uvloop
from cellpay.accounts.v1 import accounts_pb2_grpc
from cellpay.cell.v1 import cell_pb2_grpc
from cellpay.notifications.v1 import notifications_pb2_grpc
from cellpay.orders.v1 import orders_pb2_grpc
from cellpay.payments.v1 import payments_pb2_grpc
from cellpay.transfers.v1 import funding_pb2_grpc, participant_pb2_grpc, transfers_pb2_grpc
from cellpay.vault.v1 import instruments_pb2_grpc
from grpc_health.v1 import health, health_pb2
from sqlalchemy.ext.asyncio import AsyncEngine

from cells.accounts.service import AccountsService
from cells.banking import Banking
from cells.bulk import Bulk
from cells.cell_service import CellService
from cells.choice.worker import Choosing
from cells.crew import (
    Role,
    Terminated,
    crew_of,
    join_in,
    live_with_the_first,
    size_in,
    until_terminated,
)
from cells.database import make_engine
from cells.degradation.load import LoadMeter
from cells.health import Reporter
from cells.keys.signing import Signing
from cells.ledger.book import MoneyBroken
from cells.ledger.worker import Lanes
from cells.notifications.secrets import Sealing, Secrets
from cells.notifications.service import NotificationsService
from cells.orders.service import OrdersService
from cells.payments.outcomes import PaymentOutcomes
from cells.payments.refunding import Refunding
from cells.payments.service import PaymentsService
from cells.policing import Policing
from cells.reading import ReadEngine
from cells.replica import Replica
from cells.risk.knowledge import Knowing
from cells.risk.screening import Screening
from cells.risking import Risking
from cells.settings import CellSettings, read_settings
from cells.settlement.worker import Settlement
from cells.transfers.branches import BranchCalls
from cells.transfers.coordinator import Coordinator
from cells.transfers.service import FundingService, ParticipantService, TransfersService
from cells.transfers.worker import Recovery
from cells.vault.keystore import open_kms
from cells.vault.numbers import read_bins
from cells.vault.service import InstrumentsService
from cells.vault.store import Vault
from cells.vault.worker import Rotation
from cells.workers import EXIT_MONEY_BROKEN, WorkerBroken
from router.access import METHODS, SERVICES
from router.admission.gate import Admission
from router.client import CallPolicy, Mesh, connect
from router.guard import GuardedServer, SlotsHere
from router.logs import configure_logs
from router.metrics import Calls, tracing_metrics
from router.policies.model import Dependency, Feature, Mode
from router.signing.gate import SignatureGate
from router.standard import add_standard_services, server_options
from router.store.etcd import connect_etcd
from router.store.model import Store
from router.tally import Tally
from router.tracing import Tracer
from router.tracing.export import open_tracer

log = structlog.get_logger(__name__)

_OPTIONS: list[tuple[str, Any]] = [
    # A grpc.aio server accepts one call in a turn of the event loop, however many wait. Several
    # servers on one port accept as many, so that groups can grow (docs/performance.md).
    ("grpc.so_reuseport", 1),
    *server_options(),
]
# Their failures are the cell's own; a transfer's may be the other cell's.
_TALLIED = (
    "cellpay.accounts.v1.AccountsService",
    "cellpay.orders.v1.OrdersService",
    "cellpay.payments.v1.PaymentsService",
)


@dataclass(frozen=True, slots=True)
class Guarding:
    """What stands before a cell's services, in each of its servers."""

    here: SlotsHere
    admission: Admission
    tally: Tally
    calls: Calls
    signing: SignatureGate
    tracer: Tracer | None
    payments: PaymentOutcomes


async def serve(settings: CellSettings, role: Role) -> None:
    """Runs until SIGTERM; raises when it must stop (a broken money invariant)."""
    # No process takes anything before the mesh has heard of it.
    here = SlotsHere(settings.cell, alive=False)
    lane_engine, read_engine = _engines(settings)
    lanes = Lanes(lane_engine, settings.cell, settings.lanes)
    store = connect_etcd(settings.etcd, settings.etcd_tls)
    policing, choosing = _policing(store, settings, role, lanes)
    # A cell is called itself, so it does not retry: recovery and its own callers do (pitfall 24).
    inner = CallPolicy(retries=False, timeout_s=settings.transfers.branch_call_timeout_s)
    async with _mesh(settings, role, inner) as (mesh, tracer):
        branches = BranchCalls(mesh.participants, here, settings.transfers.branch_call_timeout_s)
        coordinator = Coordinator(lanes, branches, settings.transfers)
        refunding = _refunding(lanes, mesh, settings, policing)
        recovery = Recovery(read_engine, here, coordinator, refunding, settings.transfers)
        vault = Vault(lanes, read_engine, open_kms(settings.vault.keystore))
        risking = Risking(settings, lanes, read_engine, here, vault, policing)
        banking = Banking(
            settings, lanes, read_engine, here, vault, policing, choosing, mesh, risking.screening
        )
        signing = Signing(
            store, lanes, read_engine, here, vault.kms, settings.redis_url, policing,
            settings.signed_hosts,
        )  # fmt: skip
        guarding = Guarding(
            here, policing.admission, Tally(), Calls(), signing.gate, tracer, PaymentOutcomes()
        )
        health_servicer = health.aio.HealthServicer()
        services = _services(
            lanes, read_engine, guarding, coordinator, refunding, recovery, vault, settings,
            risking.screening,
        )  # fmt: skip
        services += banking.services() + risking.services() + signing.services()
        servers, address = _listen(settings, role, guarding, health_servicer, services)
        await _start(servers, health_servicer)
        # Slots that came here: what is in doubt there has lost its driver.
        gains: asyncio.Queue[frozenset[int]] = asyncio.Queue()
        listens = (guarding.calls, address, gains, (policing.known, signing.known))
        told = (guarding.payments, banking.desk.asking, tracing_metrics(tracer), risking)
        crew = crew_of(settings, role, store, here, lanes, read_engine, policing, *listens, *told)
        try:
            async with asyncio.TaskGroup() as group:
                _run_in(
                    group, crew.runners(lanes, role), branches, read_engine, policing, choosing,
                    banking, risking, signing, role,
                )  # fmt: skip
                group.create_task(crew.membership.follow_map())
                group.create_task(_announce(health_servicer, here))
                group.create_task(Reporter(store, settings, guarding.tally).run())
                group.create_task(
                    until_terminated(servers, crew.leaving, health_servicer, role, risking.drain)
                )
                if role.is_first:
                    size_in(group, settings, crew, policing.forecasts)
                    settling = (lanes, read_engine, here, coordinator, settings.settlement)
                    keeping = _keeping(lanes, read_engine, here, vault, settings, policing)
                    _mend_in(group, gains, recovery, (Settlement(*settling), *keeping))
                elif role.joins:
                    join_in(group, settings, crew)
                else:
                    group.create_task(crew.membership.follow_lease())
                    group.create_task(live_with_the_first(settings, role, address, here, crew))
        except* Terminated:
            log.info("the cell stops")
        finally:
            for server in servers:
                await server.stop(None)
            await store.close()
            for engine in (lane_engine, read_engine):
                await engine.dispose()


@contextlib.asynccontextmanager
async def _mesh(
    settings: CellSettings, role: Role, policy: CallPolicy
) -> AsyncIterator[tuple[Mesh, Tracer | None]]:
    """The way to other cells, and where traces go; None where nothing is recorded."""
    of = {"cell": settings.cell, "region": settings.region, "process": role.name(settings.cell)}
    with open_tracer(settings.tracing, "cellpay-cell", **of) as tracer:
        async with connect(
            settings.xds_bootstrap, policy=policy, fallback=settings.tls, tracer=tracer
        ) as mesh:
            yield mesh, tracer


def _run_in(
    group: asyncio.TaskGroup,
    runners: Iterable[Callable[[], Coroutine[Any, Any, None]]],
    branches: BranchCalls,
    read_engine: ReadEngine,
    policing: Policing,
    choosing: Choosing,
    banking: Banking,
    risking: Risking,
    signing: Signing,
    role: Role,
) -> None:
    """What every process of a cell does beside its calls. `runners`: its lanes'."""
    for runner in runners:
        group.create_task(runner())
    group.create_task(branches.run())
    group.create_task(policing.run())
    group.create_task(choosing.run())
    group.create_task(banking.run(recover=role.is_first))
    group.create_task(risking.run(consume=role.is_first))
    group.create_task(signing.run(publish=role.is_first))
    if read_engine.replica is not None:
        group.create_task(read_engine.replica.run())


def _mend_in(
    group: asyncio.TaskGroup,
    gains: asyncio.Queue[frozenset[int]],
    recovery: Recovery,
    workers: Iterable[Settlement | Rotation | Sealing],
) -> None:
    """What one process of a cell does for all: finish what others began, settle, rotate keys."""
    group.create_task(_recover_gains(gains, recovery))
    group.create_task(recovery.run())
    for worker in workers:
        group.create_task(worker.run())


def _policing(
    store: Store, settings: CellSettings, role: Role, lanes: Lanes
) -> tuple[Policing, Choosing]:
    """Policies, and the choice of channels that they rule."""
    cell = settings.cell
    policing = Policing(
        store, cell, role.name(cell), settings.redis_url, LoadMeter(lanes), Knowing()
    )
    choosing = Choosing(store, cell, settings.redis_url, policing.board)
    policing.followers.append(choosing.apply)
    return policing, choosing


def _keeping(
    lanes: Lanes,
    engine: ReadEngine,
    here: SlotsHere,
    vault: Vault,
    settings: CellSettings,
    policing: Policing,
) -> tuple[Rotation, Sealing]:
    """What replaces keys, and what they have sealed."""
    interval_s = settings.vault.look_interval_s
    return (
        Rotation(lanes, here, vault, settings.vault, policing.keys),
        Sealing(lanes, engine, here, Secrets(vault.kms), interval_s),
    )


def _refunding(lanes: Lanes, mesh: Mesh, settings: CellSettings, policing: Policing) -> Refunding:
    return Refunding(
        lanes,
        mesh,
        settings.transfers.branch_call_timeout_s,
        policing.board.of(Dependency.FUNDING),
        deferred=lambda: policing.mode(Feature.REFUNDS) != Mode.ON,
    )


def _engines(settings: CellSettings) -> tuple[AsyncEngine, ReadEngine]:
    name = f"cellpay-{settings.cell}"
    url, database = settings.database_url, settings.database
    lanes = make_engine(url, f"{name}-lanes", database, pool_size=settings.lanes.count, lanes=True)
    reads = make_engine(url, f"{name}-reads", database, pool_size=database.read_pool_size)
    if not settings.replica_url:
        return lanes, ReadEngine(reads)
    size = database.read_pool_size
    replica = make_engine(settings.replica_url, f"{name}-replica", database, pool_size=size)
    return lanes, ReadEngine(reads, Replica(replica, reads))


def port_of(settings: CellSettings, role: Role) -> int:
    """Where a process of the cell listens; 0: anywhere."""
    if not role.incarnation:
        return int(settings.listen.rpartition(":")[2])
    return settings.worker_port + role.number - 1 if settings.worker_port else 0


def _listen(
    settings: CellSettings,
    role: Role,
    guarding: Guarding,
    health_servicer: Any,
    services: list[tuple[Callable[..., None], Any]],
) -> tuple[list[grpc.aio.Server], str]:
    """Servers on one port, and its address."""
    servers = []
    host = settings.listen.rpartition(":")[0]
    address = f"{host}:{port_of(settings, role)}"
    for _ in range(settings.servers):
        server = _server(guarding, health_servicer, services)
        port = server.add_secure_port(address, settings.tls.server_credentials())
        address = f"{host}:{port}"
        servers.append(server)
    return servers, address


async def _start(servers: list[grpc.aio.Server], health_servicer: Any) -> None:
    # By default it says SERVING from the start; `_announce` says when that is true.
    await health_servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    for server in servers:
        await server.start()


def _services(
    lanes: Lanes,
    engine: ReadEngine,
    guarding: Guarding,
    coordinator: Coordinator,
    refunding: Refunding,
    recovery: Recovery,
    vault: Vault,
    settings: CellSettings,
    screening: Screening,
) -> list[tuple[Callable[..., None], Any]]:
    """Each service with the generated function that adds it to a server."""
    here = guarding.here
    bulk = Bulk(lanes, here, guarding.tally, guarding.tracer)
    secrets = Secrets(vault.kms)
    notifications = NotificationsService(
        lanes, engine, bulk, secrets=secrets, allow_private=settings.development
    )
    return [
        (
            accounts_pb2_grpc.add_AccountsServiceServicer_to_server,
            AccountsService(lanes, engine, screening),
        ),
        (orders_pb2_grpc.add_OrdersServiceServicer_to_server, OrdersService(lanes, engine)),
        (
            payments_pb2_grpc.add_PaymentsServiceServicer_to_server,
            PaymentsService(lanes, engine, refunding, bulk, screening, guarding.payments),
        ),
        (
            transfers_pb2_grpc.add_TransfersServiceServicer_to_server,
            TransfersService(screening, engine, coordinator),
        ),
        (
            participant_pb2_grpc.add_ParticipantServiceServicer_to_server,
            ParticipantService(lanes, bulk),
        ),
        (
            funding_pb2_grpc.add_FundingServiceServicer_to_server,
            FundingService(lanes, coordinator),
        ),
        (notifications_pb2_grpc.add_NotificationsServiceServicer_to_server, notifications),
        (
            instruments_pb2_grpc.add_InstrumentsServiceServicer_to_server,
            InstrumentsService(vault, engine, read_bins(settings.vault.bins)),
        ),
        (cell_pb2_grpc.add_CellServiceServicer_to_server, CellService(here, recovery)),
    ]


def _server(
    guarding: Guarding,
    health_servicer: Any,
    services: list[tuple[Callable[..., None], Any]],
) -> grpc.aio.Server:
    server = grpc.aio.server(options=_OPTIONS)
    guarded = GuardedServer(
        server,
        guarding.here,
        METHODS,
        admission=guarding.admission,
        tallies=dict.fromkeys(_TALLIED, guarding.tally),
        calls=guarding.calls,
        signing=guarding.signing,
        tracer=guarding.tracer,
    )
    for add, service in services:
        add(service, guarded)
    add_standard_services(server, health_servicer, SERVICES)
    return server


async def _announce(health_servicer: Any, here: SlotsHere) -> None:
    """Health says SERVING once the cell knows the slot map, and the mesh the cell."""
    while not here.takes_work():
        await asyncio.sleep(0.02)
    await health_servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    log.info("serving", cell=here.cell)


async def _recover_gains(gains: asyncio.Queue[frozenset[int]], recovery: Recovery) -> None:
    """Slots that have just come here: their transfers in doubt have lost their driver."""
    while True:
        gained = await gains.get()
        try:
            await recovery.recover(gained, min_age_s=0)
        except Exception as error:
            log.warning("recovery of gained slots is held up", error=type(error).__name__)


def _arguments() -> Role:
    parser = argparse.ArgumentParser(prog="python -m cells.serve")
    parser.add_argument("settings", type=Path)
    # Given by the cell's first process to the others.
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--tell", type=int, default=-1, help=argparse.SUPPRESS)
    what = "a further process of the cell, whose first process runs elsewhere"
    parser.add_argument("--join", action="store_true", help=what)
    given = parser.parse_args()
    return Role(given.settings, given.worker, given.tell, given.number, given.join)


def collect_seldom() -> None:
    """What is loaded now stays; what requests leave behind dies by reference count. Looking for
    cycles at the default pace costs more than it finds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def main() -> None:
    if sys.flags.optimize:
        raise SystemExit("python -O removes assertions that guard money; run without it")
    role = _arguments()
    settings = read_settings(role.settings)
    configure_logs(cell=settings.cell)
    collect_seldom()
    broken = False
    try:
        uvloop.run(serve(settings, role))
    except* (MoneyBroken, WorkerBroken) as errors:
        broken = True
        log.critical("this cell stops", errors=repr(errors.exceptions))
    if broken:
        raise SystemExit(EXIT_MONEY_BROKEN)


if __name__ == "__main__":
    main()
