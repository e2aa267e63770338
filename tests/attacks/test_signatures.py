"""Signatures, against the pure verification; through the edge they are tested with their wiring.

Fields changed on the way, one by one, keys used beyond their time, and canonical forms that would
be two requests' are in tests/property/test_signing.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, rsa

from router.signing.keys import BadKey, check_key, digest_of, verify
from router.signing.model import Algorithm, Authentic, Key, Reason, Refused, SignedMessage
from router.signing.rules import Malformed, canonical, canonical_response, header, read_header
from tests.property.test_signing import KEYS, NOW, SIGNERS, WINDOW, signed

MESSAGE = SignedMessage(
    "POST", "/v1/payments/pay_1/refunds", "pay.example.com", "application/json", "shop", b"{}"
)
EACH = pytest.mark.parametrize("algorithm", list(Algorithm))


def reason_of(text: str, message: SignedMessage = MESSAGE, now: int = NOW) -> Reason | None:
    answer = verify(message, text, KEYS, now, WINDOW)
    return answer.reason if isinstance(answer, Refused) else None


@EACH
def test_wants_the_public_key_to_be_a_secret(algorithm: Algorithm) -> None:
    """Algorithm confusion as with JWT: an HMAC by the public key, which everybody has."""
    signer = SIGNERS[algorithm]
    claims = signer.sign(MESSAGE, NOW, "n" * 16)
    said = canonical(MESSAGE, claims, digest_of(algorithm, MESSAGE.body))
    for digest in (hashes.SHA256(), hashes.SHA512()):
        made = hmac.HMAC(signer.public, digest)
        made.update(said)
        assert reason_of(header(replace(claims, signature=made.finalize()))) == Reason.WRONG
    for name in ("none", "hs256", "HS256", "rsa-sha1", "", "sm2", "ed448"):
        text = signed(algorithm, MESSAGE).replace(algorithm, name)
        assert reason_of(text) == Reason.MALFORMED


@EACH
def test_wants_a_signature_of_nothing_to_be_one(algorithm: Algorithm) -> None:
    """Zeros, ones, the modulus, SM2's (0, 0), (1, 1) and (n, n), and what is too long."""
    claims = SIGNERS[algorithm].sign(MESSAGE, NOW, "n" * 16)
    length = len(claims.signature)
    order = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFF7203DF6B21C6052B53BBF40939D54123
    der = [
        b"\x30\x06\x02\x01\x00\x02\x01\x00",
        b"\x30\x06\x02\x01\x01\x02\x01\x01",
        b"\x30\x46" + (b"\x02\x21\x00" + order.to_bytes(32)) * 2,
        b"\x30\x80\x00\x00",
        b"\x30\x84\xff\xff\xff\xff" + bytes(8),
    ]
    for forged in (bytes(length), b"\x01" * length, b"\xff" * length, b"\x00", *der, bytes(2048)):
        assert reason_of(header(replace(claims, signature=forged))) in {
            Reason.WRONG,
            Reason.MALFORMED,
        }


def test_wants_a_weak_key_to_be_registered() -> None:
    def public_of(key: object) -> bytes:
        public = key.public_key()  # type: ignore[attr-defined]
        return bytes(
            public.public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )

    weak = [
        public_of(rsa.generate_private_key(65537, 1024)),
        public_of(ec.generate_private_key(ec.SECP256R1())),
        public_of(ec.generate_private_key(ec.SECP256K1())),
        public_of(ed448.Ed448PrivateKey.generate()),
        public_of(dsa.generate_private_key(1024)),
        b"",
        b"\x30\x80" * 1000,
    ]
    for algorithm in Algorithm:
        for public in weak:
            with pytest.raises(BadKey):
                check_key(algorithm, public)


@EACH
def test_wants_yesterdays_request_to_count_today(algorithm: Algorithm) -> None:
    """Replayed later, or made for a time to come, by a clock that is said to be off."""
    text = signed(algorithm, MESSAGE)
    assert reason_of(text) is None
    assert reason_of(text, now=NOW + WINDOW.old_max_s) == Reason.TIMESTAMP_STALE
    assert reason_of(text, now=NOW + 86_400) == Reason.TIMESTAMP_STALE
    assert reason_of(text, now=NOW - WINDOW.ahead_max_s - 1) == Reason.TIMESTAMP_AHEAD
    for timestamp in ("0", "-1", f"0{NOW}", f"+{NOW}", f"{NOW}.0", f"{NOW}e0", "9" * 13, "\u0661"):
        forged = text.replace(f'timestamp="{NOW}"', f'timestamp="{timestamp}"')
        assert reason_of(forged) == Reason.MALFORMED


