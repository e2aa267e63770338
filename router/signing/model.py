"""Requests, keys and verdicts, as the rules of signing know them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Algorithm(StrEnum):
    """A key has one, chosen when it is registered; what a request says must be that one."""

    # RSASSA-PSS, MGF1 and digest SHA-256, salt of 32 bytes (RFC 8017).
    RSA_PSS_SHA256 = "rsa-pss-sha256"
    # RSASSA-PKCS1-v1_5 with SHA-256, for those whose tools know nothing else.
    RSA_SHA256 = "rsa-v1_5-sha256"
    # GB/T 32918 with SM3, signer's ID 1234567812345678; DER of two integers.
    SM2_SM3 = "sm2-sm3"
    # RFC 8032, over the lines themselves. What we sign answers and webhooks with: an RSA signature
    # takes as long as a payment.
    ED25519 = "ed25519"


class Reason(StrEnum):
    """Why a request is not taken for signed, in order of precedence."""

    MALFORMED = "SIGNATURE_MALFORMED"
    KEY_UNKNOWN = "KEY_UNKNOWN"
    KEY_REVOKED = "KEY_REVOKED"
    KEY_NOT_YET_VALID = "KEY_NOT_YET_VALID"
    KEY_EXPIRED = "KEY_EXPIRED"
    ALGORITHM_MISMATCH = "ALGORITHM_MISMATCH"
    TIMESTAMP_STALE = "TIMESTAMP_STALE"
    TIMESTAMP_AHEAD = "TIMESTAMP_AHEAD"
    WRONG = "SIGNATURE_WRONG"
    # It was meant for another system, of which somebody has a copy.
    OTHER_HOST = "SIGNATURE_OF_OTHER_HOST"
    # Found last: a forger must not be able to use up another's nonces.
    REPLAYED = "NONCE_REPLAYED"


@dataclass(frozen=True, slots=True)
class SignedMessage:
    """What a signature is of, as it went over the wire: only the host's case is normalised."""

    # Upper case. gRPC: POST.
    method: str
    # Path and query as in the request line. gRPC: /package.Service/Method.
    target: str
    # The host that the signer meant: a request to a test system is none to production.
    host: str
    content_type: str
    # The header that chooses the home cell; empty when it is not sent.
    user_id: str
    # HTTP: the body. gRPC: the message, without the five bytes before it, not compressed.
    body: bytes
    # Of the body, by the algorithm's hash, where only that is known: behind the edge.
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Claims:
    """What the `authorization` header says."""

    key_id: str
    algorithm: Algorithm
    # Seconds since 1970, UTC.
    timestamp: int
    nonce: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class Key:
    """A registered public key. Several may be valid at once: that is how they are rotated."""

    key_id: str
    merchant_id: str
    algorithm: Algorithm
    # SubjectPublicKeyInfo, DER.
    public: bytes
    # Seconds since 1970; `not_after` 0: until it is revoked.
    not_before: int = 0
    not_after: int = 0
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What we sign of an answer to a signed request."""

    # The request's `authorization`, as it came: by its signature it stands for all of the request.
    authorization: str
    # Of HTTP; 200 of gRPC.
    status: int
    content_type: str
    # Of the body, by the hash of our key's algorithm.
    digest: bytes


@dataclass(frozen=True, slots=True)
class Window:
    """How far a signer's clock may be off, and how old a request may be.

    `ahead_max_s` is short: for so long after a slot's move its new home cannot tell a request that
    was made since from one that its old home has seen.
    """

    old_max_s: int = 300
    ahead_max_s: int = 10


@dataclass(frozen=True, slots=True)
class Authentic:
    """The signature is right. The nonce is still to be remembered, until `remember_until`: from
    then on its timestamp is refused, so it need be remembered no longer."""

    key: Key
    nonce: str
    remember_until: int
    timestamp: int = 0


@dataclass(frozen=True, slots=True)
class Refused:
    reason: Reason
    message: str
