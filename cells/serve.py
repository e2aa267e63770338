"""The composition root of a cell: the only file that knows everyone.

python -m cells.serve SETTINGS.json
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import uuid
from collections.abc import Callable
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
from grpc_health.v1 import health, health_pb2

from cells.accounts.service import AccountsService
from cells.cell_service import CellService
from cells.database import make_engine
from cells.ledger.worker import Lanes
from cells.membership import Membership
from cells.notifications.service import NotificationsService
from cells.orders.service import OrdersService
from cells.payments.refunding import Refunding
from cells.payments.service import PaymentsService
from cells.reading import ReadEngine
from cells.settings import CellSettings, read_settings
from cells.settlement.worker import Settlement
from cells.transfers.coordinator import Coordinator
from cells.transfers.service import FundingService, ParticipantService, TransfersService
from cells.transfers.worker import Recovery
from router.client import CallPolicy, TlsFiles, connect
from router.guard import GuardedServer, SlotsHere
from router.logs import configure_logs
from router.standard import add_standard_services
from router.store.etcd import connect_etcd

log = structlog.get_logger(__name__)

_OPTIONS: list[tuple[str, Any]] = [
    # A grpc.aio server accepts one call in a turn of the event loop, however many wait. Several
    # servers on one port accept as many, so that groups can grow (docs/performance.md).
    ("grpc.so_reuseport", 1),
    ("grpc.max_receive_message_length", 1024 * 1024),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.max_concurrent_streams", 4096),
]
# Who may call what is not for everyone; the mesh's CA has signed every caller.
_CALLERS = {
    "cellpay.cell.v1.CellService": ("controller",),
    "cellpay.transfers.v1.ParticipantService": ("cell",),
    "cellpay.transfers.v1.FundingService": ("cell",),
}
_SERVICES = [
    f"cellpay.{name}"
    for name in (
        "accounts.v1.AccountsService",
        "orders.v1.OrdersService",
        "payments.v1.PaymentsService",
        "transfers.v1.TransfersService",
        "transfers.v1.ParticipantService",
        "transfers.v1.FundingService",
        "notifications.v1.NotificationsService",
        "cell.v1.CellService",
    )
]
_GRACE_S = 2.0


async def serve(settings: CellSettings) -> None:
    """Runs the cell until SIGTERM; raises when it must stop (a broken money invariant)."""
    tls = settings.tls
    here = SlotsHere(settings.cell)
    name = f"cellpay-{settings.cell}"
    lane_engine = make_engine(
        settings.database_url, f"{name}-lanes", settings.database,
        pool_size=settings.lanes.count, lanes=True,
    )  # fmt: skip
    read_engine = ReadEngine(
        make_engine(
            settings.database_url, f"{name}-reads", settings.database,
            pool_size=settings.database.read_pool_size,
        )
    )  # fmt: skip
    lanes = Lanes(lane_engine, settings.cell, settings.lanes)
    store = connect_etcd(settings.etcd)
    # A cell is called itself, so it does not retry: recovery and its own callers do (pitfall 24).
    inner = CallPolicy(retries=False, timeout_s=settings.transfers.branch_call_timeout_s)
    async with connect(settings.xds_bootstrap, policy=inner, fallback=tls) as mesh:
        coordinator = Coordinator(lanes, mesh, settings.transfers)
        refunding = Refunding(lanes, mesh, settings.transfers.branch_call_timeout_s)
        recovery = Recovery(read_engine, here, coordinator, refunding, settings.transfers)
        settlement = Settlement(lanes, read_engine, here, coordinator, settings.settlement)
        health_servicer = health.aio.HealthServicer()
        services = _services(lanes, read_engine, here, coordinator, refunding, recovery, settings)
        servers = [
            _server(settings, tls, here, health_servicer, services) for _ in range(settings.servers)
        ]
        # Slots that came here: what is in doubt there has lost its driver.
        gains: asyncio.Queue[frozenset[int]] = asyncio.Queue()
        membership = Membership(
            store,
            here,
            region=settings.region,
            address=settings.listen,
            incarnation=uuid.uuid4().hex,
            lease_ttl_s=settings.lease_ttl_s,
            on_gain=gains.put_nowait,
        )
        # By default it says SERVING from the start; `_announce` says when that is true.
        await health_servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        for server in servers:
            await server.start()
        try:
            async with asyncio.TaskGroup() as group:
                for runner in lanes.runners():
                    group.create_task(runner())
                group.create_task(membership.follow_map())
                group.create_task(membership.keep_lease())
                group.create_task(_recover_gains(gains, recovery))
                group.create_task(recovery.run())
                group.create_task(settlement.run())
                group.create_task(_announce(health_servicer, here))
                group.create_task(_until_terminated(servers, membership, health_servicer))
        except* _Terminated:
            log.info("the cell stops")
        finally:
            for server in servers:
                await server.stop(None)
            await store.close()
            await lane_engine.dispose()
            await read_engine.dispose()


def _services(
    lanes: Lanes,
    engine: ReadEngine,
    here: SlotsHere,
    coordinator: Coordinator,
    refunding: Refunding,
    recovery: Recovery,
    settings: CellSettings,
) -> list[tuple[Callable[..., None], Any]]:
    """Each service with the generated function that adds it to a server."""
    notifications = NotificationsService(lanes, engine, allow_private=settings.development)
    return [
        (
            accounts_pb2_grpc.add_AccountsServiceServicer_to_server,
            AccountsService(lanes, engine),
        ),
        (orders_pb2_grpc.add_OrdersServiceServicer_to_server, OrdersService(lanes, engine)),
        (
            payments_pb2_grpc.add_PaymentsServiceServicer_to_server,
            PaymentsService(lanes, engine, refunding),
        ),
        (
            transfers_pb2_grpc.add_TransfersServiceServicer_to_server,
            TransfersService(lanes, engine, coordinator),
        ),
        (
            participant_pb2_grpc.add_ParticipantServiceServicer_to_server,
            ParticipantService(lanes),
        ),
        (
            funding_pb2_grpc.add_FundingServiceServicer_to_server,
            FundingService(lanes, coordinator),
        ),
        (notifications_pb2_grpc.add_NotificationsServiceServicer_to_server, notifications),
        (cell_pb2_grpc.add_CellServiceServicer_to_server, CellService(here, recovery)),
    ]


def _server(
    settings: CellSettings,
    tls: TlsFiles,
    here: SlotsHere,
    health_servicer: Any,
    services: list[tuple[Callable[..., None], Any]],
) -> grpc.aio.Server:
    server = grpc.aio.server(options=_OPTIONS)
    guarded = GuardedServer(server, here, _CALLERS)
    for add, service in services:
        add(service, guarded)
    add_standard_services(server, health_servicer, _SERVICES)
    server.add_secure_port(settings.listen, tls.server_credentials())
    return server


class _Terminated(Exception):
    """SIGTERM or SIGINT came."""


async def _until_terminated(
    servers: list[grpc.aio.Server], membership: Membership, health_servicer: Any
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    await health_servicer.enter_graceful_shutdown()
    async with asyncio.TaskGroup() as group:
        for server in servers:
            group.create_task(server.stop(_GRACE_S))
    await membership.leave()
    raise _Terminated


async def _announce(health_servicer: Any, here: SlotsHere) -> None:
    """Health says SERVING once the cell knows the slot map."""
    while here.map is None:
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


def main() -> None:
    if sys.flags.optimize:
        raise SystemExit("python -O removes assertions that guard money; run without it")
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m cells.serve SETTINGS.json")
    settings = read_settings(Path(sys.argv[1]))
    configure_logs(cell=settings.cell)
    # What is loaded now stays; what requests leave behind dies by reference count. Looking for
    # cycles at the default pace costs more than it finds.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    uvloop.run(serve(settings))


if __name__ == "__main__":
    main()
