"""To make it slow or full: too much, too big, too deep, too slow, too often; bounded in each."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from cellpay.accounts.v1 import accounts_pb2
from cellpay.payments.v1 import payments_pb2

from control.cellctl.session import Session
from control.xds.translate import NodeKind, Topology, translate
from router.access import STREAMS
from router.client import Mesh, TlsFiles
from router.slotmap import SlotMap
from router.slots import slot_of_user
from router.standard import MESSAGE_BYTES_MAX, server_options
from tests.attacks.wire import (
    CONTINUATION,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    connected,
    frame,
    grpc_headers,
    grpc_message,
    http2,
)
from tests.attacks.world import (
    Shop,
    available,
    call,
    edge_as,
    issued,
    opened,
    ordered,
    to_slot,
)

pytestmark = pytest.mark.mesh
BALANCE = "cellpay.accounts.v1.AccountsService/GetBalance"
ENHANCE_YOUR_CALM = 11
# What a refused attack may leave behind in a server's memory.
_GROWTH_BYTES_MAX = 96 * 1024 * 1024


@pytest.fixture
def files(session: Session) -> TlsFiles:
    return issued(session, "service", "flooder")


@pytest.fixture
def servers(session: Session) -> dict[str, str]:
    state = session.state
    return {
        "cell": state.address("cell-a"),
        "controller": state.address("controller"),
        "edge": session.edge_address,
        "http": session.http_address,
    }


Serving = Callable[[], Awaitable[None]]


@pytest_asyncio.fixture
async def still_serving(mesh: Mesh, edge: Mesh, victim: Shop) -> AsyncIterator[Serving]:
    """Others go on: asked at the end of each attack, by the SDK and by the edge."""
    request = accounts_pb2.GetBalanceRequest(user_id=victim.merchant_id, currency="USD")

    async def ask() -> None:
        for way in (mesh, edge):
            assert (await way.accounts.GetBalance(request)).available.currency == "USD"

    yield ask
    await ask()


def resident(session: Session, name: str) -> int:
    pid = session.state.processes[name].identity.pid
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def request_of(user_id: str) -> bytes:
    request = accounts_pb2.GetBalanceRequest(user_id=user_id, currency="USD")
    return request.SerializeToString()


@pytest.mark.parametrize("name", ["cell", "controller", "edge", "http"])
async def test_wants_work_done_for_streams_that_he_resets_at_once(
    servers: dict[str, str], files: TlsFiles, still_serving: Serving, name: str
) -> None:
    """Rapid reset (CVE-2023-44487)."""
    async with http2(servers[name], files) as attack:
        headers = grpc_headers(f"/{BALANCE}", *to_slot(1))
        for _ in range(600):
            if attack.closed.is_set():
                break
            stream = attack.state.get_next_available_stream_id()
            attack.state.send_headers(stream, headers)
            attack.state.reset_stream(stream)
            await attack.flush()
        if name in ("edge", "http"):
            assert await attack.gone(), "Envoy keeps a connection that only resets"
        await still_serving()


@pytest.mark.parametrize("name", ["cell", "controller"])
async def test_wants_to_keep_a_server_busy_with_pings(
    servers: dict[str, str], files: TlsFiles, name: str
) -> None:
    async with http2(servers[name], files) as attack:
        for _ in range(50):
            if attack.goaway is not None or attack.closed.is_set():
                break
            await attack.raw(frame(PING, 0, 0, b"12345678"))
            await asyncio.sleep(0.01)
        assert await attack.gone()
        assert attack.goaway == ENHANCE_YOUR_CALM


@pytest.mark.parametrize("name", ["cell", "controller", "edge", "http"])
async def test_wants_headers_that_never_end(
    session: Session,
    servers: dict[str, str],
    files: TlsFiles,
    still_serving: Serving,
    name: str,
) -> None:
    """A flood of CONTINUATION (CVE-2024-27316 and its kin): 16 MiB of headers, without an end."""
    process = {"cell": "cell-a", "controller": "controller"}.get(name, "envoy")
    before = resident(session, process)
    async with http2(servers[name], files) as attack:
        # Literal headers without indexing: 0x00, name's length, name, value's length, value.
        block = (b"\x00\x01a\x7f\x81\x7e" + b"v" * 16_383)[:16_384]
        await attack.raw(frame(HEADERS, 0, 1, block))
        for _ in range(1024):
            if attack.closed.is_set() or attack.resets:
                break
            await attack.raw(frame(CONTINUATION, 0, 1, block))
            await asyncio.sleep(0)
        assert await attack.ended(1)
    await still_serving()
    assert resident(session, process) - before < _GROWTH_BYTES_MAX


@pytest.mark.parametrize("name", ["cell", "controller", "edge", "http"])
async def test_wants_small_frames_to_become_big_headers(
    servers: dict[str, str], files: TlsFiles, still_serving: Serving, name: str
) -> None:
    """An HPACK bomb: one header of 3 KiB in the table, named a thousand times by a byte each."""
    async with http2(servers[name], files) as attack:
        headers = grpc_headers(f"/{BALANCE}", *[("x-a", "b" * 3000)] * 1000)
        attack.state.send_headers(1, headers, end_stream=True)
        await attack.flush()
        assert await attack.ended(1)
        said = attack.headers.get(1, {})
        assert said.get(":status") != "200" or said.get("grpc-status") not in (None, "0")
    await still_serving()


async def test_wants_a_thousand_headers_or_one_that_is_huge(
    servers: dict[str, str], files: TlsFiles, still_serving: Serving
) -> None:
    for name in ("edge", "http"):
        for more in ([(f"x-{n}", "v") for n in range(200)], [("x-a", "b" * 40_000)]):
            async with http2(servers[name], files) as attack:
                attack.state.send_headers(1, grpc_headers(f"/{BALANCE}", *more), end_stream=True)
                await attack.flush()
                assert await attack.ended(1)
                said = attack.headers.get(1, {})
                assert 1 in attack.resets or said.get(":status") in {"431", "400"}, (name, said)
    await still_serving()


async def test_wants_a_small_message_to_unpack_to_a_gigabyte(
    session: Session, servers: dict[str, str], files: TlsFiles, still_serving: Serving
) -> None:
    """Servers take nothing that is compressed, so there is nothing to unpack."""
    bomb = gzip.compress(bytes(192 * 1024 * 1024), 9, mtime=0)
    assert len(bomb) < MESSAGE_BYTES_MAX
    for name, process in (("cell", "cell-a"), ("controller", "controller"), ("edge", "cell-a")):
        before = resident(session, process)
        async with http2(servers[name], files) as attack:
            headers = grpc_headers(f"/{BALANCE}", ("grpc-encoding", "gzip"), *to_slot(1))
            attack.state.send_headers(1, headers)
            await attack.flush()
            body = memoryview(grpc_message(bomb, compressed=True))
            while body and 1 not in attack.resets and not attack.closed.is_set():
                room = min(attack.state.local_flow_control_window(1), 16_384, len(body))
                if "grpc-status" in attack.headers.get(1, {}):
                    break
                if room:
                    attack.state.send_data(1, bytes(body[:room]), end_stream=room == len(body))
                    body = body[room:]
                await attack.flush()
                await asyncio.sleep(0)
            assert await attack.ended(1)
            assert attack.headers.get(1, {}).get("grpc-status") == "12", attack.headers
        assert resident(session, process) - before < _GROWTH_BYTES_MAX
    await still_serving()


async def test_wants_a_message_of_more_than_a_server_takes(
    servers: dict[str, str], files: TlsFiles, still_serving: Serving
) -> None:
    big = request_of("x" * (MESSAGE_BYTES_MAX + 1))
    for name in ("cell", "controller", "edge"):
        async with grpc.aio.secure_channel(servers[name], files.channel_credentials()) as channel:
            answer = await call(channel, BALANCE, big, to_slot(1))
        assert answer.code in {
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            # A server that does not know the method does not read the message.
            grpc.StatusCode.UNIMPLEMENTED,
        }, (name, answer)
    await still_serving()


async def test_wants_a_parser_to_run_out_of_stack(
    servers: dict[str, str], files: TlsFiles, still_serving: Serving
) -> None:
    """Groups in groups, messages in messages, arrays in arrays: a hundred thousand deep."""
    deep = b"\x9b\x06" * 100_000 + b"\x9c\x06" * 100_000
    nested = b""
    for _ in range(3000):
        nested = b"\x12" + _varint(len(nested)) + nested
    async with grpc.aio.secure_channel(servers["cell"], files.channel_credentials()) as channel:
        for data in (deep, nested, b"\x9b\x06" * 300_000):
            for method in (BALANCE, "cellpay.accounts.v1.AccountsService/Deposit"):
                answer = await call(channel, method, data, to_slot(1))
                assert answer.code == grpc.StatusCode.INVALID_ARGUMENT, answer
    for body in ("[" * 30_000, '{"amount":' * 6_000, json.dumps({"amount": [[[]]] * 1000})):
        status, _ = await http1(servers["http"], files, "/v1/users/u/deposits", body.encode())
        assert status == 400
    await still_serving()


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


async def http1(
    address: str, files: TlsFiles, path: str, body: bytes, *headers: str
) -> tuple[int, bytes]:
    reader, writer = await connected(address, files, "http/1.1")
    lines = [f"POST {path} HTTP/1.1", "host: x", "connection: close", *headers]
    lines += ["content-type: application/json", f"content-length: {len(body)}", "", ""]
    writer.write("\r\n".join(lines).encode() + body)
    said = await asyncio.wait_for(reader.read(), 15)
    writer.close()
    return int(said.split()[1]) if said else 0, said


async def test_wants_a_small_body_to_unpack_at_the_http_edge(
    session: Session, servers: dict[str, str], files: TlsFiles, still_serving: Serving
) -> None:
    bomb = gzip.compress(b"[" * 32 * 1024 * 1024, 9, mtime=0)
    before = resident(session, "envoy")
    path = "/v1/users/u/deposits"
    status, _ = await http1(servers["http"], files, path, bomb, "content-encoding: gzip")
    assert status == 400
    assert resident(session, "envoy") - before < _GROWTH_BYTES_MAX
    await still_serving()


async def test_wants_to_hold_connections_by_being_slow(
    servers: dict[str, str], files: TlsFiles, still_serving: Serving
) -> None:
    """No handshake, half a handshake, no request, half a request: each is ended in seconds."""

    async def silent(address: str, first: bytes) -> None:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(first)
        assert await _ends(reader), f"{address} waits for a handshake"
        writer.close()

    async def slow(address: str, protocol: str, first: bytes) -> None:
        reader, writer = await connected(address, files, protocol)
        writer.write(first)
        assert await _ends(reader), f"{address} waits for the rest of {first[:20]!r}"
        writer.close()

    half = b"\x16\x03\x01\x02\x00\x01\x00"
    headers = frame(HEADERS, 0, 1, b"\x82")
    await asyncio.gather(
        *(silent(address, first) for address in servers.values() for first in (b"", half)),
        slow(servers["cell"], "h2", b""),
        slow(servers["cell"], "h2", PREFACE),
        slow(servers["controller"], "h2", PREFACE[:10]),
        slow(
            servers["http"], "http/1.1", b"POST /v1/users/u/deposits HTTP/1.1\r\nhost: x\r\nx-a: "
        ),
        slow(servers["edge"], "h2", PREFACE + SETTINGS + headers),
        slow(servers["http"], "h2", PREFACE + SETTINGS + headers),
    )
    await still_serving()


async def _ends(reader: asyncio.StreamReader) -> bool:
    """Whether the server ends it, or at least the one stream that is open."""
    try:
        async with asyncio.timeout(12):
            while data := await reader.read(65_536):
                # Status lines, RST_STREAM (3) and GOAWAY (7) end it as well.
                if b"HTTP/1.1 408" in data or any(kind in (3, 7) for kind in _kinds(data)):
                    return True
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def _kinds(data: bytes) -> list[int]:
    """The types of whole frames in it."""
    kinds = []
    while len(data) >= 9:
        kinds.append(data[3])
        data = data[9 + int.from_bytes(data[:3]) :]
    return kinds


async def test_wants_more_streams_at_once_than_anybody_needs(
    servers: dict[str, str], files: TlsFiles, still_serving: Serving
) -> None:
    """The edge says 100 and means it; a cell says 4096, for the edges and the SDK are few."""
    async with http2(servers["edge"], files, settle=False) as attack:
        headers = grpc_headers(f"/{BALANCE}", *to_slot(slot_of_user("u")))
        # Past what the library would send: before SETTINGS came, nothing is forbidden yet.
        attack.state.remote_settings.max_concurrent_streams = 10_000
        for number in range(300):
            attack.state.send_headers(2 * number + 1, headers)
        await attack.flush()
        async with asyncio.timeout(10):
            while len(attack.resets) < 200 and not attack.closed.is_set():
                await asyncio.sleep(0.01)
    await still_serving()


# Envoy's bound of requests to a cell at a time is 1,024, of all its clients together.
_CONNECTIONS, _STREAMS = 11, 100


@pytest.mark.parametrize("what", ["nothing", "nothing and no end", "half a message"])
async def test_wants_every_place_at_a_cell_for_himself(
    session: Session, mesh: Mesh, files: TlsFiles, what: str
) -> None:
    """Unary calls without their message, each of which would hold a place for a minute."""
    payer, shop = await opened(mesh, 1000), await opened(mesh, kind=2)
    headers = grpc_headers(f"/{BALANCE}", *to_slot(slot_of_user(payer)))
    async with contextlib.AsyncExitStack() as held:
        wires = [
            await held.enter_async_context(http2(session.edge_address, files))
            for _ in range(_CONNECTIONS)
        ]
        for wire in wires:
            for number in range(_STREAMS):
                stream = 2 * number + 1
                wire.state.send_headers(stream, headers, end_stream=what == "nothing")
                if what == "half a message":
                    wire.state.send_data(stream, b"\x00\x00\x00\x00\x10half")
            await wire.flush()
        # What is asked after them comes after them.
        for wire in wires:
            wire.state.ping(b"all here")
            await wire.flush()
        heard: list[grpc.StatusCode] = []
        async with edge_as(session, "service", "honest") as honest:
            for _ in range(10):
                try:
                    order = await ordered(honest, payer, shop, 10)
                    await honest.payments.Pay(payments_pb2.PayRequest(order_id=order.order_id))
                except grpc.aio.AioRpcError as error:
                    heard.append(error.code())
        ends = [await wire.ended(2 * _STREAMS - 1, timeout=25) for wire in wires]
        answers = [wire.headers.get(1, {}) for wire in wires]
    assert not heard
    assert all(ends)
    if what == "nothing":
        assert {answer.get("grpc-status") for answer in answers} == {"3"}, answers
    assert await available(mesh, payer) == 900


async def test_wants_a_stream_that_the_edge_would_wait_for(
    session: Session, files: TlsFiles
) -> None:
    async with grpc.aio.secure_channel(
        session.edge_address, files.channel_credentials()
    ) as channel:
        for method in STREAMS:
            stream = channel.stream_stream(f"/{method}")(metadata=to_slot(1), timeout=10)  # type: ignore[var-annotated]
            assert await stream.code() == grpc.StatusCode.PERMISSION_DENIED


def test_wants_a_place_at_a_cell_for_ever() -> None:
    """By a request without a deadline, or with one of days, whose message never comes: the edge
    ends it after a minute, which is too long to wait for here."""
    topology = Topology(SlotMap.even(["a"]), {"a": ["127.0.0.1:1"]})
    (routes,) = translate(topology, NodeKind.EDGE).routes.values()
    found: Any = routes
    for route in found.virtual_hosts[0].routes:
        limit = route.route.max_stream_duration
        assert 0 < limit.max_stream_duration.seconds <= 60
        assert 0 < limit.grpc_timeout_header_max.seconds <= 60


def test_bounds_of_every_server_are_set() -> None:
    """Of what a test cannot wait for: ages and idle times."""
    options = dict(server_options())
    assert options["grpc.max_connection_age_ms"] <= 3_600_000
    assert options["grpc.max_connection_age_grace_ms"] <= 300_000
    assert options["grpc.max_connection_idle_ms"] <= 3_600_000
    assert options["grpc.keepalive_timeout_ms"] <= 30_000
