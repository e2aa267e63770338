"""Through the edges: lying headers, smuggled requests, odd paths, and from where nobody may."""

from __future__ import annotations

import asyncio
import json
import ssl
import warnings
from typing import Any

import grpc
import pytest
from cellpay.accounts.v1 import accounts_pb2
from cellpay.transfers.v1 import transfers_pb2

from control.cellctl.session import Session
from router.client import Mesh, TlsFiles
from router.identity import (
    ADDRESS_HEADER,
    CERTIFICATE_HEADER,
    address_of_client,
    principal_of,
    spiffe_id,
)
from router.slots import SLOT_HEADER, slot_of_user
from tests.attacks.wire import connected, tls_context
from tests.attacks.world import (
    Shop,
    available,
    call,
    issued,
    new_key,
    new_name,
    opened,
    to_slot,
    usd,
)

pytestmark = pytest.mark.mesh
BALANCE = "cellpay.accounts.v1.AccountsService/GetBalance"
SERVICE = spiffe_id("service", "client")


@pytest.fixture
def files(session: Session) -> TlsFiles:
    return issued(session, "service", "smuggler")


async def said_to(address: str, files: TlsFiles, data: bytes, timeout: float = 15) -> bytes:
    """Bytes to the HTTP edge as they are, and all that comes back until it closes."""
    reader, writer = await connected(address, files, "http/1.1")
    writer.write(data)
    try:
        async with asyncio.timeout(timeout):
            found = await reader.read()
    except (ConnectionError, TimeoutError):
        found = b""
    writer.transport.abort()
    return found


def request(path: str, *headers: str, body: bytes = b"", method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: edge", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def statuses(data: bytes) -> list[int]:
    """Of each answer on a connection."""
    pieces = data.split(b"HTTP/1.1 ")[1:]
    return [int(piece[:3]) for piece in pieces]


async def test_wants_a_request_served_by_a_cell_that_is_not_its_home(
    session: Session, mesh: Mesh, files: TlsFiles
) -> None:
    """x-cellpay-slot lies: the cell that it names reads the request and refuses it."""
    payer, payee = await opened(mesh, 100), await opened(mesh)
    home = slot_of_user(payer)
    body = transfers_pb2.CreateTransferRequest(
        payer_id=payer, payee_id=payee, amount=usd(100), idempotency_key=new_key()
    ).SerializeToString()
    method = "cellpay.transfers.v1.TransfersService/CreateTransfer"
    slot_map = await session.slot_map()
    assert slot_map is not None
    here = slot_map.at(home).cell
    lies = [owned.first for owned in slot_map.ranges if owned.cell != here]
    other = next(n for n in range(1024) if slot_map.at(slot_of_user(f"u{n}")).cell != here)
    async with grpc.aio.secure_channel(
        session.edge_address, files.channel_credentials()
    ) as channel:
        for slot in lies:
            answer = await call(channel, method, body, to_slot(slot))
            assert answer.code != grpc.StatusCode.OK
            assert answer.reason in {"NOT_HOME", "SLOT_MOVED", ""}
        for value in ("-1", "1024", "1e3", "0x10", "5,6", "", " ", "9" * 400):
            answer = await call(channel, method, body, ((SLOT_HEADER, value),))
            assert answer.code != grpc.StatusCode.OK, value
        # The user wins over the slot.
        answer = await call(channel, method, body, (("x-user-id", f"u{other}"), *to_slot(home)))
        assert answer.code != grpc.StatusCode.OK
    assert await available(mesh, payer) + await available(mesh, payee) == 100


async def test_wants_to_be_another_user_by_x_user_id(
    as_mallory: grpc.aio.Channel, victim: Shop, mallory: Shop
) -> None:
    """The header only routes. Whose account it is, the request says; whose it may be, the
    certificate."""
    body = accounts_pb2.GetBalanceRequest(user_id=victim.merchant_id, currency="USD")
    for user in (victim.merchant_id, mallory.merchant_id):
        answer = await call(as_mallory, BALANCE, body.SerializeToString(), (("x-user-id", user),))
        assert answer.code != grpc.StatusCode.OK
        assert not answer.body


@pytest.mark.parametrize(
    "name",
    [
        "x-envoy-retry-on",
        "x-envoy-max-retries",
        "x-envoy-upstream-rq-timeout-ms",
        "x-envoy-upstream-alt-stat-name",
        "x-envoy-force-trace",
        "x-envoy-original-path",
        "x-envoy-internal",
        "x-envoy-expected-rq-timeout-ms",
    ],
)
async def test_wants_envoy_to_do_as_his_header_says(
    session: Session, files: TlsFiles, victim: Shop, name: str
) -> None:
    """Headers that are Envoy's own are taken off what comes from outside."""
    value = {"x-envoy-retry-on": "5xx", "x-envoy-original-path": "/x"}.get(name, "1")
    body = accounts_pb2.GetBalanceRequest(user_id=victim.merchant_id, currency="USD")
    async with grpc.aio.secure_channel(
        session.edge_address, files.channel_credentials()
    ) as channel:
        user = (("x-user-id", victim.merchant_id), (name, value))
        answer = await call(channel, BALANCE, body.SerializeToString(), user)
    # Obeyed, a time-out of 1 ms would end it.
    assert answer.code == grpc.StatusCode.OK


class _Context:
    """What a cell's handler sees of a call."""

    def __init__(self, peer: str, **headers: str) -> None:
        self._peer = peer
        self._headers = tuple((name.replace("_", "-"), value) for name, value in headers.items())

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"peer_spiffe_id": [self._peer.encode()]}

    def invocation_metadata(self) -> Any:
        return self._headers


