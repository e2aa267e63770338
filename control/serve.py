"""The composition root of a controller.

    python -m control.serve SETTINGS.json

Every controller serves xDS and reads; the leader runs operations and the automatic failover.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import structlog
import uvloop
from cellpay.control.v1 import (
    access_pb2_grpc,
    control_pb2_grpc,
    drills_pb2_grpc,
    operations_pb2_grpc,
    policies_pb2_grpc,
    reconciliation_pb2_grpc,
    reviews_pb2_grpc,
)
from cellpay.risk.v1 import risk_pb2_grpc
from grpc_health.v1 import health, health_pb2

from control.access.gate import Gate, GatedServer
from control.access.service import AccessService
from control.access.store import Access, seed_access
from control.chain.store import ChainedStore
from control.doors import Doors
from control.drills.service import DrillService
from control.drills.watching import Keeper
from control.fencing import DATABASE_FAULTS, Fence, make_fence_engine
from control.health import Watchman
from control.leader import Leadership
from control.leaving import Usher
from control.metrics import control_page
from control.operations.cells import GrpcCellCalls
from control.operations.model import Step
from control.operations.runner import Runner
from control.operations.watching import Traffic
from control.policies.service import PolicyService
from control.reconciliation.service import ReconciliationService
from control.reconciliation.store import CaseStore
from control.reviews.service import ReviewsService
from control.reviews.store import ReviewStore
from control.service import ControlService, store_refusal
from control.settings import ControllerSettings, TlsSettings, read_settings
from control.slotmap import seed_slot_map
from control.verdicts import FailoverPolicy
from control.view import View
from control.xds.saved import KeptSnapshots
from control.xds.server import XdsServer
from control.xds.traffic import traffic_of
from control.xds.translate import Topology, edge_tracing_of, read_edge_lua
from router.client.tls import TlsFiles
from router.guard import GuardedServer, SlotsHere
from router.identity import spiffe_id
from router.logs import configure_logs
from router.policies.follow import Follower, Reporter
from router.probes import Probes
from router.slotmap import SlotMap
from router.standard import GenericOnly, add_standard_services, server_options
from router.store.etcd import connect_etcd
from router.store.model import (
    DECLARED_CELLS_PREFIX,
    FAILOVER_POLICY_KEY,
    RUNNING_OPERATION_KEY,
    Store,
    StoreUnavailable,
)
from router.waiting import heard

log = structlog.get_logger(__name__)

_SERVICES = [
    "cellpay.control.v1.AccessService",
    "cellpay.control.v1.ControlService",
    "cellpay.control.v1.OperationsService",
    "cellpay.control.v1.PolicyService",
    "cellpay.control.v1.DrillService",
    "cellpay.control.v1.ReconciliationService",
    "cellpay.control.v1.ReviewsService",
    "envoy.service.discovery.v3.AggregatedDiscoveryService",
]
_RETRY_S = 0.5
_GRACE_S = 1.0
# How often operations that wait are looked at: is there head-room by now?
_WAITING_INTERVAL_S = 0.5


class _Terminated(Exception):
    """SIGTERM or SIGINT came."""


async def serve(settings: ControllerSettings) -> None:
    """Runs the controller until SIGTERM."""
    tls = TlsFiles(settings.tls.ca, settings.tls.certificate, settings.tls.key)
    store = ChainedStore(connect_etcd(settings.etcd, _files(settings.etcd_tls)))
    name = f"cellpay-{settings.name}"
    fence, cases, reviews = (
        Fence(make_fence_engine(settings.database_url, name)),
        CaseStore(make_fence_engine(settings.database_url, f"{name}-cases")),
        ReviewStore(make_fence_engine(settings.database_url, f"{name}-reviews")),
    )
    xds = XdsServer()
    lua = read_edge_lua()
    view = View(store)

    def publish() -> None:
        if view.slot_map is not None and view.knows_live:
            endpoints = {
                cell: view.detours.get(cell, live.addresses) for cell, live in view.live.items()
            }
            edge = (settings.edge_listen, lua, traffic_of(policies.now), settings.edge_ranges)
            xds.publish(
                Topology(view.slot_map, endpoints, *edge, edge_tracing_of(settings.tracing))
            )
            kept.changed.set()

    kept = KeptSnapshots(settings.snapshot, xds)
    view.on_change = publish
    policies = Follower(store, lambda _: publish())
    leadership = Leadership(store, settings.name, settings.leader_ttl_s)
    calls = GrpcCellCalls(view.addresses_of, tls)
    traffic = Traffic(view.figures_of, view.newcomers_of, view.recent_of)
    runner = Runner(store, fence, calls, known=view.known, traffic=traffic)
    watchman = Watchman(
        store, view, leadership, actor=spiffe_id("controller", settings.name),
        startup_grace_s=settings.startup_grace_s, dead_confirm_s=settings.dead_confirm_s,
    )  # fmt: skip
    gate = Gate(store, Access(store), approval_ttl_s=settings.approval_ttl_s)
    keeper = Keeper(Path(settings.mesh)) if settings.mesh else None
    health_servicer = health.aio.HealthServicer()
    deciding = ReviewsService(store, reviews, lambda slot: _home(view, calls, slot))
    register = _services(store, view, xds, watchman, keeper, gate.access, cases, deciding)
    servers = await _listen(settings, tls, xds, gate, health_servicer, register)
    usher = Usher(store, view, leadership, watchman.actor, settings.give_back_after_s)
    workers = (
        gate.access.follow(), gate.denials.run(), view.follow(), leadership.run(), watchman.run(),
        usher.run(), Doors(view).run(), kept.run(), _announce(health_servicer, view),
    )  # fmt: skip
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_until_terminated())
            for worker in workers:
                group.create_task(worker)
            # Beside the rest: a controller that starts while the database is away serves xDS.
            group.create_task(_seed(store, fence, settings))
            group.create_task(_follow_policies(store, policies, settings.name))
            if keeper is not None:
                group.create_task(keeper.run())
            group.create_task(_run_operations(store, view, runner, leadership))
            probes = Probes(lambda: view.known() is not None, control_page(view, xds, leadership))
            group.create_task(probes.run(settings.probe_listen))
    except* _Terminated:
        log.info("the controller stops")
    finally:
        # Everything above has ended, so nobody campaigns again for what is given up here.
        await leadership.resign()
        for server in servers:
            await server.stop(_GRACE_S)
        await calls.close()
        await store.close()
        await asyncio.gather(fence.close(), cases.close(), reviews.close())


def _services(
    store: Store,
    view: View,
    xds: XdsServer,
    watchman: Watchman,
    keeper: Keeper | None,
    access: Access,
    cases: CaseStore,
    reviews: ReviewsService,
) -> Callable[[Any], None]:
    """Adds them all to a server; they are the same ones on each."""
    control = ControlService(store, view, xds, watchman.pulses)
    policies = PolicyService(store, lambda: view.declared)
    drills = DrillService(store, view, keeper)
    roles = AccessService(store, access)
    reconciliation = ReconciliationService(store, cases)

    def register(gated: Any) -> None:
        control_pb2_grpc.add_ControlServiceServicer_to_server(control, gated)
        operations_pb2_grpc.add_OperationsServiceServicer_to_server(control.operations(), gated)
        policies_pb2_grpc.add_PolicyServiceServicer_to_server(policies, gated)
        drills_pb2_grpc.add_DrillServiceServicer_to_server(drills, gated)
        access_pb2_grpc.add_AccessServiceServicer_to_server(roles, gated)
        reconciliation_pb2_grpc.add_ReconciliationServiceServicer_to_server(reconciliation, gated)
        reviews_pb2_grpc.add_ReviewsServiceServicer_to_server(reviews, gated)

    return register


def _home(
    view: View, calls: GrpcCellCalls, slot: int
) -> risk_pb2_grpc.ReviewsServiceAsyncStub | None:
    return calls.reviews(view.slot_map.at(slot).cell) if view.slot_map is not None else None


async def _listen(
    settings: ControllerSettings,
    tls: TlsFiles,
    xds: XdsServer,
    gate: Gate,
    health_servicer: Any,
    register: Callable[[Any], None],
) -> list[grpc.aio.Server]:
    """One server on the controller's own address, and one on the address that all share."""
    servers = []
    for address in filter(None, (settings.listen, settings.shared_listen)):
        shared = int(address == settings.shared_listen)
        server = grpc.aio.server(options=[("grpc.so_reuseport", shared), *server_options()])
        guarded = GuardedServer(
            server, SlotsHere(settings.name), faults={StoreUnavailable: store_refusal}
        )
        register(GatedServer(guarded, gate))
        xds.add_to_server(GenericOnly(server))
        add_standard_services(server, health_servicer, _SERVICES)
        server.add_secure_port(address, tls.server_credentials())
        servers.append(server)
    # By default it says SERVING from the start; `_announce` says when that is true.
    await health_servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    for server in servers:
        await server.start()
    return servers


