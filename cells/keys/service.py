"""KeysService: proto to model and back; AnswersService, for Envoy."""

from __future__ import annotations

import asyncio
import base64
import time
from typing import Any

import grpc
import structlog
from cellpay.keys.v1 import answers_pb2, answers_pb2_grpc, keys_pb2_grpc
from cellpay.keys.v1 import keys_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import select

from cells.answers import resource_of
from cells.keys.model import KeyEvent, KeyState, MerchantKey
from cells.keys.own import OwnKeys
from cells.keys.publishing import Publishing
from cells.keys.rules import KEYS_EVER_MAX, KEYS_MAX, EndKey, RegisterKey, key_id_of
from cells.keys.tables import MERCHANT_KEYS, merchant_keys
from cells.ledger.model import Command
from cells.ledger.worker import Lanes
from cells.reading import ReadEngine, fetch
from cells.requests import Checker, idempotency_of, timeout_of, timestamp
from cells.vault.keyring import NO_TIME
from router.errors import Refusal
from router.identity import caller_of, is_edge, merchant_of
from router.ids import Kind, slot_of_id
from router.signing.call import SIGNER
from router.signing.gate import SIGNATURE_HEADER, signed_answer
from router.signing.keys import BadKey, check_key, digest_of, is_signed
from router.signing.model import Algorithm, Answer
from router.signing.rules import Malformed, canonical_proof
from router.slots import slot_of_user

log = structlog.get_logger(__name__)

_STATES_OUT = {KeyState.ACTIVE: pb.Key.STATE_ACTIVE, KeyState.REVOKED: pb.Key.STATE_REVOKED}
_PUBLIC_BYTES_MAX = 2048
_UNTIL_MAX_S = 4_102_444_800


def key_message(row: MerchantKey) -> pb.Key:
    return pb.Key(
        key_id=row.key_id,
        merchant_id=row.merchant_id,
        algorithm=row.algorithm,
        public_key=base64.b64decode(row.public),
        state=_STATES_OUT[KeyState(row.state)],
        start_time=Timestamp(seconds=row.not_before),
        expire_time=Timestamp(seconds=row.not_after) if row.not_after else None,
        create_time=timestamp(row.created_at),
        reason=row.reason,
    )


class KeysService(keys_pb2_grpc.KeysServiceServicer):
    def __init__(
        self, lanes: Lanes, engine: ReadEngine, publishing: Publishing, own: OwnKeys
    ) -> None:
        self._lanes = lanes
        self._engine = engine
        self._publishing = publishing
        self._own = own
        self._registering = asyncio.Lock()

    async def RegisterKey(self, request: pb.RegisterKeyRequest, context: Any) -> pb.Key:
        _require_signer(context)
        check = Checker()
        merchant_id = check.name("merchant_id", request.merchant_id)
        algorithm = _algorithm(check, request.algorithm)
        starts = _seconds(check, "start_time", request, at_least=0)
        ends = _seconds(check, "expire_time", request, at_least=int(time.time()) + 1)
        if ends and starts >= ends:
            check.wrong("expire_time", "must be after start_time")
        idempotency = idempotency_of(check, "RegisterKey", request)
        if algorithm is not None:
            _check_proof(check, algorithm, request)
        check.done()
        assert algorithm is not None
        slot = slot_of_user(merchant_id)
        public = base64.b64encode(request.public_key).decode("ascii")
        row = MerchantKey(
            slot, key_id_of(slot, merchant_id, algorithm, public), merchant_id, algorithm, public,
            KeyState.ACTIVE, starts, ends, "", 1, NO_TIME, NO_TIME,
        )  # fmt: skip
        # One after the other: many at once would all find room.
        async with self._registering:
            await self._require_room(row)
            return await self._submit(RegisterKey(row, idempotency), context)

    async def _require_room(self, row: MerchantKey) -> None:
        now = int(time.time())
        known = await self._keys_of(row.slot, row.merchant_id)
        if any(key.key_id == row.key_id for key in known):
            return
        if len(known) >= KEYS_EVER_MAX:
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "TOO_MANY_KEYS_EVER",
                f"a merchant registers {KEYS_EVER_MAX} keys at the most, ended ones included",
            )
        live = [
            key for key in known if key.state == KeyState.ACTIVE and not 0 < key.not_after <= now
        ]
        if len(live) >= KEYS_MAX:
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "TOO_MANY_KEYS",
                f"a merchant has {KEYS_MAX} keys at the most: revoke one",
            )

    async def ListKeys(self, request: pb.ListKeysRequest, context: Any) -> pb.ListKeysResponse:
        check = Checker()
        merchant_id = check.name("merchant_id", request.merchant_id)
        check.done()
        rows = await self._keys_of(slot_of_user(merchant_id), merchant_id)
        return pb.ListKeysResponse(keys=[key_message(row) for row in rows])

    async def _keys_of(self, slot: int, merchant_id: str) -> list[MerchantKey]:
        statement = (
            select(*(merchant_keys.c[name] for name in MERCHANT_KEYS.fields))
            .where(merchant_keys.c.slot == slot, merchant_keys.c.merchant_id == merchant_id)
            .order_by(merchant_keys.c.created_at, merchant_keys.c.key_id)
        )
        return [MerchantKey(*row) for row in await fetch(self._engine, statement)]

    async def ExpireKey(self, request: pb.ExpireKeyRequest, context: Any) -> pb.Key:
        _require_signer(context)
        check = Checker()
        key_id = check.identifier("key_id", request.key_id, Kind.KEY)
        ends = _seconds(check, "expire_time", request, at_least=int(time.time()))
        if not ends and not check.violations:
            check.wrong("expire_time", "must be set")
        idempotency = idempotency_of(check, "ExpireKey", request)
        check.done()
        command = EndKey(
            slot_of_id(key_id), key_id, KeyEvent.EXPIRE, SIGNER.get(), "", ends, idempotency
        )
        return await self._submit(command, context)

    async def RevokeKey(self, request: pb.RevokeKeyRequest, context: Any) -> pb.Key:
        _require_signer(context)
        check = Checker()
        key_id = check.identifier("key_id", request.key_id, Kind.KEY)
        reason = check.text("reason", request.reason)
        idempotency = idempotency_of(check, "RevokeKey", request)
        check.done()
        command = EndKey(
            slot_of_id(key_id), key_id, KeyEvent.REVOKE, SIGNER.get(), reason, 0, idempotency
        )
        return await self._submit(command, context)

    async def _submit(self, command: Command, context: Any) -> pb.Key:
        """A key's change is answered once every cell can know it; a repeat publishes again."""
        row: MerchantKey = resource_of(await self._lanes.submit(command, timeout_of(context)))
        caller = caller_of(context)
        log.info(
            "a merchant's key was changed",
            key_id=row.key_id, merchant_id=row.merchant_id, state=row.state, version=row.version,
            signer=SIGNER.get(), caller=caller.spiffe_id if caller else "", audit=True,
        )  # fmt: skip
        await self._publishing.publish(row)
        return key_message(row)

    async def ListSigningKeys(
        self, request: pb.ListSigningKeysRequest, context: Any
    ) -> pb.ListSigningKeysResponse:
        check = Checker()
        check.name("merchant_id", request.merchant_id)
        check.done()
        return pb.ListSigningKeysResponse(
            keys=[
                pb.SigningKey(
                    key_id=key.key_id,
                    algorithm=key.signer.algorithm,
                    public_key=key.signer.public,
                )
                for key in self._own.listed()
            ]
        )


