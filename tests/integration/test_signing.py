"""Signed requests through the real Envoy: what is signed is done once, and nothing else is."""

from __future__ import annotations

import asyncio
import base64
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
from cellpay.control.v1 import policies_pb2
from cellpay.keys.v1 import answers_pb2, answers_pb2_grpc
from cellpay.keys.v1 import keys_pb2 as pb
from cellpay.money.v1.money_pb2 import Money
from google.protobuf.timestamp_pb2 import Timestamp

from control.cellctl.session import Session
from control.mesh import launcher
from router.client import Mesh
from router.errors import details_of
from router.ids import account_id
from router.signing.keys import Signer, digest_of, is_signed
from router.signing.model import Algorithm, SignedMessage
from router.signing.rules import canonical_response, header, read_header
from router.slots import slot_of_user
from tests.integration.signed import (
    Got,
    Merchant,
    Sent,
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
# What a shop has to withdraw from.
FUNDS = 10_000


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
    await mesh.accounts.OpenAccount(
        accounts_pb2.OpenAccountRequest(
            user_id=shop, currency="USD", kind=kind, idempotency_key="open"
        )
    )
    await mesh.accounts.Deposit(
        accounts_pb2.DepositRequest(
            user_id=shop, amount=Money(currency="USD", minor_units=FUNDS), idempotency_key="funds"
        )
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


def withdrawal(shop: str, amount: int = 100) -> tuple[str, str, dict[str, Any]]:
    money = {"currency": "USD", "minor_units": str(amount)}
    body = {"amount": money, "idempotency_key": uuid.uuid4().hex}
    return "POST", f"/v1/users/{shop}/withdrawals", body


async def taken(merchant: Merchant, signer: Signer, shop: str) -> int:
    """What has been withdrawn."""

    async def ask() -> Got | None:
        got = await merchant.call(signer, "GET", balance_of(shop))
        return got if got.reason != "REPLAY_NOT_EXCLUDED" else None

    got: Got = await eventually(ask)
    assert got.status == 200, got.body
    return FUNDS - int(got.body["available"]["minor_units"])


async def taken_inside(mesh: Mesh, shop: str) -> int:
    """As seen from inside, where nobody waits for a young memory of nonces."""
    request = accounts_pb2.GetBalanceRequest(user_id=shop, currency="USD")
    return FUNDS - int((await mesh.accounts.GetBalance(request)).available.minor_units)


@pytest.mark.parametrize("algorithm", list(Algorithm))
async def test_a_signed_request_is_done_once_and_its_answer_is_signed(
    mesh: Mesh, merchant: Merchant, shop: str, algorithm: Algorithm
) -> None:
    signer = await key_of(mesh, merchant, shop, algorithm)
    sent = merchant.sign(signer, *withdrawal(shop))
    got = await merchant.send(sent)
    assert got.status == 200, got.body
    assert await merchant.is_authentic(sent, got)
    again = await merchant.send(sent)
    assert (again.status, again.reason) == (401, "NONCE_REPLAYED")
    # A refusal is as authentic as an answer, and is none of another request.
    assert await merchant.is_authentic(sent, again)
    other = merchant.sign(signer, *withdrawal(shop), nonce=sent.nonce)
    assert not await merchant.is_authentic(other, got)
    assert not await merchant.is_authentic(sent, replace(got, raw=again.raw))
    assert await taken(merchant, signer, shop) == 100


async def test_wants_his_own_answer_to_be_taken_for_anothers(
    mesh: Mesh, merchant: Merchant, shop: str
) -> None:
    """Who holds a request back asks for something of his own under the same nonce."""
    ours = await key_of(mesh, merchant, shop, Algorithm.ED25519)
    his = await key_of(mesh, merchant, f"{shop}-mallory")
    held_back = merchant.sign(ours, *withdrawal(shop))
    target = balance_of(f"{shop}-mallory")
    asked = merchant.sign(his, "GET", target, nonce=held_back.nonce)
    got = await merchant.send(asked)
    assert await merchant.is_authentic(asked, got)
    assert not await merchant.is_authentic(held_back, got)


async def test_what_was_changed_on_the_way_is_refused(
    mesh: Mesh, merchant: Merchant, shop: str
) -> None:
    signer = await key_of(mesh, merchant, shop)
    method, target, body = withdrawal(shop)
    other = f"/v1/users/{shop}x/withdrawals"
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
    assert await taken(merchant, signer, shop) == 100


async def test_a_key_that_is_not_the_merchants_signs_nothing(
    mesh: Mesh, merchant: Merchant, shop: str
) -> None:
    signer = await key_of(mesh, merchant, shop)
    call = withdrawal(shop)
    thief = new_signer(Algorithm.ED25519)
    thief.key_id = signer.key_id
    assert (await merchant.call(thief, *call)).reason == "SIGNATURE_WRONG"
    thief.key_id = "key_7Z01JDQ6T5R8V3K4M9XWEB2CHN5G"
    assert (await merchant.call(thief, *call)).reason == "KEY_UNKNOWN"
    confused = merchant.sign(signer, *call)
    text = confused.headers["authorization"].replace("ed25519", "sm2-sm3")
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
    # The certificate is a service's, which may ask for anybody's: the signature narrows that.
    account = account_id(f"{shop}-victim", "USD")
    got = await merchant.call(signer, "GET", f"/v1/accounts/{account}")
    assert (got.status, got.reason) == (404, "NOT_FOUND")
    got = await merchant.call(signer, "GET", balance_of(f"{shop}-victim"))
    assert (got.status, got.reason) == (403, "NOT_YOURS")
    money = {"currency": "USD", "minor_units": "100"}
    body = {"amount": money, "idempotency_key": uuid.uuid4().hex}
    got = await merchant.call(signer, "POST", f"/v1/users/{shop}/deposits", body)
    assert (got.status, got.reason) == (403, "CALLER_NOT_ALLOWED")
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
        return (await merchant.call(early, *withdrawal(shop))).reason == "KEY_NOT_YET_VALID"

    await eventually(not_yet)
    new = await key_of(mesh, merchant, shop, Algorithm.RSA_PSS_SHA256)
    for signer in (old, new):
        assert (await merchant.call(signer, *withdrawal(shop))).status == 200
    # Whoever has the new key ends the old one; for a while it is still good.
    ends = {"expire_time": "2100-01-01T00:00:00Z", "idempotency_key": "e"}
    got = await merchant.call(new, "POST", f"/v1/keys/{old.key_id}:expire", ends)
    assert (got.status, got.body["expire_time"]) == (200, "2100-01-01T00:00:00Z")
    assert (await merchant.call(old, *withdrawal(shop))).status == 200
    now = Timestamp(seconds=int(time.time()) + 2)
    await mesh.keys.ExpireKey(pb.ExpireKeyRequest(key_id=old.key_id, expire_time=now))

    async def expired() -> bool:
        return (await merchant.call(old, *withdrawal(shop))).reason == "KEY_EXPIRED"

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
    request = accounts_pb2.WithdrawRequest(user_id=shop, idempotency_key=uuid.uuid4().hex)
    request.amount.currency, request.amount.minor_units = "USD", 70
    path = "/cellpay.accounts.v1.AccountsService/Withdraw"
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
        tampered = accounts_pb2.WithdrawRequest.FromString(request.SerializeToString())
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
    request_digest = digest_of(claims.algorithm, dict(metadata)["authorization"].encode())
    said = canonical_response(claims, request_digest, 200, "application/grpc", digest)
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


async def _policy(session: Session, **fields: Any) -> None:
    async with session.policies() as stub:
        request = policies_pb2.SetPolicyRequest(
            kind="signatures", name="test", document=json.dumps(fields), reason="a test"
        )
        await stub.SetPolicy(request)


@pytest_asyncio.fixture
async def required(session: Session, shop: str) -> AsyncIterator[None]:
    """The shop's requests must be signed."""
    await _policy(session, mode="required", merchants=[shop])
    yield
    async with session.policies() as stub:
        request = policies_pb2.DeletePolicyRequest(kind="signatures", name="test", reason="ends")
        await stub.DeletePolicy(request)


@pytest.mark.usefixtures("required")
async def test_where_a_policy_asks_for_a_signature_none_is_refused_at_the_edge_alone(
    mesh: Mesh, edge: Mesh, merchant: Merchant, shop: str
) -> None:
    async def is_refused() -> bool:
        got = await merchant.send(Sent("GET", balance_of(shop), {}, b"", ""))
        assert got.status in {200, 401}, got.body
        return got.reason == "SIGNATURE_REQUIRED"

    await eventually(is_refused)
    request = accounts_pb2.GetBalanceRequest(user_id=shop, currency="USD")
    await refused(edge.accounts.GetBalance(request), _CODE.UNAUTHENTICATED, "SIGNATURE_REQUIRED")
    signer = await key_of(mesh, merchant, shop)
    assert await taken(merchant, signer, shop) == 0
    # Who is inside has a certificate of its own, and other merchants are not asked.
    assert (await mesh.accounts.GetBalance(request)).available.minor_units == FUNDS
    got = await merchant.send(Sent("GET", balance_of(f"{shop}-x"), {}, b"", ""))
    assert got.reason == "ACCOUNT_NOT_FOUND"


async def test_what_was_done_before_a_failover_is_not_done_again_at_the_new_home(
    mesh: Mesh, merchant: Merchant, session: Session, shop: str
) -> None:
    signer = await key_of(mesh, merchant, shop)
    sent = merchant.sign(signer, *withdrawal(shop))
    assert (await merchant.send(sent)).status == 200
    read = merchant.sign(signer, "GET", balance_of(shop))
    assert (await merchant.send(read)).status == 200
    slot = slot_of_user(shop)
    slot_map = await session.slot_map()
    assert slot_map is not None
    home = slot_map.at(slot).cell
    away = next(cell for cell in session.state.cells if cell != home)
    failed = await asyncio.to_thread(
        cellctl, session, "failover", home, "--to", away, "--reason", "replay"
    )
    assert failed.returncode == 0, failed.stderr
    try:
        for overheard in (sent, read):
            got = await merchant.send(overheard)
            # The new home has never seen it, and cannot say that nobody has.
            assert (got.status, got.reason) in {
                (409, "REPLAY_NOT_EXCLUDED"), (401, "NONCE_REPLAYED")
            }  # fmt: skip
        # The honest merchant waits for nobody: what is new is done at once.
        new = merchant.sign(signer, *withdrawal(shop, 11))
        assert (await merchant.send(new)).status == 200
        assert (await merchant.send(new)).reason == "NONCE_REPLAYED"
        assert await taken_inside(mesh, shop) == 111
    finally:
        back = await asyncio.to_thread(cellctl, session, "restore", home, "--reason", "back")
        assert back.returncode == 0, back.stderr
    got = await merchant.send(sent)
    assert got.reason in {"REPLAY_NOT_EXCLUDED", "NONCE_REPLAYED"}


async def test_without_redis_a_request_is_done_and_its_copy_learns_nothing(
    mesh: Mesh, merchant: Merchant, session: Session, shop: str
) -> None:
    signer = await key_of(mesh, merchant, shop)
    slot_map = await session.slot_map()
    assert slot_map is not None
    redis = f"redis-{slot_map.at(slot_of_user(shop)).cell}"
    sent = merchant.sign(signer, *withdrawal(shop))
    before = merchant.sign(signer, *withdrawal(shop, 7))
    assert (await merchant.send(before)).status == 200
    await asyncio.to_thread(launcher.kill, session.data, redis)
    try:
        assert (await merchant.send(sent)).status == 200
        for overheard in (sent, before):
            got = await merchant.send(overheard)
            assert (got.status, got.reason) == (409, "REPLAY_NOT_EXCLUDED")
    finally:
        await asyncio.to_thread(launcher.start, session.data, redis)
    # It has forgotten both nonces, and knows that it has.
    for overheard in (sent, before):
        got = await merchant.send(overheard)
        assert got.reason in {"REPLAY_NOT_EXCLUDED", "NONCE_REPLAYED"}
    assert await taken_inside(mesh, shop) == 107


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


_MAKE = {
    "rsa-pss-sha256": ("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"),
    "sm2-sm3": ("genpkey", "-algorithm", "SM2"),
    "ed25519": ("genpkey", "-algorithm", "ED25519"),
}


@pytest.mark.parametrize(
    ("client", "algorithm"),
    [("python", "rsa-pss-sha256"), ("python", "ed25519")]
    + [("curl", algorithm) for algorithm in _MAKE],
)
async def test_the_sample_clients_sign_what_we_take_and_know_our_answers(
    mesh: Mesh, merchant: Merchant, session: Session, shop: str, tmp_path: Path,
    client: str, algorithm: str,
) -> None:  # fmt: skip
    private = tmp_path / "private.pem"
    await asyncio.to_thread(_openssl, *_MAKE[algorithm], "-out", str(private))
    files = session.tls("client")
    url = f"https://{session.http_address}"

    async def run(*arguments: str, key_id: str = "") -> tuple[int, Any]:
        if client == "python":
            command = [sys.executable, str(EXAMPLES / "python_client.py"), "--url", url]
            command += ["--tls-ca", files.ca, "--tls-cert", files.certificate]
            command += ["--tls-key", files.key, "--merchant", shop, "--key-id", key_id]
            command += ["--private", str(private), *arguments]
            environment = {"PATH": os.environ["PATH"]}
        else:
            command = ["sh", str(EXAMPLES / "curl.sh"), *arguments]
            environment = {
                "PATH": os.environ["PATH"], "CELLPAY_URL": url, "MERCHANT": shop,
                "KEY_ID": key_id, "PRIVATE_KEY": str(private), "ALGORITHM": algorithm,
                "TLS_CA": files.ca, "TLS_CERT": files.certificate, "TLS_KEY": files.key,
            }  # fmt: skip
        done = await asyncio.to_thread(
            subprocess.run, command, env=environment, capture_output=True, text=True, check=False
        )
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    _, proved = await run("proof")
    key = await mesh.keys.RegisterKey(
        pb.RegisterKeyRequest(
            merchant_id=shop, algorithm=proved["algorithm"],
            public_key=base64.b64decode(proved["public_key"]),
            proof=base64.b64decode(proved["proof"]),
        )
    )  # fmt: skip
    method, target, body = withdrawal(shop, 42)

    async def done() -> Any:
        code, answer = await run(method, target, json.dumps(body), key_id=key.key_id)
        # Until each cell has heard of the key.
        assert code == 0 or "KEY_UNKNOWN" in json.dumps(answer), answer
        return answer if code == 0 else None

    assert (await eventually(done))["amount"]["minor_units"] == "42"