EDGE = spiffe_id("edge", "edge")


def test_wants_to_lie_about_where_he_calls_from() -> None:
    """Spoofed x-forwarded-for: only what edges added counts, and only edges are believed."""
    shown = f"Hash=1;URI={SERVICE}"
    spoofed = "1.2.3.4, 10.0.0.1, 198.51.100.7"
    through_grpc = _Context(EDGE, x_forwarded_for=spoofed, x_forwarded_client_cert=shown)
    assert address_of_client(through_grpc) == "198.51.100.7"
    through_http = _Context(
        EDGE,
        x_forwarded_for=f"{spoofed}, 127.0.0.1",
        x_forwarded_client_cert=f"{shown},Hash=2;URI={EDGE}",
    )
    assert address_of_client(through_http) == "198.51.100.7"
    assert principal_of(through_http).spiffe_id == SERVICE  # type: ignore[union-attr]
    assert address_of_client(_Context(SERVICE, x_forwarded_for=spoofed)) == ""
    assert address_of_client(_Context(EDGE)) == ""
    for nonsense in ("", "a", "1.2.3.4:80", "::1%lo, x"):
        context = _Context(EDGE, x_forwarded_for=nonsense, x_forwarded_client_cert=shown)
        assert address_of_client(context) == ""
    assert {ADDRESS_HEADER, CERTIFICATE_HEADER} == {
        "x-forwarded-for",
        "x-forwarded-client-cert",
    }


async def test_wants_in_from_a_range_that_is_shut_out(
    session: Session, mesh: Mesh, files: TlsFiles, victim: Shop
) -> None:
    """127.66.0.0/16 is denied by the edges' settings; headers that name another address are not
    heard, and other addresses are served."""
    spoof = "x-forwarded-for: 127.0.0.1"
    get = request(
        f"/v1/users/{victim.merchant_id}/balances/USD", spoof, "connection: close", method="GET"
    )
    for source, expected in (("127.66.3.4", 403), ("127.0.0.1", 200)):
        host, _, port = session.http_address.rpartition(":")
        reader, writer = await asyncio.open_connection(
            host, int(port), ssl=tls_context(files, "http/1.1"), local_addr=(source, 0)
        )
        writer.write(get)
        assert statuses(await asyncio.wait_for(reader.read(), 10)) == [expected]
        writer.close()
        assert await _grpc_status(session, files, source, victim) == (
            "7" if expected == 403 else "0"
        )


