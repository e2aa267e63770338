"""What every server of the mesh has beside its own services: bounds, health, channelz, reflection.

The bounds are against whoever has a certificate and means ill, or is broken: big, compressed or
slow messages, too many headers, streams or pings, connections that are kept and not used.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import grpc
from grpc_channelz.v1 import channelz, channelz_pb2_grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from router.access import STANDARD, Access
from router.errors import Refusal, abort
from router.identity import caller_of
from router.receiving import Absent, one_message, one_message_answered_by_many

MESSAGE_BYTES_MAX = 1024 * 1024
HEADER_BYTES_MAX = 16 * 1024
_STREAMS_MAX = 4096
# Handshake and HTTP/2 settings; a TLS handshake takes milliseconds.
_HANDSHAKE_MS = 5_000
# Our clients ping every 10 s when they wait for an answer (router/client/mesh.py); who pings more
# than twice as often without sending anything is sent away with ENHANCE_YOUR_CALM.
_PING_INTERVAL_MIN_MS = 5_000
_PING_STRIKES_MAX = 2
# A peer that vanished without a word.
_KEEPALIVE_MS, _KEEPALIVE_TIMEOUT_MS = 60_000, 20_000
# A certificate that was taken back is worth nothing after this, and clients spread anew over
# processes. The grace is for calls and streams under way.
_AGE_MS, _AGE_GRACE_MS = 3_600_000, 120_000
_IDLE_MS = 900_000
# Bit 0: as it is. gRPC stops unpacking at the bound above; what is never begun costs nothing.
_UNCOMPRESSED = 1


def server_options(*, message_bytes_max: int = MESSAGE_BYTES_MAX) -> list[tuple[str, Any]]:
    """Bounds of a server that others than its own process can reach."""
    return [
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.max_metadata_size", HEADER_BYTES_MAX),
        ("grpc.absolute_max_metadata_size", HEADER_BYTES_MAX),
        ("grpc.max_concurrent_streams", _STREAMS_MAX),
        ("grpc.compression_enabled_algorithms_bitset", _UNCOMPRESSED),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _PING_INTERVAL_MIN_MS),
        ("grpc.http2.max_ping_strikes", _PING_STRIKES_MAX),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.max_connection_age_ms", _AGE_MS),
        ("grpc.max_connection_age_grace_ms", _AGE_GRACE_MS),
        ("grpc.max_connection_idle_ms", _IDLE_MS),
    ]


class GenericOnly:
    """Looks like a grpc.aio.Server to generated code, and leaves out what it registers twice.

    grpc.aio (1.85) waits for each registered method by a future of its own and goes through all of
    them at every call that comes; generic handlers serve the same methods behind one future.
    Services of `access` are for those callers alone; it must name each.
    """

    def __init__(self, server: grpc.aio.Server, access: Mapping[str, Access] = STANDARD) -> None:
        self._server = server
        self._access = access

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Generated code registers twice; the handlers below are the guarded ones."""

    def add_registered_method_handlers(self, service_name: str, handlers: Any) -> None:
        access = self._access[service_name]
        guarded = {name: _for(access, cast(Any, item)) for name, item in handlers.items()}
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service_name, guarded),)
        )


def add_standard_services(
    server: grpc.aio.Server, health_servicer: Any, services: Sequence[str]
) -> None:
    """`services`: full names of the server's own services, for reflection."""
    generic: Any = GenericOnly(server)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, generic)
    # The asynchronous ones by name: their `add_…` functions would take the others here, of which
    # each open stream holds one of the few threads of the process.
    channelz_pb2_grpc.add_ChannelzServicer_to_server(channelz.aio.ChannelzServicer(), generic)
    standard = (health.SERVICE_NAME, "grpc.channelz.v1.Channelz", reflection.SERVICE_NAME)
    add_reflection: Any = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
    add_reflection(reflection.aio.ReflectionServicer([*services, *standard]), generic)


def _for(access: Access, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
    """The same method for callers of these kinds; one message is waited for within a bound."""
    asks, answers = _word(handler.request_streaming), _word(handler.response_streaming)
    behaviour = getattr(handler, f"{asks}_{answers}")

    async def streaming(request: Any, context: Any) -> Any:
        await _authorise(context, access)
        async for answer in behaviour(request, context):
            yield answer

    async def single(request: Any, context: Any) -> Any:
        await _authorise(context, access)
        if isinstance(request, Absent):
            await abort(context, request.refusal)
        return await behaviour(request, context)

    made: Any = streaming if inspect.isasyncgenfunction(behaviour) else single
    if not handler.request_streaming:
        made = one_message(single) if made is single else one_message_answered_by_many(streaming)
    make = getattr(grpc, f"stream_{answers}_rpc_method_handler")
    found: grpc.RpcMethodHandler[Any, Any] = make(
        made,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return found


def _word(streaming: bool) -> str:
    return "stream" if streaming else "unary"


async def _authorise(context: Any, access: Access) -> None:
    caller = caller_of(context)
    if caller is None or caller.kind not in access.kinds:
        await abort(
            context,
            Refusal(
                grpc.StatusCode.PERMISSION_DENIED,
                "CALLER_NOT_ALLOWED",
                f"only {' or '.join(sorted(access.kinds))} may call this",
                metadata={"caller": caller.spiffe_id if caller else ""},
            ),
        )
