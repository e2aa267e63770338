"""The fallback xDS server: the last snapshot, for who starts while every controller is away.

    python -m control.xds.fallback SETTINGS.json

It follows the controllers and keeps what they say on disk, so it can itself start without them. It
decides nothing and knows no etcd. Bootstraps name it last (gRFC A71).
"""

from __future__ import annotations

import asyncio
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog
import uvloop
from grpc_health.v1 import health, health_pb2
from pydantic import TypeAdapter

from control.xds.follower import Follower
from control.xds.saved import KeptSnapshots
from control.xds.server import XdsServer
from control.xds.snapshot import Snapshot
from control.xds.translate import NodeKind
from router.client.tls import TlsFiles
from router.documents import read_document
from router.logs import configure_logs
from router.standard import GenericOnly, add_standard_services, server_options

log = structlog.get_logger(__name__)

_SERVICES = ["envoy.service.discovery.v3.AggregatedDiscoveryService"]
_GRACE_S = 1.0


@dataclass(frozen=True, slots=True)
class FallbackSettings:
    listen: str
    # The controllers' address.
    xds_server: str
    # Where the last snapshots are kept.
    snapshot: str
    tls: TlsFiles


class _Terminated(Exception):
    """SIGTERM or SIGINT came."""


class Kept:
    """The newest snapshot of each kind, in the server and on disk."""

    def __init__(self, xds: XdsServer, path: str) -> None:
        self._xds = xds
        self._file = KeptSnapshots(path, xds)
        self.ready = asyncio.Event()
        self._look()

    def take(self, snapshot: Snapshot) -> None:
        if self._xds.snapshots.get(snapshot.kind) != snapshot:
            self._xds.serve({**self._xds.snapshots, snapshot.kind: snapshot})
            self._file.keep()
            self._look()

    def _look(self) -> None:
        if len(self._xds.snapshots) == len(NodeKind):
            self.ready.set()


async def serve(settings: FallbackSettings) -> None:
    """Runs until SIGTERM."""
    xds = XdsServer()
    kept = Kept(xds, settings.snapshot)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), *server_options()])
    health_servicer = health.aio.HealthServicer()
    xds.add_to_server(GenericOnly(server))
    add_standard_services(server, health_servicer, _SERVICES)
    server.add_secure_port(settings.listen, settings.tls.server_credentials())
    await health_servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    await server.start()
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_until_terminated())
            for kind in NodeKind:
                follower = Follower(
                    settings.xds_server, settings.tls, "xds-fallback", kind, kept.take
                )
                group.create_task(follower.run())
            await kept.ready.wait()
            await health_servicer.set("", health_pb2.HealthCheckResponse.SERVING)
            log.info("serving")
    except* _Terminated:
        log.info("the fallback server stops")
    finally:
        await server.stop(_GRACE_S)


async def _until_terminated() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    raise _Terminated


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m control.xds.fallback SETTINGS.json")
    settings = TypeAdapter(FallbackSettings).validate_json(read_document(Path(sys.argv[1])))
    configure_logs(process="xds-fallback")
    uvloop.run(serve(settings))


if __name__ == "__main__":
    main()