async def _grpc_status(session: Session, files: TlsFiles, source: str, victim: Shop) -> str:
    from tests.attacks.wire import Http2, grpc_headers, grpc_message

    host, _, port = session.edge_address.rpartition(":")
    reader, writer = await asyncio.open_connection(
        host, int(port), ssl=tls_context(files, "h2"), local_addr=(source, 0)
    )
    found = Http2(reader, writer)
    found.state.initiate_connection()
    user = ("x-user-id", victim.merchant_id)
    body = accounts_pb2.GetBalanceRequest(user_id=victim.merchant_id, currency="USD")
    found.state.send_headers(1, grpc_headers(f"/{BALANCE}", user, ("x-forwarded-for", "8.8.8.8")))
    found.state.send_data(1, grpc_message(body.SerializeToString()), end_stream=True)
    await found.flush()
    async with asyncio.TaskGroup() as group:
        listening = group.create_task(found.listen())
        await found.ended(1)
        listening.cancel()
    writer.transport.abort()
    return found.headers[1].get("grpc-status", found.headers[1][":status"])


SMUGGLING = (
    ("content-length: 5", "transfer-encoding: chunked"),
    ("transfer-encoding: chunked", "transfer-encoding: identity"),
    ("transfer-encoding: xchunked",),
    ("transfer-encoding : chunked",),
    ("content-length: 5", "content-length: 6"),
    ("content-length: +5",),
    ("content-length: 5\r\n folded: x",),
    ("transfer-encoding: chunked\x00",),
    ("content_length: 5", "content-length: 0"),
    ("x_user_id: mallory", "content-length: 0"),
)


async def test_wants_a_second_request_hidden_in_the_first(
    session: Session, mesh: Mesh, files: TlsFiles
) -> None:
    """Two readings of where a request ends: it is refused, and the hidden one is never served."""
    payer = await opened(mesh, 100)

    async def one(headers: tuple[str, ...]) -> None:
        amount = {"currency": "USD", "minor_units": 1}
        body = json.dumps({"amount": amount, "idempotency_key": new_key()}).encode()
        length = f"content-length: {len(body)}"
        hidden = request(f"/v1/users/{payer}/withdrawals", length, body=body)
        outer = request("/v1/users/nobody/withdrawals", *headers, body=b"0\r\n\r\n" + hidden)
        answers = statuses(await said_to(session.http_address, files, outer))
        # 501: a transfer coding that nobody knows.
        assert answers in ([400], [501]), headers

    await asyncio.gather(*(one(headers) for headers in SMUGGLING))
    assert await available(mesh, payer) == 100


ODD_PATHS = (
    "/cellpay.transfers.v1.ParticipantService/TryBranch",
    "/v1/../cellpay.cell.v1.CellService/DrainSlots",
    "/v1/users/%2e%2e/%2e%2e/cellpay.cell.v1.CellService/DrainSlots",
    "/v1//users//x/../../../grpc.channelz.v1.Channelz/GetServers",
    "/v1/users/x%2f..%2f..%2fcellpay.cell.v1.CellService%2fDrainSlots",
    "/v1\\users\\x\\balances\\USD",
    "/v1/users/x/balances/USD;jsessionid=1",
    "//grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/v1/orders/ord_00/../../cellpay.accounts.v1.AccountsService/Deposit",
    "/%63ellpay.cell.v1.CellService/DrainSlots",
)


