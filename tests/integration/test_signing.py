"""Signed requests through the real Envoy: what is signed is done once, and nothing else is."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from cellpay.accounts.v1 import accounts_pb2
from cellpay.control.v1 import policies_pb2, policies_pb2_grpc
from cellpay.keys.v1 import answers_pb2, answers_pb2_grpc
from cellpay.keys.v1 import keys_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from control.cellctl.session import Session
from control.mesh import launcher
from router.client import Mesh
from router.errors import details_of
from router.signing.keys import Signer, digest_of, is_signed
from router.signing.model import Algorithm, SignedMessage
from router.signing.rules import canonical_response, header, read_header
from router.slots import slot_of_user
from tests.integration.signed import (
    Got,
    Merchant,
    merchant_of,
    new_signer,
    register,
    registration,
)
from tests.integration.test_api import refused
from tests.integration.test_control import cellctl

pytestmark = pytest.mark.mesh
PATIENCE_S = 60.0
EXAMPLES = Path(__file__).parents[2] / "examples" / "clients"
_CODE = grpc.StatusCode


async def eventually(what: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if answer := await what():
                return answer
            await asyncio.sleep(0.05)


@pytest_asyncio.fixture
async def merchant(session: Session) -> AsyncIterator[Merchant]:
    async with merchant_of(session) as made:
        yield made


@pytest_asyncio.fixture
async def shop(mesh: Mesh) -> str:
    """A merchant of this test alone."""
    shop = f"signs-{uuid.uuid4().hex[:10]}"
    kind = accounts_pb2.Account.KIND_MERCHANT
    await mesh.accounts.CreateAccount(
        accounts_pb2.CreateAccountRequest(user_id=shop, currency="USD", kind=kind)
    )
    return shop


async def key_of(
    mesh: Mesh, merchant: Merchant, shop: str, algorithm: Algorithm = Algorithm.ED25519, **more: Any
) -> Signer:
    """Registered, and known to every cell that may be asked."""
    signer = await register(mesh, shop, algorithm, **more)
    if not more:
        await eventually(lambda: _is_known(merchant, signer, shop))
    return signer


async def _is_known(merchant: Merchant, signer: Signer, shop: str) -> bool:
    got = await merchant.call(signer, "GET", balance_of(shop))
    return got.reason not in {"KEY_UNKNOWN", "REPLAY_NOT_EXCLUDED"}


def balance_of(user_id: str) -> str:
    return f"/v1/users/{user_id}/balances/USD"


def deposit(shop: str, amount: int = 100) -> tuple[str, str, dict[str, Any]]:
    money = {"currency": "USD", "minor_units": str(amount)}
    body = {"amount": money, "idempotency_key": uuid.uuid4().hex}
    return "POST", f"/v1/users/{shop}/deposits", body


async def balance(merchant: Merchant, signer: Signer, shop: str) -> int:
    async def ask() -> Got | None:
        got = await merchant.call(signer, "GET", balance_of(shop))
        return got if got.reason != "REPLAY_NOT_EXCLUDED" else None

    got: Got = await eventually(ask)
    assert got.status == 200, got.body
    return int(got.body["available"]["minor_units"])


@pytest.mark.parametrize("algorithm", list(Algorithm))
async def test_a_signed_request_is_done_once_and_its_answer_is_signed(
    mesh: Mesh, merchant: Merchant, shop: str, algorithm: Algorithm
) -> None:
    signer = await key_of(mesh, merchant, shop, algorithm)
    sent = merchant.sign(signer, *deposit(shop))
    got = await merchant.send(sent)
    assert got.status == 200, got.body
    assert await merchant.is_authentic(sent, got)
    again = await merchant.send(sent)
    assert (again.status, again.reason) == (401, "NONCE_REPLAYED")
    # A refusal is as authentic as an answer, and is none of another request.
    assert await merchant.is_authentic(sent, again)
    assert not await merchant.is_authentic(replace(sent, nonce="x" * 20), got)
    assert not await merchant.is_authentic(sent, replace(got, raw=again.raw))
    assert await balance(merchant, signer, shop) == 100


async def test_what_was_changed_on_the_way_is_refused(
    mesh: Mesh, merchant: Merchant, shop: str
) -> None:
    signer = await key_of(mesh, merchant, shop)
    method, target, body = deposit(shop)
    other = f"/v1/users/{shop}x/deposits"
    lies: list[dict[str, Any]] = [
        {"body": json.dumps(body).replace("100", "999").encode()},
        {"target": other},
        {"target": f"{target}?"},
        {"method": "PUT"},
        {"host": "test.example.com"},
        {"content_type": "text/plain"},
        {"user_id": "somebody"},
    ]
    for lie in lies:
        got = await merchant.send(merchant.sign(signer, method, target, body, **lie))
        assert (got.status, got.reason) == (401, "SIGNATURE_WRONG"), lie
    sent = merchant.sign(signer, method, target, body, headers={"x-user-id": "away"})
    got = await merchant.send(replace(sent, headers={**sent.headers, "x-user-id": "astray"}))
    assert got.reason == "SIGNATURE_WRONG"
    # What the edge tells is not the client's to tell.
    honest = merchant.sign(signer, method, target, body)
    digest = digest_of(signer.algorithm, honest.body).hex()
    told = {"digest": digest, "target": target, "method": method, "host": merchant.host}
    forged = {f"x-cellpay-signed-{name}": value for name, value in told.items()}
    forged["x-cellpay-signed-type"] = "application/json"
    tampered = honest.body.replace(b"100", b"999")
    got = await merchant.send(replace(honest, body=tampered, headers={**honest.headers, **forged}))
    assert got.reason == "SIGNATURE_WRONG"
    # What was refused has used up nothing: the honest one is taken.
    assert (await merchant.send(honest)).status == 200
    assert await balance(merchant, signer, shop) == 100


async def test_a_key_that_is_not_the_merchants_signs_nothing(
    mesh: Mesh, merchant: Merchant, shop: str
) -> None:
    signer = await key_of(mesh, merchant, shop)
    call = deposit(shop)
    thief = new_signer(Algorithm.ED25519)
    thief.key_id = signer.key_id
    assert (await merchant.call(thief, *call)).reason == "SIGNATURE_WRONG"
    thief.key_id = "key_7Z01JDQ6T5R8V3K4M9XWEB2CHN5G"
    assert (await merchant.call(thief, *call)).reason == "KEY_UNKNOWN"
    other = await key_of(mesh, merchant, f"{shop}-other", Algorithm.SM2_SM3)
    other.algorithm, real = Algorithm.RSA_PSS_SHA256, other.algorithm
    confused = merchant.sign(signer, *call)
    text = confused.headers["authorization"].replace("ed25519", real)
    got = await merchant.send(
        replace(confused, headers={**confused.headers, "authorization": text})
    )
    assert got.reason == "ALGORITHM_MISMATCH"
    late = merchant.sign(signer, *call, timestamp=int(time.time()) - 400)
    assert (await merchant.send(late)).reason == "TIMESTAMP_STALE"
    early = merchant.sign(signer, *call, timestamp=int(time.time()) + 3000)
    assert (await merchant.send(early)).reason == "TIMESTAMP_AHEAD"
    garbled = replace(confused, headers={**confused.headers, "authorization": "CELLPAY1 key=x"})
    assert (await merchant.send(garbled)).reason == "SIGNATURE_MALFORMED"


async def test_a_merchant_speaks_for_itself_alone(
    mesh: Mesh, merchant: Merchant, shop: str
) -> None:
    signer = await key_of(mesh, merchant, shop)
    got = await merchant.call(signer, "GET", f"/v1/users/{shop}-other/webhook")
    assert (got.status, got.reason) == (403, "SIGNER_NOT_MERCHANT")
    victim = await key_of(mesh, merchant, f"{shop}-victim", Algorithm.SM2_SM3)
    path = f"/v1/keys/{victim.key_id}:revoke"
    got = await merchant.call(signer, "POST", path, {"idempotency_key": uuid.uuid4().hex})
    assert (got.status, got.reason) == (404, "MERCHANT_KEY_NOT_FOUND")
    assert await _is_known(merchant, victim, f"{shop}-victim")


async def test_at_the_edge_a_key_is_registered_by_a_key_and_only_with_its_proof(
    mesh: Mesh, edge: Mesh, merchant: Merchant, shop: str
) -> None:
    new = new_signer(Algorithm.SM2_SM3)
    await refused(
        edge.keys.RegisterKey(registration(new, shop)),
        _CODE.UNAUTHENTICATED, "SIGNATURE_REQUIRED",
    )  # fmt: skip
    theirs = registration(new, f"{shop}-other")
    theirs.merchant_id = shop
    await refused(mesh.keys.RegisterKey(theirs), _CODE.INVALID_ARGUMENT, "INVALID_REQUEST")
    signer = await key_of(mesh, merchant, shop)
    request = registration(new, shop)
    import base64

    body = {
        "algorithm": request.algorithm,
        "public_key": base64.b64encode(request.public_key).decode(),
        "proof": base64.b64encode(request.proof).decode(),
        "idempotency_key": "second",
    }
    got = await merchant.call(signer, "POST", f"/v1/users/{shop}/keys", body)
    assert got.status == 200, got.body
    new.key_id = got.body["key_id"]
    await eventually(lambda: _is_known(merchant, new, shop))
    # The same key again is the same key.
    again = await mesh.keys.RegisterKey(registration(new, shop))
    assert again.key_id == new.key_id


async def test_keys_rotate_with_overlap_and_a_revoked_one_is_refused_everywhere(
    mesh: Mesh, merchant: Merchant, shop: str
) -> None:
    old = await key_of(mesh, merchant, shop)
    later = Timestamp(seconds=int(time.time()) + 3600)
    early = await key_of(mesh, merchant, shop, Algorithm.RSA_SHA256, start_time=later)

    async def not_yet() -> bool:
        return (await merchant.call(early, *deposit(shop))).reason == "KEY_NOT_YET_VALID"

    await eventually(not_yet)
    new = await key_of(mesh, merchant, shop, Algorithm.RSA_PSS_SHA256)
    for signer in (old, new):
        assert (await merchant.call(signer, *deposit(shop))).status == 200
    # Whoever has the new key ends the old one; for a while it is still good.
    ends = {"expire_time": "2100-01-01T00:00:00Z", "idempotency_key": "e"}
    got = await merchant.call(new, "POST", f"/v1/keys/{old.key_id}:expire", ends)
    assert (got.status, got.body["expire_time"]) == (200, "2100-01-01T00:00:00Z")
    assert (await merchant.call(old, *deposit(shop))).status == 200
    now = Timestamp(seconds=int(time.time()) + 2)
    await mesh.keys.ExpireKey(pb.ExpireKeyRequest(key_id=old.key_id, expire_time=now))

    async def expired() -> bool:
        return (await merchant.call(old, *deposit(shop))).reason == "KEY_EXPIRED"

    await eventually(expired)
    revoke = {"reason": "stolen", "idempotency_key": "r"}
    got = await merchant.call(new, "POST", f"/v1/keys/{new.key_id}:revoke", revoke)
    assert (got.status, got.body["state"]) == (200, "STATE_REVOKED")
    homes = await _users_of_each_cell(shop)

    async def revoked_everywhere() -> bool:
        answers = [await merchant.call(new, "GET", balance_of(user)) for user in homes]
        return all(got.reason == "KEY_REVOKED" for got in answers)

    await eventually(revoked_everywhere)
    request = registration(new, shop)
    await refused(mesh.keys.RegisterKey(request), _CODE.FAILED_PRECONDITION, "MERCHANT_KEY_REVOKED")
    listed = await mesh.keys.ListKeys(pb.ListKeysRequest(merchant_id=shop))
    assert [key.state for key in listed.keys].count(pb.Key.STATE_REVOKED) == 1


async def _users_of_each_cell(prefix: str) -> list[str]:
    """One user in each third of the slots: of each of three cells."""
    found: dict[int, str] = {}
    for number in range(200):
        user = f"{prefix}-{number}"
        found.setdefault(slot_of_user(user) * 3 // 1024, user)
    return list(found.values())


async def test_grpc_is_signed_as_well_and_its_answers_too(
    mesh: Mesh, edge: Mesh, merchant: Merchant, session: Session, shop: str
) -> None:
    signer = await key_of(mesh, merchant, shop)
    request = accounts_pb2.DepositRequest(user_id=shop, idempotency_key=uuid.uuid4().hex)
    request.amount.currency, request.amount.minor_units = "USD", 70
    path = "/cellpay.accounts.v1.AccountsService/Deposit"
    message = SignedMessage(
        "POST", path, session.edge_address, "application/grpc", "", request.SerializeToString()
    )
    nonce = uuid.uuid4().hex
    text = header(signer.sign(message, int(time.time()), nonce))
    slot = ("x-cellpay-slot", str(slot_of_user(shop)))
    metadata = (("authorization", text), slot)
    async with grpc.aio.secure_channel(
        session.edge_address, session.tls("client").channel_credentials()
    ) as channel:
        call: Any = channel.unary_unary(path)
        tampered = accounts_pb2.DepositRequest.FromString(request.SerializeToString())
        tampered.amount.minor_units = 71
        lie = (
            *metadata,
            ("x-cellpay-signed-digest", digest_of(signer.algorithm, message.body).hex()),
        )
        for bad, sent in (
            (tampered, metadata),
            (tampered, lie),
            (request, (metadata[0], slot, ("x-user-id", shop))),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(bad.SerializeToString(), metadata=sent)
            assert caught.value.code() == _CODE.UNAUTHENTICATED
            assert details_of(caught.value).reason == "SIGNATURE_WRONG"
        made = call(message.body, metadata=metadata)
        answer = await made
        trailer = dict(await made.trailing_metadata())["x-cellpay-signature"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(message.body, metadata=metadata)
        assert details_of(caught.value).reason == "NONCE_REPLAYED"
    claims = read_header(trailer)
    listed = await mesh.keys.ListSigningKeys(pb.ListSigningKeysRequest(merchant_id=shop))
    theirs = {key.key_id: key for key in listed.keys}[claims.key_id]
    digest = digest_of(claims.algorithm, answer)
    said = canonical_response(claims, nonce, 200, "application/grpc", digest)
    assert is_signed(claims.algorithm, theirs.public_key, claims.signature, said)


async def test_nobody_has_an_answer_of_his_own_signed(session: Session) -> None:
    for address, code in (
        (session.edge_address, _CODE.PERMISSION_DENIED),
        (session.state.address("cell-a"), _CODE.PERMISSION_DENIED),
    ):
        async with grpc.aio.secure_channel(
            address, session.tls("client").channel_credentials()
        ) as channel:
            stub: Any = answers_pb2_grpc.AnswersServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.SignAnswer(
                    answers_pb2.SignAnswerRequest(), metadata=(("x-cellpay-slot", "5"),)
                )
            assert caught.value.code() == code
