"""Who said it: a detached signature over a canonical form of a message of HTTP.

The form names the direction, what the message answers or where it goes, when it was made, a nonce,
and the SHA-256 of the body's bytes as they travel: nothing is parsed before it is known to be
theirs. An answer is signed with the nonce of its request, so an old answer fits no new request. The
algorithm goes with the key that both sides have configured and is never read from a message.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

KEY_HEADER = "Clearing-Key"
TIME_HEADER = "Clearing-Timestamp"
NONCE_HEADER = "Clearing-Nonce"
SIGNATURE_HEADER = "Clearing-Signature"

_NONCE = re.compile(r"[A-Za-z0-9_-]{16,64}", re.ASCII)
_TIME = re.compile(r"[0-9]{10}", re.ASCII)
_RSA_BITS_MIN = 2048
_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.DIGEST_LENGTH)


class NotAuthentic(Exception):
    """A message is not signed as it should be. Says why, for our log only."""


@dataclass(frozen=True, slots=True)
class Signed:
    """What of a message's headers the signature covers."""

    time: int
    nonce: str


class Signer:
    """Our key. Ed25519, or RSA with PSS and SHA-256."""

    def __init__(self, key_id: str, pem: bytes) -> None:
        key = serialization.load_pem_private_key(pem, password=None)
        if not isinstance(key, ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey):
            raise ValueError("a signing key is Ed25519 or RSA")
        _check_strength(key)
        self._key = key
        self._key_id = key_id

    def request(self, method: str, path: str, body: bytes, now: int) -> dict[str, str]:
        """The headers of a request, with a nonce of its own."""
        nonce = secrets.token_urlsafe(24)
        return self._headers(_request_form(method, path, now, nonce, body), now, nonce)

    def answer(self, status: int, nonce: str, body: bytes, now: int) -> dict[str, str]:
        return self._headers(_answer_form(status, now, nonce, body), now, nonce)

    def _headers(self, form: bytes, now: int, nonce: str) -> dict[str, str]:
        if isinstance(self._key, rsa.RSAPrivateKey):
            signature = self._key.sign(form, _PSS, hashes.SHA256())
        else:
            signature = self._key.sign(form)
        return {
            KEY_HEADER: self._key_id,
            TIME_HEADER: str(now),
            NONCE_HEADER: nonce,
            SIGNATURE_HEADER: base64.b64encode(signature).decode("ascii"),
        }


class Verifier:
    """Their keys, by the ID that they send; two of them while they change keys."""

    def __init__(self, pems: Mapping[str, bytes]) -> None:
        self._keys: dict[str, ed25519.Ed25519PublicKey | rsa.RSAPublicKey] = {}
        for key_id, pem in pems.items():
            key = serialization.load_pem_public_key(pem)
            if not isinstance(key, ed25519.Ed25519PublicKey | rsa.RSAPublicKey):
                raise ValueError("a verifying key is Ed25519 or RSA")
            _check_strength(key)
            self._keys[key_id] = key

    def request(
        self,
        headers: Mapping[str, str],
        method: str,
        path: str,
        body: bytes,
        now: int,
        fresh_s: int,
    ) -> Signed:
        """Raises NotAuthentic. A clock of ours and one of theirs are compared, with `fresh_s` for
        both: who repeats an old message later than that is not heard."""
        signed = _signed_of(headers)
        self._verify(headers, _request_form(method, path, signed.time, signed.nonce, body))
        if abs(now - signed.time) > fresh_s:
            raise NotAuthentic(f"made {now - signed.time} s ago")
        return signed

    def answer(self, headers: Mapping[str, str], status: int, nonce: str, body: bytes) -> None:
        """Raises NotAuthentic. The nonce of the request makes it fresh."""
        signed = _signed_of(headers)
        if signed.nonce != nonce:
            raise NotAuthentic("an answer to another request")
        self._verify(headers, _answer_form(status, signed.time, nonce, body))

    def _verify(self, headers: Mapping[str, str], form: bytes) -> None:
        key = self._keys.get(headers.get(KEY_HEADER, ""))
        if key is None:
            raise NotAuthentic("a key that we do not know")
        try:
            signature = base64.b64decode(headers.get(SIGNATURE_HEADER, ""), validate=True)
            if isinstance(key, rsa.RSAPublicKey):
                key.verify(signature, form, _PSS, hashes.SHA256())
            else:
                key.verify(signature, form)
        except (InvalidSignature, binascii.Error, ValueError) as error:
            raise NotAuthentic("the signature does not fit") from error


def read_signer(key_id: str, path: Path) -> Signer:
    return Signer(key_id, path.read_bytes())


def read_verifier(paths: Mapping[str, Path]) -> Verifier:
    return Verifier({key_id: path.read_bytes() for key_id, path in paths.items()})


def _signed_of(headers: Mapping[str, str]) -> Signed:
    time, nonce = headers.get(TIME_HEADER, ""), headers.get(NONCE_HEADER, "")
    if not _TIME.fullmatch(time) or not _NONCE.fullmatch(nonce):
        raise NotAuthentic("no time or no nonce")
    return Signed(int(time), nonce)


def _request_form(method: str, path: str, time: int, nonce: str, body: bytes) -> bytes:
    return _form("request", method, path, str(time), nonce, body)


def _answer_form(status: int, time: int, nonce: str, body: bytes) -> bytes:
    return _form("answer", str(status), str(time), nonce, body)


def _form(*parts: str | bytes) -> bytes:
    """A line each, so that no two messages have one form; the last is the body."""
    *heads, body = parts
    assert isinstance(body, bytes)
    lines = ["clearing-1", *(str(head) for head in heads), hashlib.sha256(body).hexdigest()]
    assert not any("\n" in line for line in lines)
    return ("\n".join(lines) + "\n").encode("ascii")


def _check_strength(key: object) -> None:
    if isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey) and key.key_size < _RSA_BITS_MIN:
        raise ValueError(f"an RSA key has {_RSA_BITS_MIN} bits or more")