class AnswersService(answers_pb2_grpc.AnswersServiceServicer):
    """Signs what Envoy is about to answer. slot.lua lets nobody else call it from the edge."""

    def __init__(self, own: OwnKeys) -> None:
        self._own = own

    async def SignAnswer(
        self, request: answers_pb2.SignAnswerRequest, context: Any
    ) -> answers_pb2.SignAnswerResponse:
        told = {
            key.removeprefix("x-cellpay-answer-"): value
            for key, value in context.invocation_metadata()
            if key.startswith("x-cellpay-answer-") and isinstance(value, str)
        }
        try:
            signer = self._own.signer(Algorithm(told["algorithm"]))
            digest = bytes.fromhex(told["digest"])
            status = int(told["status"])
            if signer is not None and len(digest) == 32:
                answer = Answer(told["authorization"], status, told.get("type", ""), digest)
                text = signed_answer(signer, answer, int(time.time()))
                await context.send_initial_metadata(((SIGNATURE_HEADER, text),))
        except (KeyError, ValueError, Malformed):
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_ANSWER", "this is no answer of ours"
            ) from None
        return answers_pb2.SignAnswerResponse()


def _algorithm(check: Checker, text: str) -> Algorithm | None:
    if text in set(Algorithm):
        return Algorithm(text)
    check.wrong("algorithm", f"must be one of {', '.join(Algorithm)}")
    return None


def _seconds(check: Checker, field: str, request: Any, *, at_least: int) -> int:
    """0 when it is not set."""
    if not request.HasField(field):
        return 0
    seconds: int = getattr(request, field).seconds
    if not max(at_least, 1) <= seconds <= _UNTIL_MAX_S:
        check.wrong(field, "lies in the past, or too far away")
    return seconds


def _check_proof(check: Checker, algorithm: Algorithm, request: pb.RegisterKeyRequest) -> None:
    """That it is a good key, and that whoever registers it can sign with it."""
    public = request.public_key
    try:
        if len(public) > _PUBLIC_BYTES_MAX:
            raise BadKey(f"it has {len(public)} bytes; at most {_PUBLIC_BYTES_MAX}")
        check_key(algorithm, public)
    except BadKey as fault:
        check.wrong("public_key", str(fault))
        return
    try:
        said = canonical_proof(algorithm, request.merchant_id, digest_of(algorithm, public))
    except Malformed as fault:
        check.wrong("merchant_id", str(fault))
        return
    if not is_signed(algorithm, public, request.proof, said):
        check.wrong("proof", "is not this key's signature of its registration")


def _require_signer(context: Any) -> None:
    """Whoever comes in at the edge, and a merchant anywhere, changes keys with a key that is there
    already: a certificate says whose keys he may change to nobody but the edge."""
    if SIGNER.get():
        return
    if merchant_of(context) or is_edge(caller_of(context)):
        raise Refusal(
            grpc.StatusCode.UNAUTHENTICATED,
            "SIGNATURE_REQUIRED",
            "keys are changed by requests that a key of the merchant has signed",
        )
