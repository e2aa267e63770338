"""Signatures of webhooks are those of the Standard Webhooks specification."""

from __future__ import annotations

import base64
import hashlib

from cells.notifications.rules import signature

# The example of the specification's reference implementation (standard-webhooks, svix).
SECRET = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
WEBHOOK_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
UNIX_S = 1614265330
BODY = '{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def _by_definition(secret: bytes, content: bytes) -> bytes:
    """HMAC-SHA256 from the text of RFC 2104, without the library that the rules use."""
    key = secret.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key) + content).digest()
    return hashlib.sha256(bytes(byte ^ 0x5C for byte in key) + inner).digest()


def test_the_example_of_the_specification_is_signed_alike() -> None:
    assert signature(SECRET, WEBHOOK_ID, UNIX_S, BODY) == SIGNATURE


def test_a_body_beyond_ascii_is_signed_as_utf8() -> None:
    body = '{"name":"Zürich 銀行"}'
    expected = _by_definition(SECRET, f"dlv_1.7.{body}".encode())
    assert signature(SECRET, "dlv_1", 7, body) == "v1," + base64.b64encode(expected).decode()


def test_the_signature_covers_id_time_and_body() -> None:
    signed = {
        signature(SECRET, "a", 1, "x"),
        signature(SECRET, "b", 1, "x"),
        signature(SECRET, "a", 2, "x"),
        signature(SECRET, "a", 1, "y"),
        signature(SECRET[:-1], "a", 1, "x"),
    }
    assert len(signed) == 5
