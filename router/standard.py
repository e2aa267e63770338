"""What every server of the mesh offers beside its own services: health, channelz, reflection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import grpc
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection


class GenericOnly:
    """Looks like a grpc.aio.Server to generated code, and leaves out what it registers twice.

    grpc.aio (1.85) waits for each registered method by a future of its own and goes through all of
    them at every call that comes; generic handlers serve the same methods behind one future.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(cast(Any, handlers))

    def add_registered_method_handlers(self, service_name: str, handlers: Any) -> None:
        pass


def add_standard_services(
    server: grpc.aio.Server, health_servicer: Any, services: Sequence[str]
) -> None:
    """`services`: full names of the server's own services, for reflection."""
    generic: Any = GenericOnly(server)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, generic)
    channelz.add_channelz_servicer(generic)
    standard = (health.SERVICE_NAME, "grpc.channelz.v1.Channelz", reflection.SERVICE_NAME)
    reflection.enable_server_reflection([*services, *standard], generic)
