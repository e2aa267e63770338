"""Writes router/testdata/signing.json: vectors for whoever signs in another language.

python -m tests.make_signing_vectors. PKCS #1 v1.5 signs the same again; PSS and SM2 draw lots, so
those signatures are to be verified, not compared. The keys are for tests and for nothing else.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from tongsuopy.crypto import serialization as sm_serialization
from tongsuopy.crypto.asymciphers import ec as sm_ec

from router.signing.keys import Signer, digest_of
from router.signing.model import Algorithm, SignedMessage
from router.signing.rules import canonical, header

PATH = Path(__file__).resolve().parents[1] / "router" / "testdata" / "signing.json"
TIMESTAMP = 1_790_000_000
MESSAGES = {
    "json": SignedMessage(
        "POST", "/v1/orders?dry=1", "pay.example.com", "application/json", "user-1",
        b'{"amount": {"currency": "CNY", "minor_units": 100}}',
    ),
    "grpc": SignedMessage(
        "POST", "/cellpay.payments.v1.PaymentsService/Pay", "pay.example.com",
        "application/grpc", "", bytes(range(256)),
    ),
    "empty": SignedMessage("GET", "/v1/orders/ord_1", "Pay.Example.com:8443", "", "安", b""),
}  # fmt: skip


def private_keys() -> dict[Algorithm, bytes]:
    """Those of the file when it is there, so that its vectors stay."""
    known: dict[Algorithm, bytes] = {}
    if PATH.exists():
        read = json.loads(PATH.read_text())["keys"]
        known = {Algorithm(name): key["private_pem"].encode() for name, key in read.items()}
    made = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    sm2: bytes = sm_ec.generate_private_key(sm_ec.SM2()).private_bytes(
        sm_serialization.Encoding.PEM,
        sm_serialization.PrivateFormat.PKCS8,
        sm_serialization.NoEncryption(),
    )
    ed = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    new = {Algorithm.RSA_PSS_SHA256: made, Algorithm.RSA_SHA256: made, Algorithm.SM2_SM3: sm2}
    return {**new, Algorithm.ED25519: ed, **known}


def main() -> None:
    keys = private_keys()
    signers = {name: Signer(f"key-{name}", name, private) for name, private in keys.items()}
    vectors = []
    for algorithm, signer in signers.items():
        for name, message in MESSAGES.items():
            claims = signer.sign(message, TIMESTAMP, f"nonce-of-{name}-0000001")
            digest = digest_of(algorithm, message.body)
            vectors.append(
                {
                    "name": f"{name} by {algorithm}",
                    "algorithm": algorithm,
                    "method": message.method,
                    "target": message.target,
                    "host": message.host,
                    "content_type": message.content_type,
                    "user_id": message.user_id,
                    "body_base64": base64.b64encode(message.body).decode(),
                    "digest_hex": digest.hex(),
                    "canonical": canonical(message, claims, digest).decode(),
                    "authorization": header(claims),
                }
            )
    document = {
        "keys": {
            algorithm: {
                "key_id": signer.key_id,
                "private_pem": keys[algorithm].decode(),
                "public_der_base64": base64.b64encode(signer.public).decode(),
            }
            for algorithm, signer in signers.items()
        },
        "vectors": vectors,
    }
    PATH.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
