"""The relay of a cell: a process of its own for what happens behind messages.

python -m cells.relay SETTINGS.json

Outbox to stream, stream to deliveries, deliveries to merchants. It has a low priority, and may be
killed or switched off at any moment: payments go on without it, and nothing is lost (decision 6).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import structlog
import uvloop

from cells.database import make_engine
from cells.ledger.worker import Lanes
from cells.notifications.consumer import Consumer
from cells.notifications.worker import Webhooks
from cells.outbox.worker import OutboxRelay
from cells.reading import ReadEngine
from cells.settings import CellSettings, LaneSettings, read_settings
from router.client import CallPolicy, TlsFiles, connect
from router.logs import configure_logs

log = structlog.get_logger(__name__)

_NICENESS = 19
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
    policy = CallPolicy(timeout_s=10.0)
    try:
        async with connect(settings.xds_bootstrap, policy=policy, fallback=tls) as mesh:
            webhooks = Webhooks(
                lanes, ReadEngine(engine), settings.cell, settings.redis_url, settings.webhooks,
                allow_private=settings.development,
            )  # fmt: skip
            outbox = OutboxRelay(engine, settings.cell, settings.nats_url, settings.outbox)
            consumer = Consumer(mesh.notifications, settings.cell, settings.nats_url)
            async with asyncio.TaskGroup() as group:
                for runner in lanes.runners():
                    group.create_task(runner())
                group.create_task(outbox.run())
                group.create_task(consumer.run())
                group.create_task(_run_until_terminated(webhooks))
    except* _Terminated:
        log.info("the relay stops")
    finally:
        await lane_engine.dispose()
        await engine.dispose()


async def _run_until_terminated(webhooks: Webhooks) -> None:
    """At SIGTERM webhooks under way may end; the rest needs no farewell."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    async def until_told() -> None:
        await stop.wait()
        webhooks.stop()
        await asyncio.sleep(_GRACE_S)
        raise _Terminated

    async with asyncio.TaskGroup() as group:
        group.create_task(until_told())
        log.info("relay ready")
        await webhooks.run()
        raise _Terminated


def main() -> None:
    if sys.flags.optimize:
        raise SystemExit("python -O removes assertions that guard money; run without it")
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m cells.relay SETTINGS.json")
    settings = read_settings(Path(sys.argv[1]))
    configure_logs(cell=settings.cell, process="relay")
    os.nice(_NICENESS)
    uvloop.run(relay(settings))


if __name__ == "__main__":
    main()
