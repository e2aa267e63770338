"""A clearing house's tongue: JSON over HTTPS with signed bodies, and callbacks for what comes late.

A request is `POST /v1/requests`; its answer, and a callback, tell what has become of a reference.
Signatures are over a form of lines: version, direction, what it goes to or answers, time, nonce,
and the SHA-256 of the body. A nonce is taken once.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
import ssl
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import aiohttp
from aiohttp import web
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from pydantic import Field, TypeAdapter

from banks.bank import Bank, Plan, pause
from banks.behaviour import DOCUMENT, Action, Closed
from banks.model import Asked, Operation, Said, Status, Why
from banks.web import TlsOptions, server_tls

_PATH = "/v1/requests"
_BODY_BYTES_MAX = 64 * 1024
_NONCES_MAX = 1_000_000
_DOOR_POLL_S = 0.02
_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.DIGEST_LENGTH)
# Codes with which the clearing house itself refuses: the issuer has not seen the request.
_ITS_OWN = frozenset({"90", "91", "92", "96"})
_CODES = {
    Why.MAINTENANCE: "90",
    Why.UNSUPPORTED: "57",
    Why.UNKNOWN_ORIGINAL: "25",
    Why.OVER_AMOUNT: "13",
    Why.DUPLICATE_DIFFERS: "94",
    Why.CLOSED: "62",
    Why.NO_FUNDS: "51",
}


@DOCUMENT
@dataclass(frozen=True, slots=True)
class ClearingOptions:
    tls: TlsOptions
    # Its own key (PEM, Ed25519 or RSA), and each participant's public one by the ID that they send.
    key_id: str
    key_file: Path
    participants: Mapping[str, Path]
    port: Annotated[int, Field(ge=0, le=65_535)] = 0
    fresh_s: int = 300
    # Of the participants' callback servers; empty: the system's.
    callback_ca: str = ""
    # A callback that is not acknowledged comes again, each time after twice as long.
    callback_tries_max: Annotated[int, Field(ge=1, le=100)] = 10
    callback_first_s: Annotated[float, Field(gt=0)] = 0.2


@dataclass(frozen=True, slots=True)
class _Signatures:
    key_id: str
    key: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
    # What FORGE signs with.
    stranger: ed25519.Ed25519PrivateKey
    participants: Mapping[str, Any]

    def headers(self, form: bytes, now: str, nonce: str, *, forged: bool) -> dict[str, str]:
        if forged:
            signature = self.stranger.sign(form)
        elif isinstance(self.key, rsa.RSAPrivateKey):
            signature = self.key.sign(form, _PSS, hashes.SHA256())
        else:
            signature = self.key.sign(form)
        return {
            "Clearing-Key": self.key_id,
            "Clearing-Timestamp": now,
            "Clearing-Nonce": nonce,
            "Clearing-Signature": base64.b64encode(signature).decode(),
        }

    def fits(self, key_id: str, signature: str, form: bytes) -> bool:
        key = self.participants.get(key_id)
        if key is None:
            return False
        try:
            raw = base64.b64decode(signature, validate=True)
            if isinstance(key, rsa.RSAPublicKey):
                key.verify(raw, form, _PSS, hashes.SHA256())
            else:
                key.verify(raw, form)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(slots=True)
class _Callback:
    url: str
    said: Said
    reference: str
    action: Action = Action.APPROVE


@dataclass(slots=True)
class _Asking:
    """A request that is being answered."""

    request: web.Request
    asked: Asked
    nonce: str
    callback_url: str
    fields: Mapping[str, Any] = field(default_factory=dict)


class Clearing:
    def __init__(self, bank: Bank, options: ClearingOptions, signatures: _Signatures) -> None:
        self._bank = bank
        self._options = options
        self._signatures = signatures
        self._nonces: OrderedDict[str, None] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None

    def application(self) -> web.Application:
        application = web.Application(client_max_size=_BODY_BYTES_MAX)
        application.add_routes([web.post(_PATH, self._take)])
        return application

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._session is not None:
            await self._session.close()

    async def _take(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        nonce = request.headers.get("Clearing-Nonce", "")
        now = request.headers.get("Clearing-Timestamp", "")
        form = _form("request", "POST", request.path, now, nonce, body)
        key_id = request.headers.get("Clearing-Key", "")
        signature = request.headers.get("Clearing-Signature", "")
        if not self._signatures.fits(key_id, signature, form):
            self._bank.oddities["signature"] += 1
            return self._answer(nonce, {"error": "signature"}, status=401)
        fresh = now.isdigit() and abs(int(now) - time.time()) <= self._options.fresh_s
        if not fresh or nonce in self._nonces:
            self._bank.oddities["replay"] += 1
            return self._answer(nonce, {"error": "replay"}, status=409)
        self._nonces[nonce] = None
        if len(self._nonces) > _NONCES_MAX:
            self._nonces.popitem(last=False)
        try:
            fields = json.loads(body)
            asked = _asked_of(fields)
        except (ValueError, KeyError, TypeError):
            self._bank.oddities["body"] += 1
            return self._answer(nonce, {"error": "body"}, status=400)
        asking = _Asking(request, asked, nonce, str(fields.get("callback_url", "")), fields)
        hang_up = _hanging_up(request)
        self._bank.connections.add(hang_up)
        try:
            return await self._serve(asking, self._bank.hear(asked, _PATH))
        finally:
            self._bank.connections.discard(hang_up)

    async def _serve(self, asking: _Asking, plan: Plan) -> web.StreamResponse:
        match plan.action:
            case Action.LOSE | Action.SILENT:
                return await self._say_nothing(asking)
            case Action.HANG_UP:
                return _hung_up(asking)
        await pause(plan.wait_s)
        # DELAY has its effect now; PEND has it later, after it has answered.
        said = plan.later() if plan.later and plan.action is Action.DELAY else plan.said
        assert said is not None
        if asking.callback_url and plan.action in {Action.PEND, Action.DUPLICATE}:
            self._spawn(self._call_later(asking, plan, said))
        elif plan.action is Action.PEND and plan.later is not None:
            self._spawn(self._settle_later(plan))
        gone = asking.request.transport is None or asking.request.transport.is_closing()
        if gone and asking.callback_url and plan.action in {Action.LATE, Action.DELAY}:
            self._call_back(asking, said)
        return self._told(asking, said, plan.action)

    def _told(self, asking: _Asking, said: Said, action: Action) -> web.StreamResponse:
        told = _told_of(asking.asked.reference, said)
        if asking.asked.operation is Operation.QUERY:
            told["original"] = asking.asked.original
        match action:
            case Action.LIE:
                told["amount"] += 1
            case Action.GARBLE:
                return self._answer(asking.nonce, None)
            case Action.DISCONNECT:
                return _hung_up(asking)
        return self._answer(asking.nonce, told, forged=action is Action.FORGE)

    async def _say_nothing(self, asking: _Asking) -> web.StreamResponse:
        """Holds the connection until the other side has had enough."""
        transport = asking.request.transport
        while transport is not None and not transport.is_closing():
            await asyncio.sleep(0.05)
        return _hung_up(asking)

    def _answer(
        self, nonce: str, body: Mapping[str, Any] | None, *, status: int = 200, forged: bool = False
    ) -> web.Response:
        raw = b"\x00no message\xff" if body is None else json.dumps(body).encode()
        now = str(int(time.time()))
        form = _form("answer", str(status), now, nonce, raw)
        headers = self._signatures.headers(form, now, nonce, forged=forged)
        return web.Response(
            body=raw, status=status, headers=headers, content_type="application/json"
        )

    async def _settle_later(self, plan: Plan) -> None:
        await pause(plan.again_s or 0.0)
        if plan.later is not None:
            plan.later()

    async def _call_later(self, asking: _Asking, plan: Plan, said: Said) -> None:
        await pause(plan.again_s or 0.0)
        if plan.later is not None:
            said = plan.later()
        self._call_back(asking, said)
        if plan.action is Action.DUPLICATE:
            self._call_back(asking, said)

    def _call_back(self, asking: _Asking, said: Said) -> None:
        self._spawn(self._deliver(_Callback(asking.callback_url, said, asking.asked.reference)))

    def _spawn(self, work: Any) -> None:
        # Its end is not waited for, as a bank's would not be; close() ends what is left.
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, callback: _Callback) -> None:
        body = json.dumps(_told_of(callback.reference, callback.said)).encode()
        wait_s = self._options.callback_first_s
        for _ in range(self._options.callback_tries_max):
            if await self._deliver_once(callback.url, body):
                return
            await asyncio.sleep(wait_s)
            wait_s *= 2
        self._bank.oddities["callback given up"] += 1

    async def _deliver_once(self, url: str, body: bytes) -> bool:
        if self._session is None:
            tls = ssl.create_default_context(cafile=self._options.callback_ca or None)
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls))
        now, nonce = str(int(time.time())), secrets.token_urlsafe(24)
        path = "/" + url.split("://", 1)[-1].partition("/")[2]
        form = _form("request", "POST", path, now, nonce, body)
        headers = self._signatures.headers(form, now, nonce, forged=False)
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with self._session.post(url, data=body, headers=headers) as response:
                said = await response.read()
                answered = response.headers
                form = _form(
                    "answer", str(response.status), answered.get("Clearing-Timestamp", ""), nonce,
                    said,
                )  # fmt: skip
                signed = self._signatures.fits(
                    answered.get("Clearing-Key", ""), answered.get("Clearing-Signature", ""), form
                )
                return response.status == 200 and signed
        return False


def _hanging_up(request: web.Request) -> Any:
    def hang_up() -> None:
        if request.transport is not None:
            request.transport.abort()

    return hang_up


def _hung_up(asking: _Asking) -> web.StreamResponse:
    transport = asking.request.transport
    if transport is not None:
        transport.abort()
    return web.Response(status=500)


def _asked_of(fields: Mapping[str, Any]) -> Asked:
    instrument = fields.get("instrument") or {}
    return Asked(
        operation=Operation(fields["operation"]),
        reference=str(fields["reference"]),
        amount=int(fields["amount"]),
        currency=str(fields["currency"]),
        instrument=str(instrument.get("number", "")),
        capture=bool(fields.get("capture", True)),
        original=str(fields.get("original", "")),
    )


def _told_of(reference: str, said: Said) -> dict[str, Any]:
    code = said.code or _CODES.get(said.why, "05" if said.status is Status.DECLINED else "00")
    status = {
        Status.APPROVED: "approved",
        Status.DECLINED: "failed" if code in _ITS_OWN else "declined",
        Status.REVERSED: "reversed",
        Status.PENDING: "pending",
        Status.ABSENT: "not_found",
    }[said.status]
    return {
        "reference": reference,
        "status": status,
        "amount": said.amount,
        "currency": said.currency,
        "code": code,
        "bank_reference": said.bank_reference,
        "clearing_date": said.clearing_date,
    }


def _form(*parts: str | bytes) -> bytes:
    *heads, body = parts
    assert isinstance(body, bytes)
    return (
        "\n".join(["clearing-1", *map(str, heads), hashlib.sha256(body).hexdigest()]) + "\n"
    ).encode()


class _Door:
    """The listener: shut while the bank hangs up on everyone, so that nobody connects."""

    def __init__(self, bank: Bank, runner: web.AppRunner, options: ClearingOptions) -> None:
        self._bank = bank
        self._runner = runner
        self._tls = server_tls(options.tls)
        self._port = options.port
        self._site: web.TCPSite | None = None

    async def open(self) -> int:
        self._site = web.TCPSite(
            self._runner, "127.0.0.1", self._port, ssl_context=self._tls, reuse_address=True
        )
        await self._site.start()
        self._port = int(self._runner.addresses[0][1])
        return self._port

    async def watch(self) -> None:
        while True:
            shut = self._bank.closed is Closed.HANG_UP
            if shut and self._site is not None:
                site, self._site = self._site, None
                await site.stop()
            elif not shut and self._site is None:
                await self.open()
            await asyncio.sleep(_DOOR_POLL_S)


_OPTIONS = TypeAdapter(ClearingOptions)


@asynccontextmanager
async def clearing(bank: Bank, options: Mapping[str, object]) -> AsyncIterator[Mapping[str, int]]:
    """The tongue (banks.kinds)."""
    read = _OPTIONS.validate_python(dict(options))
    key = serialization.load_pem_private_key(read.key_file.read_bytes(), None)
    assert isinstance(key, ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey)
    signatures = _Signatures(
        read.key_id,
        key,
        ed25519.Ed25519PrivateKey.generate(),
        {
            name: serialization.load_pem_public_key(path.read_bytes())
            for name, path in read.participants.items()
        },
    )
    house = Clearing(bank, read, signatures)
    runner = web.AppRunner(house.application(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    door = _Door(bank, runner, read)
    try:
        port = await door.open()
        watching = asyncio.get_running_loop().create_task(door.watch())
        yield {"clearing": port}
        watching.cancel()
    finally:
        await house.close()
        await runner.cleanup()
