"""A merchant's client of Cellpay in Python: signs requests, verifies answers. Needs `cryptography`.

    python python_client.py --url https://pay.example.com --tls-ca ca.pem --tls-cert client.pem \
        --tls-key client.key --merchant shop --key-id key_… --private private.pem \
        POST /v1/users/ann/orders '{"merchant_id": "shop", …, "idempotency_key": "order-17"}'

    python python_client.py proof --merchant shop --private private.pem

The first prints the answer when it is Cellpay's, and fails when it is not; the second what is
needed to register a key. docs/signing.md has the form. Keys: RSA (signs by PSS) or Ed25519.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import http.client
import json
import re
import secrets
import ssl
import sys
import time
from typing import Any
from urllib.parse import quote, urlsplit

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

JSON = "application/json"
TRIES = 8
# How far the clock of an answer may be from ours.
CLOCK_S = 300
PSS = padding.PSS(padding.MGF1(hashes.SHA256()), 32)


class NotFromCellpay(Exception):
    """An answer without a signature of Cellpay's, or with a wrong one."""


def lines(*values: str) -> bytes:
    return "".join(f"{value}\n" for value in values).encode()


def algorithm_of(key: Any) -> str:
    return "ed25519" if isinstance(key, ed25519.Ed25519PrivateKey) else "rsa-pss-sha256"


def sign(key: Any, said: bytes) -> bytes:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(said)
    assert isinstance(key, rsa.RSAPrivateKey), "the key is neither RSA nor Ed25519"
    return key.sign(said, PSS, hashes.SHA256())


def authorization(
    key: Any, key_id: str, method: str, host: str, target: str, body: bytes, nonce: str
) -> str:
    """The header; a new one for every attempt."""
    algorithm, timestamp = algorithm_of(key), str(int(time.time()))
    said = lines(
        "CELLPAY1", algorithm, key_id, timestamp, nonce, method, host.lower(), target,
        JSON if body else "", "", hashlib.sha256(body).hexdigest(),
    )  # fmt: skip
    signature = base64.b64encode(sign(key, said)).decode()
    return (
        f'CELLPAY1 key="{key_id}",algorithm="{algorithm}",timestamp="{timestamp}",'
        f'nonce="{nonce}",signature="{signature}"'
    )


class Cellpay:
    def __init__(self, url: str, tls: ssl.SSLContext, merchant: str, key_id: str, key: Any) -> None:
        self._host = urlsplit(url).netloc
        self._tls = tls
        self._merchant = merchant
        self._key_id = key_id
        self._key = key
        # Cellpay's own public keys. Over TLS to a host that we name; pin them if you can.
        self._theirs: dict[str, Any] = {}

    def call(self, method: str, target: str, body: Any = None) -> tuple[int, Any]:
        """Tries again what may be tried again, each time with a new signature: give writes an
        idempotency key."""
        for attempt in range(TRIES):
            try:
                status, answer = self._once(method, target, body)
            except (OSError, http.client.HTTPException):
                status, answer = 503, None
            if status not in (409, 503) or not may_pass(status, answer) or attempt == TRIES - 1:
                return status, answer
            time.sleep(min(10.0, 0.2 * 2**attempt) * (0.5 + secrets.randbelow(500) / 1000))
        raise AssertionError("the last try returns")

    def _once(self, method: str, target: str, body: Any) -> tuple[int, Any]:
        data = json.dumps(body).encode() if body is not None else b""
        nonce = secrets.token_urlsafe(24)
        status, headers, answer, sent = self._send(method, target, data, nonce)
        self._verify(sent, status, headers, answer)
        return status, json.loads(answer)

    def _send(
        self, method: str, target: str, data: bytes, nonce: str
    ) -> tuple[int, http.client.HTTPMessage, bytes, str]:
        """Status, headers and body of the answer, and what the request was signed by."""
        signature = authorization(self._key, self._key_id, method, self._host, target, data, nonce)
        headers = {"authorization": signature}
        if data:
            headers["content-type"] = JSON
        connection = http.client.HTTPSConnection(self._host, context=self._tls, timeout=20)
        try:
            connection.request(method, target, data or None, headers)
            got = connection.getresponse()
            return got.status, got.headers, got.read(), signature
        finally:
            connection.close()

    def _verify(
        self, sent: str, status: int, headers: http.client.HTTPMessage, answer: bytes
    ) -> None:
        said = dict(re.findall(r'(\w+)="([^"]*)"', headers.get("x-cellpay-signature", "")))
        if said.get("algorithm") != "ed25519":
            raise NotFromCellpay(f"the answer ({status}) has no signature that we know")
        if abs(int(said["timestamp"]) - time.time()) > CLOCK_S:
            raise NotFromCellpay("the answer is not of now")
        signed = lines(
            "CELLPAY1-RESPONSE", said["algorithm"], said["key"], said["timestamp"], said["nonce"],
            hashlib.sha256(sent.encode()).hexdigest(), str(status), headers.get("content-type", ""),
            hashlib.sha256(answer).hexdigest(),
        )  # fmt: skip
        try:
            self._their_key(said["key"]).verify(base64.b64decode(said["signature"]), signed)
        except Exception as error:
            raise NotFromCellpay("the answer's signature is wrong") from error

    def _their_key(self, key_id: str) -> Any:
        if key_id not in self._theirs:
            target = f"/v1/users/{quote(self._merchant, safe='')}/signing-keys"
            _, _, answer, _ = self._send("GET", target, b"", secrets.token_urlsafe(24))
            self._theirs = {
                key["key_id"]: serialization.load_der_public_key(
                    base64.b64decode(key["public_key"])
                )
                for key in json.loads(answer)["keys"]
                if key["algorithm"] == "ed25519"
            }
        return self._theirs[key_id]


def may_pass(status: int, answer: Any) -> bool:
    """503 may; of 409 only what asks to be signed anew."""
    details = answer.get("details", []) if isinstance(answer, dict) else []
    reasons = {item.get("reason") for item in details}
    return status == 503 or "REPLAY_NOT_EXCLUDED" in reasons


def proof(key: Any, merchant: str) -> dict[str, str]:
    """What RegisterKey takes."""
    public = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    algorithm = algorithm_of(key)
    said = lines("CELLPAY1-KEY", algorithm, merchant, hashlib.sha256(public).hexdigest())
    return {
        "merchant_id": merchant,
        "algorithm": algorithm,
        "public_key": base64.b64encode(public).decode(),
        "proof": base64.b64encode(sign(key, said)).decode(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("url", "tls-ca", "tls-cert", "tls-key", "merchant", "key-id", "private"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("method")
    parser.add_argument("target", nargs="?", default="")
    parser.add_argument("body", nargs="?", default="")
    given = parser.parse_args()
    with open(given.private, "rb") as file:
        key = serialization.load_pem_private_key(file.read(), None)
    if given.method == "proof":
        print(json.dumps(proof(key, given.merchant)))
        return 0
    tls = ssl.create_default_context(cafile=given.tls_ca or None)
    if given.tls_cert:
        tls.load_cert_chain(given.tls_cert, given.tls_key)
    client = Cellpay(given.url, tls, given.merchant, given.key_id, key)
    body = json.loads(given.body) if given.body else None
    status, answer = client.call(given.method, given.target, body)
    print(json.dumps(answer))
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