def _files(tls: TlsSettings | None) -> TlsFiles | None:
    return TlsFiles(tls.ca, tls.certificate, tls.key) if tls else None


async def _seed(store: Store, fence: Fence, settings: ControllerSettings) -> None:
    """The first start: the database knows the first owners before anybody hears of them."""
    first = SlotMap.even(settings.cells)
    while True:
        try:
            await fence.seed(first)
            await seed_slot_map(store, await fence.read(), first)
            for cell, region in settings.cells.items():
                key = DECLARED_CELLS_PREFIX + cell
                await store.commit(expect={key: 0}, puts={key: json.dumps({"region": region})})
            policy = FailoverPolicy(settings.automatic_failover).to_json()
            await store.commit(expect={FAILOVER_POLICY_KEY: 0}, puts={FAILOVER_POLICY_KEY: policy})
            await seed_access(store, settings.role_bindings, required=settings.approvals)
            return
        except StoreUnavailable as error:
            log.warning("waiting for etcd", why=str(error))
        except DATABASE_FAULTS as error:
            log.warning("waiting for the database", error=type(error).__name__)
        await asyncio.sleep(_RETRY_S)


async def _follow_policies(store: Store, policies: Follower, name: str) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(policies.run())
        group.create_task(Reporter(store, policies, name, dict).run())


