"""Wrong certificates, wrong kinds, and what is not for whoever comes from outside."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from cellpay.accounts.v1 import accounts_pb2
from cellpay.keys.v1 import keys_pb2
from envoy.service.discovery.v3 import ads_pb2, discovery_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc

from control.access.rules import METHODS as CONTROL_METHODS
from control.cellctl.session import Session
from router.access import METHODS, SERVICES, STANDARD, THROUGH_THE_EDGE, Kind
from router.client import Mesh, TlsFiles
from router.edge.http import descriptors
from router.errors import details_of
from router.identity import CERTIFICATE_HEADER
from router.signing.keys import Signer
from router.signing.model import Algorithm
from router.slots import slot_of_user
from tests.attacks.requests import request_for
from tests.attacks.test_idor import asked, things_of
from tests.attacks.world import Shop, call, issued, to_slot
from tests.integration.certificates import of_another_ca, past_its_end
from tests.integration.signed import registration
from tests.make_signing_vectors import private_keys

pytestmark = pytest.mark.mesh
DENIED = grpc.StatusCode.PERMISSION_DENIED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
INTERNAL = sorted(name for name, access in METHODS.items() if not access.is_public)
BALANCE = "cellpay.accounts.v1.AccountsService/GetBalance"
CONTROLLER = "spiffe://cellpay.local/controller/controller-1"


def _methods_of_all_protos() -> Iterator[str]:
    described = descriptor_pb2.FileDescriptorSet.FromString(descriptors().read_bytes())
    for file in described.file:
        for service in file.service:
            yield from (f"{file.package}.{service.name}/{item.name}" for item in service.method)


def test_wants_a_method_that_nobody_thought_of() -> None:
    """Every method of every proto stands in one of the two tables, and nothing else does."""
    control = {
        f"{service}/{method}" for service, methods in CONTROL_METHODS.items() for method in methods
    }
    assert not control & set(METHODS)
    assert control | set(METHODS) == set(_methods_of_all_protos())
    # An edge asks for nothing of its own but that its answers be signed.
    edges = {name for name, access in METHODS.items() if Kind.EDGE in access.kinds}
    assert edges == {"cellpay.keys.v1.AnswersService/SignAnswer"}


async def test_every_service_that_a_server_names_is_guarded(session: Session) -> None:
    """By reflection, of servers that run: what is served is in a table of who may call it."""
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    credentials = session.tls("client").channel_credentials()
    for name, known in (("cell-a", set(SERVICES)), ("controller", set(CONTROL_METHODS))):
        async with grpc.aio.secure_channel(session.state.address(name), credentials) as channel:
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(cast(Any, channel))
            stream = stub.ServerReflectionInfo(timeout=5)
            await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            listed = (await stream.read()).list_services_response.service
            stream.cancel()
        assert {service.name for service in listed} - set(STANDARD) == known


@pytest.mark.parametrize("kind", ["merchant", "service", "operator"])
async def test_wants_what_cells_do_among_themselves(
    session: Session, victim: Shop, kind: str
) -> None:
    """At a cell itself, past the edge: participants, funding, reports, draining."""
    tls = issued(session, kind, "mallory")
    address = session.state.address("cell-a")
    async with grpc.aio.secure_channel(address, tls.channel_credentials()) as channel:
        for method in INTERNAL:
            if kind in METHODS[method].kinds:
                continue
            answer = await asked(channel, method, things_of(victim))
            assert (answer.code, answer.reason) == (DENIED, "CALLER_NOT_ALLOWED"), method


@pytest.mark.parametrize("kind", ["merchant", "cell", "controller", "operator", "edge"])
async def test_wants_the_cells_conversation_through_the_edge(
    session: Session, victim: Shop, kind: str
) -> None:
    """Even a cell's or a controller's own certificate opens nothing of it from outside."""
    tls = issued(session, kind, "mallory")
    async with grpc.aio.secure_channel(session.edge_address, tls.channel_credentials()) as channel:
        for method in INTERNAL:
            # An edge's own: the HTTP listener comes in this way.
            if kind == "edge" and kind in METHODS[method].kinds:
                continue
            answer = await asked(channel, method, things_of(victim))
            assert answer.code == DENIED, method
        if kind not in THROUGH_THE_EDGE:
            answer = await asked(channel, BALANCE, things_of(victim))
            assert (answer.code, answer.reason) == (DENIED, "CALLER_NOT_ALLOWED")


@pytest.mark.parametrize(
    "forged",
    [
        f"URI={CONTROLLER}",
        "URI=spiffe://cellpay.local/service/client",
        "By=x;Hash=y;URI=spiffe://cellpay.local/service/client,URI=spiffe://cellpay.local/edge/edge",
        'Subject="a,b;URI=spiffe://cellpay.local/service/client',
        'URI="spiffe://cellpay.local/service/client,',
        "URI=spiffe://cellpay.local/service/client;",
    ],
)
async def test_wants_to_be_taken_for_another_by_a_header(
    as_mallory: grpc.aio.Channel, victim: Shop, forged: str
) -> None:
    request = request_for(BALANCE, {"user_id": victim.merchant_id, "currency": "USD"})
    metadata = (*to_slot(slot_of_user(victim.merchant_id)), (CERTIFICATE_HEADER, forged))
    answer = await call(as_mallory, BALANCE, request.SerializeToString(), metadata)
    assert (answer.code, answer.reason) == (DENIED, "NOT_YOURS")


async def test_wants_to_be_taken_for_another_at_a_cell_itself(
    session: Session, mallory: Shop, victim: Shop
) -> None:
    """Nobody but an edge may say for whom it speaks."""
    tls = issued(session, "merchant", mallory.merchant_id)
    request = request_for(BALANCE, {"user_id": victim.merchant_id, "currency": "USD"})
    header = (CERTIFICATE_HEADER, "URI=spiffe://cellpay.local/service/client")
    for cell in session.state.cells:
        address = session.state.address(f"cell-{cell}")
        async with grpc.aio.secure_channel(address, tls.channel_credentials()) as channel:
            answer = await call(channel, BALANCE, request.SerializeToString(), (header,))
        assert answer.reason in {"NOT_YOURS", "NOT_HOME", "SLOT_MOVED"}
        assert not answer.body


async def test_wants_to_end_anothers_keys_at_a_cell_itself(
    session: Session, mesh: Mesh, mallory: Shop, victim: Shop
) -> None:
    """A key's ID stands in each signed request; only an edge can say who signed one."""
    signer = Signer("none-yet", Algorithm.ED25519, private_keys()[Algorithm.ED25519])
    key = await mesh.keys.RegisterKey(registration(signer, victim.merchant_id))
    tls = issued(session, "merchant", mallory.merchant_id)
    ends = Timestamp(seconds=int(time.time()) + 1)
    wanted = {
        "RevokeKey": keys_pb2.RevokeKeyRequest(
            key_id=key.key_id, reason="mine", idempotency_key="end-1"
        ),
        "ExpireKey": keys_pb2.ExpireKeyRequest(
            key_id=key.key_id, expire_time=ends, idempotency_key="end-2"
        ),
    }
    for cell in session.state.cells:
        address = session.state.address(f"cell-{cell}")
        async with grpc.aio.secure_channel(address, tls.channel_credentials()) as channel:
            for method, request in wanted.items():
                name = f"cellpay.keys.v1.KeysService/{method}"
                answer = await call(channel, name, request.SerializeToString())
                assert answer.reason in {"SIGNATURE_REQUIRED", "NOT_HOME", "SLOT_MOVED"}, method
    listed = await mesh.keys.ListKeys(keys_pb2.ListKeysRequest(merchant_id=victim.merchant_id))
    (kept,) = [item for item in listed.keys if item.key_id == key.key_id]
    assert kept.state == keys_pb2.Key.STATE_ACTIVE
    assert not kept.HasField("expire_time")


