"""A merchant who signs, for tests: every part of a request can be made wrong by itself."""

from __future__ import annotations

import base64
import json
import secrets
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
from cellpay.keys.v1 import keys_pb2 as pb
from yarl import URL

from cells.keys.own import new_private
from control.cellctl.session import Session
from router.client import Mesh
from router.signing.keys import Signer, digest_of, is_signed
from router.signing.model import Algorithm, SignedMessage
from router.signing.rules import (
    canonical_proof,
    canonical_response,
    header,
    read_header,
)
from tests.make_signing_vectors import private_keys

JSON = "application/json"


def new_signer(algorithm: Algorithm) -> Signer:
    """A key of its own, where making one is cheap; the vectors' RSA keys else."""
    if algorithm in {Algorithm.RSA_PSS_SHA256, Algorithm.RSA_SHA256}:
        private = private_keys()[algorithm]
    else:
        private = new_private(algorithm)
    return Signer("none-yet", algorithm, private)


def registration(signer: Signer, merchant_id: str, **more: Any) -> pb.RegisterKeyRequest:
    said = canonical_proof(
        signer.algorithm, merchant_id, digest_of(signer.algorithm, signer.public)
    )
    fields = {
        "merchant_id": merchant_id,
        "algorithm": signer.algorithm,
        "public_key": signer.public,
        "proof": signer.sign_bytes(said),
        "idempotency_key": uuid.uuid4().hex,
        **more,
    }
    return pb.RegisterKeyRequest(**fields)


async def register(mesh: Mesh, merchant_id: str, algorithm: Algorithm, **more: Any) -> Signer:
    """A key that the mesh knows, registered from inside."""
    signer = new_signer(algorithm)
    key = await mesh.keys.RegisterKey(registration(signer, merchant_id, **more))
    signer.key_id = key.key_id
    return signer


@dataclass(frozen=True)
class Sent:
    """A request as it goes over the wire."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    nonce: str


@dataclass(frozen=True)
class Got:
    status: int
    body: Any
    raw: bytes
    headers: Mapping[str, str]

    @property
    def reason(self) -> str:
        details = self.body.get("details", []) if isinstance(self.body, dict) else []
        return next((item["reason"] for item in details if "reason" in item), "")


@dataclass
class Merchant:
    """Over HTTP and JSON, with a certificate of the mesh."""

    client: aiohttp.ClientSession
    host: str
    tls: ssl.SSLContext
    theirs: dict[str, tuple[Algorithm, bytes]] = field(default_factory=dict)

    def sign(
        self, signer: Signer, method: str, target: str, document: Any = None, /, **said: Any
    ) -> Sent:
        """`said`: what is signed instead of what is sent; `nonce`, `timestamp` and `headers`."""
        raw = json.dumps(document).encode() if document is not None else b""
        type_ = JSON if raw else ""
        extra: dict[str, str] = said.pop("headers", {})
        nonce = said.pop("nonce", secrets.token_urlsafe(24))
        timestamp = said.pop("timestamp", int(time.time()))
        message = SignedMessage(method, target, self.host, type_, extra.get("x-user-id", ""), raw)
        claims = signer.sign(replace(message, **said), timestamp, nonce)
        headers = {"authorization": header(claims), **extra}
        if type_:
            headers["content-type"] = type_
        return Sent(method, target, headers, raw, nonce)

    async def send(self, sent: Sent) -> Got:
        url = URL(f"https://{self.host}{sent.target}", encoded=True)
        async with self.client.request(
            sent.method, url, data=sent.body or None, headers=sent.headers, ssl=self.tls,
            skip_auto_headers=("content-type",),
        ) as got:  # fmt: skip
            raw = await got.read()
            body = json.loads(raw) if raw.startswith(b"{") else raw.decode()
            return Got(got.status, body, raw, {k.lower(): v for k, v in got.headers.items()})

    async def call(self, signer: Signer, method: str, target: str, body: Any = None) -> Got:
        return await self.send(self.sign(signer, method, target, body))

    async def is_authentic(self, sent: Sent, got: Got) -> bool:
        """Whether we signed this answer to this request."""
        claims = read_header(got.headers["x-cellpay-signature"])
        if claims.key_id not in self.theirs:
            listed = await self.send(Sent("GET", "/v1/users/any/signing-keys", {}, b"", ""))
            for key in listed.body["keys"]:
                public = base64.b64decode(key["public_key"])
                self.theirs[key["key_id"]] = Algorithm(key["algorithm"]), public
        algorithm, public = self.theirs[claims.key_id]
        assert algorithm == claims.algorithm
        request = digest_of(algorithm, sent.headers["authorization"].encode())
        said = canonical_response(
            claims, request, got.status, got.headers.get("content-type", ""),
            digest_of(algorithm, got.raw),
        )  # fmt: skip
        return is_signed(algorithm, public, claims.signature, said)


@asynccontextmanager
async def merchant_of(session: Session) -> AsyncIterator[Merchant]:
    files = session.tls("client")
    tls = ssl.create_default_context(cafile=files.ca)
    tls.load_cert_chain(files.certificate, files.key)
    async with aiohttp.ClientSession() as client:
        yield Merchant(client, session.http_address, tls)