@EACH
def test_wants_a_revoked_key_to_work_a_little_longer(algorithm: Algorithm) -> None:
    text = signed(algorithm, MESSAGE)
    key_id = SIGNERS[algorithm].key_id
    for change, reason in (
        ({"revoked": True}, Reason.KEY_REVOKED),
        ({"not_after": NOW}, Reason.KEY_EXPIRED),
        ({"not_before": NOW + 1}, Reason.KEY_NOT_YET_VALID),
    ):
        keys = {key_id: replace(KEYS[key_id], **change)}
        answer = verify(MESSAGE, text, keys, NOW, WINDOW)
        assert isinstance(answer, Refused)
        assert answer.reason == reason
    answer = verify(MESSAGE, text, {}, NOW, WINDOW)
    assert isinstance(answer, Refused)
    assert answer.reason == Reason.KEY_UNKNOWN


def test_wants_to_sign_for_another_merchant() -> None:
    """What is signed says by whose key, never for whom: whose things it may touch is decided by the
    key's merchant (router/access.py)."""
    signer = SIGNERS[Algorithm.RSA_PSS_SHA256]
    keys = {signer.key_id: Key(signer.key_id, "mallory", signer.algorithm, signer.public)}
    message = replace(MESSAGE, user_id="victim")
    answer = verify(message, signed(Algorithm.RSA_PSS_SHA256, message), keys, NOW, WINDOW)
    assert isinstance(answer, Authentic)
    assert answer.key.merchant_id == "mallory"


def test_wants_our_answer_to_be_taken_for_a_request() -> None:
    """What we sign and what merchants sign begin differently, so that neither is ever the other."""
    claims = SIGNERS[Algorithm.RSA_PSS_SHA256].sign(MESSAGE, NOW, "n" * 16)
    request = canonical(MESSAGE, claims, bytes(32))
    answer = canonical_response(claims, bytes(32), 200, "application/json", bytes(32))
    assert request.split(b"\n")[0] != answer.split(b"\n")[0]
    assert request.count(b"\n") != answer.count(b"\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + ',key="other"',
        lambda text: text.replace('key="', 'key="other",key="', 1),
        lambda text: text.replace('",', '", '),
        lambda text: text.upper(),
        lambda text: text.replace('"', "'"),
        lambda text: text.replace("CELLPAY1", "CELLPAY0"),
        lambda text: text.replace('signature="', 'signature="\n'),
        lambda text: text + "\x00",
        lambda text: text.replace('signature="', 'signature="===='),
        lambda text: text.replace("=", "%3d"),
        lambda text: text + ", " + text,
        lambda text: text.replace("nonce", "NONCE"),
        lambda text: text.replace('nonce="', 'nonce="\\"'),
    ],
)
def test_wants_two_readers_to_read_one_header_differently(change: object) -> None:
    text = signed(Algorithm.RSA_PSS_SHA256, MESSAGE)
    assert read_header(text).nonce
    with pytest.raises(Malformed):
        read_header(change(text))  # type: ignore[operator]


def test_wants_what_is_outside_of_the_signature_to_matter() -> None:
    """Each thing that decides what is done, and for whom, is one of the lines."""
    text = signed(Algorithm.RSA_PSS_SHA256, MESSAGE)
    for name in ("method", "target", "host", "content_type", "user_id"):
        changed: dict[str, Any] = {name: "/x" if name == "target" else "X"}
        other = replace(MESSAGE, **changed)
        assert reason_of(text, other) == Reason.WRONG, name
    for body in (b"{} ", b"", b"{}\n", b"{}{}"):
        assert reason_of(text, replace(MESSAGE, body=body)) == Reason.WRONG
    # The host's case is the one thing that may change on the way.
    assert reason_of(text, replace(MESSAGE, host="PAY.example.com")) is None
