"""Before a cell's services: is this request signed by the merchant that it names, and is it new?

Looked at where it is executed, at the home of its slot, and only of callers at the edge: whoever is
inside the mesh has a certificate of its own. The edge tells, in headers that only it may send, what
it has seen before it made gRPC of it; the digest of the body among them (docs/decisions/0015).

A nonce is taken last, and given back when the call ended in UNAVAILABLE: then Envoy tries again,
with the same signature.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from enum import Enum
from typing import Any, Protocol

import grpc
import structlog

from router.errors import Refusal, Violation, bad_request
from router.home import SlotFinder
from router.identity import caller_of, is_edge, merchant_of
from router.policies.model import SignatureMode, Signatures
from router.signing.call import IN_DOUBT, RECEIVED, SIGNER
from router.signing.keys import Signer, digest_of, verify
from router.signing.model import (
    Algorithm,
    Answer,
    Authentic,
    Claims,
    Key,
    Reason,
    Refused,
    SignedMessage,
)
from router.signing.rules import SCHEME, Malformed, header_of_checked
from router.signing.wanted import Wanted, wanted_of

log = structlog.get_logger(__name__)

Behaviour = Callable[[Any, Any], Awaitable[Any]]
# What http.lua and slot.lua tell of a signed request as it came in.
TOLD = "x-cellpay-signed-"
SIGNATURE_HEADER = "x-cellpay-signature"
# Told to everybody: without it nobody could know an answer, a refusal among them, for ours.
PUBLIC = frozenset({"cellpay.keys.v1.KeysService/ListSigningKeys"})
# Fields of a request that say whose it is.
_NAMES = ("merchant_id", "user_id", "payer_id")


class Novelty(Enum):
    NEW = "new"
    REPLAYED = "replayed"
    # The memory of nonces is away, or younger than the request: nobody knows.
    UNKNOWN = "unknown"


class Nonces(Protocol):
    """The memory of nonces, at the home of a slot. Answers within a bound, whatever happens."""

    async def take(self, slot: int, signed: Authentic, ahead_max_s: int) -> Novelty:
        """Atomic: of two takers of a nonce one hears NEW."""
        ...

    async def give_back(self, signed: Authentic) -> None:
        """It was not executed. What fails here costs a caller one more signature."""
        ...


class _Method:
    """What is wanted of a method now, where its handler finds it."""

    __slots__ = ("keyed", "names", "wanted")

    def __init__(self, request_type: Any) -> None:
        fields = set(request_type.fields_by_name)
        self.names = tuple(name for name in _NAMES if name in fields)
        # Its effect is one, however often it comes.
        self.keyed = "idempotency_key" in fields
        self.wanted = Wanted()

    def mode(self, request: Any, context: Any) -> SignatureMode:
        """By whom the request names, and who makes it: what a merchant's signature is wanted of
        is wanted of whoever has stolen his certificate."""
        wanted = self.wanted
        if not wanted.merchants:
            return wanted.mode
        names = {getattr(request, name) for name in self.names}
        names.add(merchant_of(context))
        return wanted.of(frozenset(names))


class SignatureGate:
    def __init__(
        self,
        keys: Callable[[], Mapping[str, Key]],
        nonces: Nonces,
        signer: Callable[[Algorithm], Signer | None],
        clock: Callable[[], float] = time.time,
        hosts: Collection[str] = (),
    ) -> None:
        """`signer`: our key that answers a request signed by this algorithm, if there is one.
        `hosts`: in lower case, without port: what a request may have been signed for; empty: any.
        """
        self._hosts = frozenset(hosts)
        self._keys = keys
        self._nonces = nonces
        self._signer = signer
        self._clock = clock
        self._methods: dict[str, _Method] = {}
        self._documents: Sequence[Signatures] = ()

    def apply(self, documents: Sequence[Signatures]) -> None:
        """In force for the next call of every method."""
        self._documents = documents
        for name, method in self._methods.items():
            method.wanted = wanted_of(name, documents)

    def wrap(
        self, name: str, request_type: Any, finder: SlotFinder, behaviour: Behaviour
    ) -> Behaviour:
        """`name`: service and method, without the first slash. `finder`: the slot of a request."""
        if name in PUBLIC:
            return behaviour
        # Several servers of a process offer the same methods.
        method = self._methods.setdefault(name, _Method(request_type))
        method.wanted = wanted_of(name, self._documents)

        async def looked_at(request: Any, context: Any) -> Any:
            if not _claims_signature(context):
                self._require_none(method, request, context)
                return await behaviour(request, context)
            told = _told(context)
            text = told.get("authorization", "")
            mode = method.mode(request, context)
            if mode == SignatureMode.OFF or not is_edge(caller_of(context)):
                return await behaviour(request, context)
            signed = self._verified(name, method, request, told, text)
            try:
                slot = finder(request)
            except ValueError as error:
                raise bad_request([Violation("home", str(error))]) from None
            novelty = await self._novelty(method, slot, signed)
            return await self._execute(behaviour, request, context, signed, novelty, told)

        return looked_at

    def require(self, name: str, context: Any) -> None:
        """For streams, whose many messages have no signature: refused where one is required."""
        if wanted_of(name, self._documents).mode == SignatureMode.REQUIRED and is_edge(
            caller_of(context)
        ):
            raise _unsigned("a stream cannot be signed")

    def _require_none(self, method: _Method, request: Any, context: Any) -> None:
        wanted = method.wanted
        if wanted.mode != SignatureMode.REQUIRED and not wanted.merchants:
            return
        required = method.mode(request, context) == SignatureMode.REQUIRED
        if required and is_edge(caller_of(context)):
            raise _unsigned("this request must be signed")

    def _verified(
        self, name: str, method: _Method, request: Any, told: Mapping[str, str], text: str
    ) -> Authentic:
        now = int(self._clock())
        try:
            message = _message(name, told)
        except Malformed as fault:
            raise _refusal(Refused(Reason.MALFORMED, str(fault)), now) from None
        answer = verify(message, text, self._keys(), now, method.wanted.window)
        if isinstance(answer, Refused):
            raise _refusal(answer, now)
        if self._hosts and _name_of(message.host) not in self._hosts:
            raise _refusal(
                Refused(Reason.OTHER_HOST, "the request was signed for another host"), now
            )
        merchant = getattr(request, "merchant_id", "") if "merchant_id" in method.names else ""
        if merchant and merchant != answer.key.merchant_id:
            raise Refusal(
                grpc.StatusCode.PERMISSION_DENIED,
                "SIGNER_NOT_MERCHANT",
                "the request is of another merchant than the one that signed it",
                metadata={"key_id": answer.key.key_id},
            )
        return answer

    async def _novelty(self, method: _Method, slot: int, signed: Authentic) -> Novelty:
        ahead_max_s = method.wanted.window.ahead_max_s
        novelty = await self._nonces.take(slot, signed, ahead_max_s)
        if novelty == Novelty.REPLAYED:
            raise _refusal(
                Refused(Reason.REPLAYED, "the nonce was used before: sign anew"),
                int(self._clock()),
            )
        if novelty == Novelty.UNKNOWN and not method.keyed:
            raise in_doubt(ahead_max_s)
        return novelty

    async def _execute(
        self,
        behaviour: Behaviour,
        request: Any,
        context: Any,
        signed: Authentic,
        novelty: Novelty,
        told: Mapping[str, str],
    ) -> Any:
        SIGNER.set(signed.key.merchant_id)
        IN_DOUBT.set(novelty == Novelty.UNKNOWN)
        try:
            response = await behaviour(request, context)
        except Refusal as refusal:
            if refusal.code == grpc.StatusCode.UNAVAILABLE:
                await self._nonces.give_back(signed)
            raise
        if f"{TOLD}digest" not in told:
            # What became of HTTP and JSON Envoy has signed, once it is JSON again.
            self._sign(response, context, signed, told["authorization"])
        return response

    def _sign(self, response: Any, context: Any, signed: Authentic, authorization: str) -> None:
        signer = self._signer(signed.key.algorithm)
        if signer is None:
            return
        digest = digest_of(signer.algorithm, response.SerializeToString())
        answer = Answer(authorization, 200, "application/grpc", digest)
        text = signed_answer(signer, answer, int(self._clock()))
        context.set_trailing_metadata(((SIGNATURE_HEADER, text),))


def signed_answer(signer: Signer, answer: Answer, now: int) -> str:
    """The header of an answer. Raises Malformed."""
    nonce = os.urandom(16).hex()
    claims = Claims(signer.key_id, signer.algorithm, now, nonce, b"")
    return header_of_checked(signer.answer(claims, answer))


def in_doubt(wait_s: int) -> Refusal:
    """Nothing is said that a copy of an earlier request might be after."""
    return Refusal(
        grpc.StatusCode.ABORTED,
        "REPLAY_NOT_EXCLUDED",
        "the slot has moved, or the memory of nonces is away: sign anew and ask again",
        retry_after_ms=wait_s * 1000,
    )


def _claims_signature(context: Any) -> bool:
    """All that is looked at of a call without one."""
    found = False
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str):
            # As `_told` has it: of several the last.
            found = value.startswith(SCHEME)
    return found


def _told(context: Any) -> dict[str, str]:
    return {
        key: value
        for key, value in context.invocation_metadata() or ()
        if (key == "authorization" or key.startswith(TOLD)) and isinstance(value, str)
    }


def _message(name: str, told: Mapping[str, str]) -> SignedMessage:
    """What was signed, as the edge has seen it. Raises Malformed."""
    digest = told.get(f"{TOLD}digest")
    if digest is None:
        return SignedMessage(
            "POST",
            f"/{name}",
            told.get(f"{TOLD}host", ""),
            told.get(f"{TOLD}type", ""),
            told.get(f"{TOLD}user", ""),
            RECEIVED.get(),
        )
    try:
        raw = bytes.fromhex(digest)
    except ValueError:
        raise Malformed("the edge told no digest") from None
    if len(raw) != 32:
        raise Malformed("the edge told no digest")
    return SignedMessage(
        told.get(f"{TOLD}method", ""),
        told.get(f"{TOLD}target", ""),
        told.get(f"{TOLD}host", ""),
        told.get(f"{TOLD}type", ""),
        told.get(f"{TOLD}user", ""),
        b"",
        raw,
    )


def _name_of(host: str) -> str:
    """Without its port, in lower case."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()


def _unsigned(message: str) -> Refusal:
    return Refusal(grpc.StatusCode.UNAUTHENTICATED, "SIGNATURE_REQUIRED", message)


def _refusal(refused: Refused, now: int) -> Refusal:
    # The time is no secret, and tells a merchant how far off his clock is.
    return Refusal(
        grpc.StatusCode.UNAUTHENTICATED,
        refused.reason,
        refused.message,
        metadata={"server_time": str(now)},
    )