@pytest.fixture(scope="module")
def bad_certificates(
    session: Session, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, TlsFiles]:
    folder = tmp_path_factory.mktemp("bad")
    mesh_tls = session.data / "tls"
    mixed = TlsFiles(
        session.tls("client").ca, session.tls("client").certificate, session.tls("operator").key
    )
    return {
        "of another CA": of_another_ca(mesh_tls, folder),
        "past its end": past_its_end(mesh_tls, folder),
        "a certificate without its key": mixed,
    }


def _servers(session: Session) -> dict[str, str]:
    state = session.state
    return {
        "cell": state.address("cell-a"),
        "controller": state.address("controller"),
        "edge": session.edge_address,
        "http": session.http_address,
    }


async def test_wants_to_be_heard_with_a_bad_certificate(
    session: Session, bad_certificates: dict[str, TlsFiles]
) -> None:
    """TLS itself refuses all of them, before a byte of a request is read."""

    async def one(why: str, name: str, address: str) -> None:
        host, _, port = address.rpartition(":")
        context = ssl.create_default_context(cafile=session.tls("client").ca)
        context.check_hostname = False
        context.set_alpn_protocols(["h2"])
        files = bad_certificates[why]
        if why != "a certificate without its key":
            context.load_cert_chain(files.certificate, files.key)
        else:
            with pytest.raises(ssl.SSLError):
                context.load_cert_chain(files.certificate, files.key)
        heard = b""
        try:
            reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            # TLS 1.3 says no only after the client has finished.
            heard = await asyncio.wait_for(reader.read(1), 10)
            writer.close()
        except (ssl.SSLError, ConnectionError):
            return
        assert heard == b"", f"{name} listened to one {why}"

    await asyncio.gather(
        *(
            one(why, name, address)
            for why in bad_certificates
            for name, address in _servers(session).items()
        )
    )