async def test_wants_an_inner_method_by_an_odd_path(session: Session, files: TlsFiles) -> None:
    async def one(path: str, *headers: str, body: bytes) -> None:
        length = f"content-length: {len(body)}"
        data = request(path, length, "connection: close", *headers, body=body)
        said = await said_to(session.http_address, files, data)
        assert statuses(said), path
        refused = set(statuses(said)) <= {400, 403, 404, 405, 415}
        # To gRPC, Envoy says the same in a header.
        in_grpc = bool(headers) and b"grpc-status: " in said and b"grpc-status: 0" not in said
        assert refused or in_grpc, (path, said)

    grpc_headers = ("content-type: application/grpc", "te: trailers")
    await asyncio.gather(
        *(one(path, body=b"{}") for path in ODD_PATHS),
        *(one(path, *grpc_headers, body=bytes(5)) for path in ODD_PATHS),
    )


async def test_wants_the_edge_as_his_own_proxy(session: Session, files: TlsFiles) -> None:
    """CONNECT, absolute URLs, upgrades: the edge goes nowhere else."""
    home = "/v1/users/x/balances/USD"
    close = "connection: close"
    found = await asyncio.gather(
        *(
            # A CONNECT has no end, so that it waits for its 15 s (request_timeout).
            said_to(session.http_address, files, data, 3)
            for data in (
                request("127.0.0.1:22", close, method="CONNECT"),
                request("http://127.0.0.1:22/", close, method="GET"),
                request(home, "connection: upgrade, close", "upgrade: h2c", method="GET"),
                request(home, "connection: upgrade, close", "upgrade: websocket", method="GET"),
                request(home, close, method="TRACE"),
                request("*", close, method="OPTIONS"),
            )
        )
    )
    for said in found:
        assert set(statuses(said)) <= {400, 403, 404, 405, 426}, said
        assert b"SSH" not in said


async def test_wants_envoys_own_pages(session: Session, files: TlsFiles) -> None:
    """They are on loopback, and no path of the edges leads there."""
    admin = session.state.address("envoy.admin")
    assert admin.startswith("127.0.0.1:")
    pages = ("/config_dump", "/quitquitquit", "/stats", "/certs")
    asked = [request(page, "connection: close", method="GET") for page in pages]
    found = await asyncio.gather(*(said_to(session.http_address, files, data) for data in asked))
    assert [statuses(said) for said in found] == [[404]] * len(pages)


async def test_wants_to_hide_a_field_from_the_edge(session: Session, files: TlsFiles) -> None:
    """Two names for one thing in JSON: by another case, twice, or beside the path."""
    name = new_name("of-the-path")

    async def posted(body: str) -> bytes:
        length = f"content-length: {len(body)}"
        path = f"/v1/users/{name}/accounts"
        data = request(path, length, "connection: close", body=body.encode())
        return await said_to(session.http_address, files, data)

    rest = '"currency": "USD", "idempotency_key": "k"'
    bad = (
        f'{{"user_id": "mallory", {rest}}}',
        f'{{{rest}}} {{"currency": "EUR"}}',
        f'{{{rest}, "kind": 99999999999999999999}}',
        *(
            f"{{{hidden}, {rest}}}"
            for hidden in (
                '"userId": "m"',
                '"user\\u005fid": "m"',
                "user_id: 'm'",
                '"__proto__": {"user_id": "m"}',
                '"USER_ID": "m"',
            )
        ),
    )
    found = await asyncio.gather(*(posted(body) for body in (*bad, f"{{{rest}}}")))
    assert [statuses(said) for said in found[:-1]] == [[400]] * len(bad)
    assert json.loads(found[-1].partition(b"\r\n\r\n")[2])["user_id"] == name


def test_wants_an_older_tls(session: Session, files: TlsFiles) -> None:
    import socket

    for address in (
        session.http_address,
        session.edge_address,
        session.state.address("cell-a"),
        session.state.address("controller"),
    ):
        host, _, port = address.rpartition(":")
        context = tls_context(files, "h2")
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        with (
            socket.create_connection((host, int(port)), 10) as plain,
            pytest.raises((ssl.SSLError, OSError)),
        ):
            context.wrap_socket(plain, server_hostname="localhost")