async def _run_operations(store: Store, view: View, runner: Runner, leadership: Leadership) -> None:
    """Runs what is to be run while this controller leads; resumes what another one left.

    Level-triggered: each piece of news only makes the worker look at what is true now.
    """
    running = ""
    news = asyncio.Event()

    async def watch() -> None:
        nonlocal running
        async for listing in store.watch(RUNNING_OPERATION_KEY):
            item = listing.items.get(RUNNING_OPERATION_KEY)
            running = item.value if item else ""
            news.set()

    async def campaign() -> None:
        while True:
            await leadership.changed.wait()
            news.set()

    async def work() -> None:
        while True:
            await heard(news, _WAITING_INTERVAL_S)
            news.clear()
            if not leadership.leads:
                continue
            if running:
                await runner.run(running)
                continue
            # The oldest first; one that finds head-room is under way and stops the others.
            for operation_id, rests in sorted(view.open_operations.items()):
                if rests.step == Step.WAITING:
                    await runner.run(operation_id)

    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        group.create_task(campaign())
        group.create_task(work())


async def _announce(health_servicer: Any, view: View) -> None:
    while view.known() is None:
        await asyncio.sleep(0.02)
    await health_servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    log.info("serving")


async def _until_terminated() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    raise _Terminated


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m control.serve SETTINGS.json")
    settings = read_settings(Path(sys.argv[1]))
    configure_logs(controller=settings.name)
    uvloop.run(serve(settings))


if __name__ == "__main__":
    main()