async def test_wants_to_be_heard_without_tls(session: Session) -> None:
    async def one(address: str) -> None:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        try:
            said = await asyncio.wait_for(reader.read(1024), 10)
        except ConnectionError:
            said = b""
        writer.close()
        assert not said.startswith(b"HTTP/"), said

    await asyncio.gather(*(one(address) for address in _servers(session).values()))


async def test_wants_the_mesh_from_xds_without_a_certificate_that_may(session: Session) -> None:
    """No certificate: no handshake. A merchant's: no resources."""
    address = session.state.address("controller")
    request = discovery_pb2.DiscoveryRequest(
        type_url="type.googleapis.com/envoy.config.cluster.v3.Cluster"
    )
    method = f"{ads_pb2.DESCRIPTOR.services_by_name['AggregatedDiscoveryService'].full_name}/"
    method += "StreamAggregatedResources"
    authority = await asyncio.to_thread(Path(session.tls("client").ca).read_bytes)
    bare = grpc.ssl_channel_credentials(authority)
    merchants = issued(session, "merchant", "mallory").channel_credentials()
    for credentials, code in ((bare, UNAVAILABLE), (merchants, DENIED)):
        async with grpc.aio.secure_channel(address, credentials) as channel:
            answer = await call(channel, method, request.SerializeToString(), timeout=10)
        assert (answer.code, answer.body) == (code, b"")


async def test_wants_to_watch_who_talks_to_whom(session: Session) -> None:
    for kind in ("merchant", "service", "cell"):
        tls = issued(session, kind, "mallory")
        for name in ("cell-a", "controller"):
            address = session.state.address(name)
            async with grpc.aio.secure_channel(address, tls.channel_credentials()) as channel:
                stub: Any = channelz_pb2_grpc.ChannelzStub(cast(Any, channel))
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await stub.GetServers(channelz_pb2.GetServersRequest(), timeout=5)
            assert details_of(refused.value).reason == "CALLER_NOT_ALLOWED"


async def test_wants_a_method_that_does_not_exist(as_mallory: grpc.aio.Channel) -> None:
    for method in (
        "cellpay.accounts.v1.AccountsService/Mint",
        "cellpay.accounts.v1.AccountsService/",
        "cellpay.accounts.v9.AccountsService/GetBalance",
        "grpc.channelz.v1.Channelz/GetServers",
        "/",
        "x" * 8000,
    ):
        answer = await call(as_mallory, method, b"", to_slot(1))
        assert answer.code in {
            grpc.StatusCode.UNIMPLEMENTED,
            DENIED,
            grpc.StatusCode.INVALID_ARGUMENT,
            # 400 from Envoy, for what is no path.
            grpc.StatusCode.INTERNAL,
        }, (method[:60], answer)


async def test_wants_to_hold_all_threads_with_open_streams(session: Session, mesh: Mesh) -> None:
    """Reflection and health streams that are never ended: hundreds cost a cell no thread."""
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    credentials = session.tls("client").channel_credentials()
    address = session.state.address("cell-a")
    async with grpc.aio.secure_channel(address, credentials) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(cast(Any, channel))
        streams = [stub.ServerReflectionInfo(timeout=30) for _ in range(200)]
        for stream in streams:
            await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answers = await asyncio.gather(*(stream.read() for stream in streams))
        assert all(answer.list_services_response.service for answer in answers)
        for stream in streams:
            stream.cancel()
    request = accounts_pb2.GetBalanceRequest(user_id="nobody-at-all", currency="USD")
    with pytest.raises(grpc.aio.AioRpcError) as missing:
        await mesh.accounts.GetBalance(request)
    assert missing.value.code() == grpc.StatusCode.NOT_FOUND


async def test_wants_to_send_the_principal_that_only_an_edge_may(session: Session) -> None:
    """A stolen edge certificate at a cell, with no client behind it, speaks for nobody."""
    tls = issued(session, "edge", "stolen")
    address = session.state.address("cell-a")
    request = request_for(BALANCE, {"user_id": "u", "currency": "USD"}).SerializeToString()
    async with grpc.aio.secure_channel(address, tls.channel_credentials()) as channel:
        shown = ("URI=spiffe://cellpay.local/edge/edge", "URI=spiffe://elsewhere/service/a", "")
        found = [
            await call(channel, BALANCE, request, ((CERTIFICATE_HEADER, name),)) for name in shown
        ]
        found.append(await call(channel, BALANCE, request))
    assert {answer.reason for answer in found} == {"CALLER_NOT_ALLOWED"}
