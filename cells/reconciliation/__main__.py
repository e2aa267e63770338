"""The reconciler: a process of its own.

    python -m cells.reconciliation SETTINGS.json

It may be killed at any moment and started twice: what it has done is in the database, behind the
version of each run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import structlog
import uvloop

from cells.database import make_engine
from cells.reconciliation.posting import MeshPoster, Poster
from cells.reconciliation.run import Reconciler
from cells.reconciliation.settings import ReconciliationSettings, read_settings
from cells.reconciliation.store import RunStore
from cells.reconciliation.worker import Worker
from cells.settings import DatabaseSettings
from router.client import CallPolicy, connect
from router.logs import configure_logs

log = structlog.get_logger(__name__)

# Payments go first on a shared machine.
_NICENESS = 10
# An export of millions of rows takes minutes and locks nothing.
_TIMEOUT_MS = 1_800_000


class _Terminated(Exception):
    """SIGTERM or SIGINT came."""


async def reconcile(settings: ReconciliationSettings) -> None:
    """Runs until SIGTERM."""
    database = DatabaseSettings(
        idle_in_transaction_timeout_ms=_TIMEOUT_MS,
        transaction_timeout_ms=_TIMEOUT_MS,
        statement_timeout_ms=_TIMEOUT_MS,
    )
    engine = make_engine(settings.database_url, f"cellpay-{settings.name}", database, pool_size=2)
    try:
        async with contextlib.AsyncExitStack() as stack:
            poster: Poster | None = None
            if settings.xds_bootstrap:
                mesh = await stack.enter_async_context(
                    connect(
                        settings.xds_bootstrap, policy=CallPolicy(timeout_s=30.0),
                        fallback=settings.tls,
                    )
                )  # fmt: skip
                poster = MeshPoster(mesh)
            store = RunStore(engine)
            worker = Worker(settings, store, Reconciler(settings, store, poster))
            async with asyncio.TaskGroup() as group:
                group.create_task(_until_terminated())
                group.create_task(worker.run())
                log.info("reconciler ready", channels=len(settings.channels))
    except* _Terminated:
        log.info("the reconciler stops")
    finally:
        await engine.dispose()


async def _until_terminated() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    raise _Terminated


def main() -> None:
    if sys.flags.optimize:
        raise SystemExit("python -O removes assertions that guard money; run without it")
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m cells.reconciliation SETTINGS.json")
    settings = read_settings(Path(sys.argv[1]))
    configure_logs(process=settings.name)
    os.nice(_NICENESS)
    uvloop.run(reconcile(settings))


if __name__ == "__main__":
    main()
