"""A unary call whose message never comes ends, and says why. A real server, bytes by hand."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2

from router.errors import abort
from router.receiving import Absent, one_message, one_message_answered_by_many
from tests.attacks.wire import Http2, grpc_headers, grpc_message

WAIT_S = 0.3
INVALID, LATE = "3", "4"


async def _single(request: Any, context: Any) -> Any:
    if isinstance(request, Absent):
        await abort(context, request.refusal)
    return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


async def _many(request: Any, context: Any) -> AsyncIterator[Any]:
    for _ in range(3):
        yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


@pytest_asyncio.fixture
async def address() -> AsyncIterator[str]:
    coded: Any = {
        "request_deserializer": health_pb2.HealthCheckRequest.FromString,
        "response_serializer": health_pb2.HealthCheckResponse.SerializeToString,
    }
    single: Any = one_message(_single, WAIT_S)
    many: Any = one_message_answered_by_many(_many, WAIT_S)
    server = grpc.aio.server()
    handlers = {
        "Single": grpc.stream_unary_rpc_method_handler(single, **coded),
        "Many": grpc.stream_stream_rpc_method_handler(many, **coded),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.Test", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@contextlib.asynccontextmanager
async def connected(address: str) -> AsyncIterator[Http2]:
    host, _, port = address.rpartition(":")
    found = Http2(*await asyncio.open_connection(host, int(port)))
    found.state.initiate_connection()
    await found.flush()
    async with asyncio.TaskGroup() as group:
        listening = group.create_task(found.listen())
        await asyncio.wait_for(found.settled.wait(), 10)
        yield found
        listening.cancel()
        found.writer.transport.abort()


async def status_of(wire: Http2, stream: int, method: str, data: bytes | None, end: bool) -> str:
    wire.state.send_headers(stream, grpc_headers(f"/t.Test/{method}"), end_stream=data is None)
    if data is not None:
        wire.state.send_data(stream, data, end_stream=end)
    await wire.flush()
    assert await wire.ended(stream)
    return wire.headers[stream]["grpc-status"]


@pytest.mark.parametrize("method", ["Single", "Many"])
async def test_a_call_without_its_message_is_answered(address: str, method: str) -> None:
    async with connected(address) as wire:
        part = struct.pack(">BI", 0, 100) + b"a part"
        assert await status_of(wire, 1, method, None, end=True) == INVALID
        assert await status_of(wire, 3, method, b"", end=True) == INVALID
        # Core's own word for a message that is cut off, should it have one.
        assert await status_of(wire, 5, method, part, end=True) != "0"
        assert await status_of(wire, 7, method, b"", end=False) == LATE
        assert await status_of(wire, 9, method, part, end=False) == LATE
        assert await status_of(wire, 11, method, grpc_message(b""), end=True) == "0"
        assert await status_of(wire, 13, method, grpc_message(b"") * 2, end=True) == "0"


async def test_a_server_goes_on_after_many_that_never_said_anything(address: str) -> None:
    """Each was read for in vain, and the read was given up while gRPC had it in hand."""
    async with connected(address) as wire:
        for number in range(50):
            wire.state.send_headers(2 * number + 1, grpc_headers("/t.Test/Single"))
        await wire.flush()
        for number in range(50):
            assert await wire.ended(2 * number + 1)
            assert wire.headers[2 * number + 1]["grpc-status"] == LATE
        assert await status_of(wire, 101, "Single", grpc_message(b""), end=True) == "0"


async def test_a_client_that_goes_while_it_is_waited_for_does_no_harm(address: str) -> None:
    async with connected(address) as wire:
        wire.state.send_headers(1, grpc_headers("/t.Test/Single"))
        wire.state.reset_stream(1)
        await wire.flush()
    async with connected(address) as wire:
        wire.state.send_headers(1, grpc_headers("/t.Test/Single"))
        await wire.flush()
    async with connected(address) as wire:
        assert await status_of(wire, 1, "Single", grpc_message(b""), end=True) == "0"
