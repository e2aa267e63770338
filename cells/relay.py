"""The relay of a cell: a process of its own for what happens behind messages.

python -m cells.relay SETTINGS.json

Outbox to stream, stream to deliveries, deliveries to merchants. It has a low priority, and may be
killed or switched off at any moment: payments go on without it, and nothing is lost (decision 6).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import structlog
import uvloop

from cells.breakers.behind import BreakingDeliveries, BreakingOutbox
from cells.database import make_engine
from cells.keys.own import OwnKeys
from cells.ledger.worker import Lanes
from cells.notifications.consumer import Consumer
from cells.notifications.secrets import Secrets
from cells.notifications.worker import Webhooks
from cells.policing import Policing
from cells.reading import ReadEngine
from cells.settings import CellSettings, LaneSettings, read_settings
from cells.vault.keystore import open_kms
from router.client import CallPolicy, TlsFiles, connect
from router.logs import configure_logs
from router.metrics import Metrics, tracing_metrics
from router.policies.model import Dependency, Feature, Mode
from router.probes import Probes
from router.signing.model import Algorithm
from router.store.etcd import connect_etcd
from router.tracing import Tracer
from router.tracing.export import open_tracer

log = structlog.get_logger(__name__)

_NICENESS = 19
# Of its session: on a machine that is never idle it still has a tenth of what a cell has, and
# deliveries go on.
_SESSION_NICENESS = 10
# For webhooks under way; a longer one is cut off and sent again by who comes next.
_GRACE_S = 4.0
# The relay, the purge, the webhooks' polls.
_POOL_SIZE = 4


class _Terminated(Exception):
    """SIGTERM or SIGINT came."""


async def relay(settings: CellSettings) -> None:
    """Runs until SIGTERM."""
    tls = TlsFiles(settings.tls.ca, settings.tls.certificate, settings.tls.key)
    name = f"cellpay-{settings.cell}-relay"
    lane_settings = LaneSettings(count=1)
    lane_engine = make_engine(
        settings.database_url, f"{name}-lanes", settings.database,
        pool_size=lane_settings.count, lanes=True,
    )  # fmt: skip
    engine = make_engine(settings.database_url, name, settings.database, pool_size=_POOL_SIZE)
    lanes = Lanes(lane_engine, settings.cell, lane_settings)
    store = connect_etcd(settings.etcd, settings.etcd_tls)
    policing = Policing(store, settings.cell, f"{settings.cell}-relay", settings.redis_url)
    kms = open_kms(settings.vault.keystore)
    own_keys = OwnKeys(store, kms)
    policy = CallPolicy(timeout_s=10.0)
    try:
        async with (
            traced_by(settings) as tracer,
            connect(settings.xds_bootstrap, policy=policy, fallback=tls, tracer=tracer) as mesh,
        ):
            board = policing.board
            outbox = BreakingOutbox(
                engine, settings.cell, settings.nats_url, settings.outbox,
                board.of(Dependency.NATS), settings.nats_tls, tracer,
            )  # fmt: skip
            deliveries = BreakingDeliveries(mesh.notifications, board.of(Dependency.NOTIFICATIONS))
            consumer = Consumer(
                deliveries, settings.cell, settings.nats_url, settings.nats_tls, tracer
            )

            def make_webhooks() -> Webhooks:
                return Webhooks(
                    lanes, ReadEngine(engine), settings.cell, settings.redis_url,
                    settings.webhooks, secrets=Secrets(kms),
                    signer=lambda: own_keys.signer(Algorithm.ED25519),
                    allow_private=settings.development, tracer=tracer,
                )  # fmt: skip

            async with asyncio.TaskGroup() as group:
                for runner in lanes.runners():
                    group.create_task(runner())
                # It has nothing to be ready for: it takes what there is when there is something.
                metrics = Metrics(tracing_metrics(tracer))
                probes = Probes(lambda: True, functools.partial(_page, metrics))
                group.create_task(probes.run(settings.relay_probe_listen))
                group.create_task(policing.run())
                group.create_task(policing.follow_cell())
                group.create_task(own_keys.run())
                group.create_task(outbox.run())
                group.create_task(_consume(consumer, policing))
                group.create_task(_deliver_until_terminated(make_webhooks, policing))
    except* _Terminated:
        log.info("the relay stops")
    finally:
        await store.close()
        await lane_engine.dispose()
        await engine.dispose()


@contextlib.asynccontextmanager
async def traced_by(settings: CellSettings) -> AsyncIterator[Tracer | None]:
    """None where nothing is recorded."""
    with open_tracer(
        settings.tracing, "cellpay-relay", cell=settings.cell, region=settings.region
    ) as tracer:
        yield tracer


async def _page(metrics: Metrics, openmetrics: bool) -> str:
    """Its own use of the machine; how far it is behind the cell's first process tells."""
    return metrics.render(openmetrics=openmetrics)


def _may_deliver(policing: Policing, *dependencies: Dependency) -> bool:
    """Whether notification is on, and none of these is forced open."""
    board = policing.board
    broken = any(board.of(item).forced and board.of(item).is_open() for item in dependencies)
    return policing.mode(Feature.NOTIFICATION) == Mode.ON and not broken


async def _consume(consumer: Consumer, policing: Policing) -> None:
    """Consumes while it may. What it held when it was stopped comes again."""

    def may() -> bool:
        return _may_deliver(policing, Dependency.NATS, Dependency.NOTIFICATIONS)

    while True:
        await policing.until(may)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(consumer.run())
            await policing.until(lambda: not may())
            log.warning("events wait in the stream: notification is deferred")
            task.cancel()


async def _deliver_until_terminated(
    make_webhooks: Callable[[], Webhooks], policing: Policing
) -> None:
    """Delivers while it may. When it stops, and at SIGTERM, webhooks under way may end; the rest
    needs no farewell."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    stopped: list[Webhooks] = []

    async def until_told() -> None:
        await stop.wait()
        for webhooks in stopped:
            webhooks.stop()
        await asyncio.sleep(_GRACE_S)
        raise _Terminated

    def may() -> bool:
        return _may_deliver(policing, Dependency.WEBHOOKS)

    async def stop_when_not(webhooks: Webhooks) -> None:
        await policing.until(lambda: not may())
        log.warning("deliveries wait: notification is deferred")
        webhooks.stop()

    async with asyncio.TaskGroup() as group:
        group.create_task(until_told())
        log.info("relay ready")
        while True:
            await policing.until(may)
            webhooks = make_webhooks()
            stopped[:] = [webhooks]
            watching = group.create_task(stop_when_not(webhooks))
            await webhooks.run()
            watching.cancel()
            if stop.is_set():
                raise _Terminated


def _step_back() -> None:
    """Leaves the processor to payments.

    Where Linux groups processes by session (autogroup), niceness counts within a session only: the
    session that this process leads has a niceness of its own.
    """
    os.nice(_NICENESS)
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(_SESSION_NICENESS))


def main() -> None:
    if sys.flags.optimize:
        raise SystemExit("python -O removes assertions that guard money; run without it")
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m cells.relay SETTINGS.json")
    settings = read_settings(Path(sys.argv[1]))
    configure_logs(cell=settings.cell, process="relay")
    _step_back()
    uvloop.run(relay(settings))


if __name__ == "__main__":
    main()
