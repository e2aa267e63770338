"""Signatures: by `cryptography`, SM2 with SM3 by Tongsuo; no arithmetic of our own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from tongsuopy.crypto import exceptions as sm_exceptions
from tongsuopy.crypto import hashes as sm_hashes
from tongsuopy.crypto import serialization as sm_serialization
from tongsuopy.crypto.asymciphers import ec as sm_ec

from router.signing.model import (
    Algorithm,
    Answer,
    Authentic,
    Claims,
    Key,
    Reason,
    Refused,
    SignedMessage,
    Window,
)
from router.signing.rules import (
    Malformed,
    canonical,
    canonical_of_checked,
    canonical_response,
    judge,
    read_header,
    remember_until,
)

RSA_BITS_MIN = 2048
RSA_BITS_MAX = 8192
_SALT_BYTES = 32


# What Tongsuo raises for what is no key or no signature at all.
_SM_FAULTS = (sm_exceptions.InternalError, sm_exceptions.UnsupportedAlgorithm)


class BadKey(ValueError):
    """A key that cannot be registered. Never quotes it."""


def digest_of(algorithm: Algorithm, body: bytes) -> bytes:
    """By the algorithm's own hash: whoever must use SM3 need not have SHA-256."""
    if algorithm != Algorithm.SM2_SM3:
        return hashlib.sha256(body).digest()
    hashing = sm_hashes.Hash(sm_hashes.SM3())
    hashing.update(body)
    digest: bytes = hashing.finalize()
    return digest


def check_key(algorithm: Algorithm, public: bytes) -> None:
    """Whether a merchant may register it. Raises BadKey."""
    _public(algorithm, public)


# Parsed keys of merchants that call now; a key's bytes never change.
@lru_cache(maxsize=4096)
def _public(algorithm: Algorithm, public: bytes) -> Any:
    if algorithm == Algorithm.SM2_SM3:
        try:
            found: Any = sm_serialization.load_der_public_key(public)
        except (ValueError, TypeError, *_SM_FAULTS):
            raise BadKey("it is no SM2 public key in DER") from None
        if not isinstance(found, sm_ec.EllipticCurvePublicKey) or found.curve.name != "SM2":
            raise BadKey("it is no SM2 public key")
        return found
    try:
        key = serialization.load_der_public_key(public)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadKey("it is no public key in DER") from None
    if algorithm == Algorithm.ED25519:
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise BadKey("it is no Ed25519 public key")
        return key
    if not isinstance(key, rsa.RSAPublicKey):
        raise BadKey("it is no RSA public key")
    if not RSA_BITS_MIN <= key.key_size <= RSA_BITS_MAX:
        raise BadKey(f"an RSA key has {RSA_BITS_MIN} to {RSA_BITS_MAX} bits")
    return key


# Stateless, and each costs as much to make as a tenth of what it is used for.
_SHA256 = hashes.SHA256()
_PADDINGS: Mapping[Algorithm, Any] = {
    Algorithm.RSA_SHA256: padding.PKCS1v15(),
    Algorithm.RSA_PSS_SHA256: padding.PSS(padding.MGF1(_SHA256), _SALT_BYTES),
}


def is_signed(algorithm: Algorithm, public: bytes, signature: bytes, said: bytes) -> bool:
    key = _public(algorithm, public)
    try:
        if algorithm == Algorithm.SM2_SM3:
            key.verify(signature, said, sm_ec.ECDSA(sm_hashes.SM3()))
        elif algorithm == Algorithm.ED25519:
            key.verify(signature, said)
        else:
            key.verify(signature, said, _PADDINGS[algorithm], _SHA256)
    except (InvalidSignature, sm_exceptions.InvalidSignature, *_SM_FAULTS):
        return False
    return True


class Signer:
    """A private key, as a client has it and as we have ours. PEM, PKCS #8, not encrypted."""

    def __init__(self, key_id: str, algorithm: Algorithm, private: bytes) -> None:
        self.key_id = key_id
        self.algorithm = algorithm
        self._key: Any
        try:
            if algorithm == Algorithm.SM2_SM3:
                self._key = sm_serialization.load_pem_private_key(private, None)
            else:
                self._key = serialization.load_pem_private_key(private, None)
        except (ValueError, TypeError, UnsupportedAlgorithm, *_SM_FAULTS):
            raise BadKey("it is no private key in PEM") from None
        # A key of another kind would fail at the first signature.
        check_key(algorithm, self.public)

    @property
    def public(self) -> bytes:
        """SubjectPublicKeyInfo, DER."""
        of = sm_serialization if self.algorithm == Algorithm.SM2_SM3 else serialization
        encoded: bytes = self._key.public_key().public_bytes(
            of.Encoding.DER, of.PublicFormat.SubjectPublicKeyInfo
        )
        return encoded

    def sign(self, message: SignedMessage, timestamp: int, nonce: str) -> Claims:
        """Raises Malformed when the message has no canonical form."""
        claims = Claims(self.key_id, self.algorithm, timestamp, nonce, b"")
        digest = message.digest or digest_of(self.algorithm, message.body)
        return replace(claims, signature=self.sign_bytes(canonical(message, claims, digest)))

    def answer(self, claims: Claims, answer: Answer) -> Claims:
        """Signs what was answered; `claims` are of this key, unsigned. Raises Malformed."""
        said = canonical_response(
            claims,
            digest_of(self.algorithm, answer.authorization.encode()),
            answer.status,
            answer.content_type,
            answer.digest,
        )
        # Not `replace`, which takes as long as all the rest but the signature.
        return Claims(
            claims.key_id, claims.algorithm, claims.timestamp, claims.nonce, self.sign_bytes(said)
        )

    def sign_bytes(self, said: bytes) -> bytes:
        signature: bytes
        if self.algorithm == Algorithm.SM2_SM3:
            signature = self._key.sign(said, sm_ec.ECDSA(sm_hashes.SM3()))
        elif self.algorithm == Algorithm.ED25519:
            signature = self._key.sign(said)
        else:
            signature = self._key.sign(said, _PADDINGS[self.algorithm], _SHA256)
        return signature


def verify(
    message: SignedMessage, text: str, keys: Mapping[str, Key], now: int, window: Window
) -> Authentic | Refused:
    """Whether a request with this `authorization` header is authentic. Its nonce must then be
    remembered by an atomic set-if-absent: `Reason.REPLAYED` when it was there."""
    try:
        claims = read_header(text)
        key = judge(claims, keys, now, window)
        if isinstance(key, Refused):
            return key
        digest = message.digest or digest_of(claims.algorithm, message.body)
        said = canonical_of_checked(message, claims, digest)
    except Malformed as fault:
        return Refused(Reason.MALFORMED, str(fault))
    if not is_signed(key.algorithm, key.public, claims.signature, said):
        return Refused(Reason.WRONG, "the signature is not the key's, or not of this request")
    return Authentic(key, claims.nonce, remember_until(claims), claims.timestamp)
