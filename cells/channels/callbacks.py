"""Where banks call us back: a process of its own, reached from outside, that keeps no money.

python -m cells.channels.callbacks SETTINGS.json

A callback is acknowledged only when the home of what it speaks of has it; until then the bank is
told to come again. A repetition is answered the same, from memory or by reporting it once more,
which changes nothing. Nothing of a body is read before its signature fits.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import ssl
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import structlog
import uvloop
from aiohttp import web
from pydantic import ConfigDict, Field, TypeAdapter, with_config

from cells.channels.clearing.messages import BODY_BYTES_MAX, Malformed, Told, decode
from cells.channels.clearing.rules import outcome_of
from cells.channels.clearing.signing import (
    NotAuthentic,
    Signer,
    Verifier,
    read_signer,
    read_verifier,
)
from cells.channels.model import AnswerReason, Heard
from cells.channels.reporter import MeshReporter, NotReported, Reporter
from router.client import CallPolicy, TlsFiles, connect
from router.documents import read_document
from router.ids import Kind, kind_of_id
from router.logs import configure_logs

log = structlog.get_logger(__name__)

_DOCUMENT = with_config(ConfigDict(extra="forbid"))
_PARENT_POLL_S = 0.2


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Caller:
    """A bank that may call, at /v1/callbacks/<channel>."""

    channel: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,63}$")]
    # Their keys by the ID that they send, and ours for what we answer.
    bank_keys: Mapping[str, Path]
    key_id: str
    key_file: Path
    codes: Mapping[str, AnswerReason] = field(default_factory=dict)
    # Older callbacks are not heard; the bank's clock and ours may differ by this much.
    fresh_s: Annotated[int, Field(ge=1, le=3_600)] = 300


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class CallbackSettings:
    host: str
    port: Annotated[int, Field(ge=0, le=65_535)]
    # Of the server, and of whom to ask a client certificate for (empty: of nobody).
    certificate: str
    key: str
    callers: tuple[Caller, ...]
    client_ca: str = ""
    # The mesh that leads home.
    xds_bootstrap: str = ""
    tls: TlsFiles | None = None
    report_timeout_s: Annotated[float, Field(gt=0, le=60)] = 5.0
    # Callbacks under way; more are told to come again.
    under_way_max: Annotated[int, Field(ge=1)] = 512
    # Callbacks whose repetition is answered without asking their home.
    remembered_max: Annotated[int, Field(ge=0)] = 100_000
    # False: until a signal.
    ends_with_parent: bool = False


_SETTINGS = TypeAdapter(CallbackSettings)


class _Known:
    """A caller with its keys read."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.verifier: Verifier = read_verifier(caller.bank_keys)
        self.signer: Signer = read_signer(caller.key_id, caller.key_file)


class Receiver:
    def __init__(self, settings: CallbackSettings, reporter: Reporter) -> None:
        self._settings = settings
        self._reporter = reporter
        self._known = {caller.channel: _Known(caller) for caller in settings.callers}
        # Of those that were reported, the oldest first.
        self._done: OrderedDict[bytes, None] = OrderedDict()
        self._under_way = 0

    def application(self) -> web.Application:
        application = web.Application(client_max_size=BODY_BYTES_MAX)
        application.add_routes([web.post("/v1/callbacks/{channel}", self._take)])
        return application

    async def _take(self, request: web.Request) -> web.Response:
        known = self._known.get(request.match_info["channel"])
        if known is None:
            raise web.HTTPNotFound
        body = await request.read()
        now = int(time.time())
        try:
            signed = known.verifier.request(
                request.headers, "POST", request.path, body, now, known.caller.fresh_s
            )
        except NotAuthentic as error:
            log.warning(
                "a callback is not the bank's", channel=known.caller.channel, why=str(error)
            )
            # Unsigned: there is no nonce that this could honestly answer.
            return web.json_response({"result": "not_authentic"}, status=401)
        if self._under_way >= self._settings.under_way_max:
            status, result = 503, "come_again"
        else:
            self._under_way += 1
            try:
                status, result = await self._report(known.caller, body)
            finally:
                self._under_way -= 1
        answer = json.dumps({"result": result}).encode()
        headers = known.signer.answer(status, signed.nonce, answer, now)
        return web.Response(
            body=answer, status=status, headers=headers, content_type="application/json"
        )

    async def _report(self, caller: Caller, body: bytes) -> tuple[int, str]:
        seen = hashlib.sha256(caller.channel.encode() + b"\n" + body).digest()
        if seen in self._done:
            return 200, "taken"
        try:
            told = decode(body)
            _check_ours(told)
        except Malformed as error:
            log.warning("a callback says nothing", channel=caller.channel, why=str(error))
            return 422, "malformed"
        heard = Heard(caller.channel, told.reference, outcome_of(told, caller.codes))
        try:
            async with asyncio.timeout(self._settings.report_timeout_s):
                await self._reporter.report(heard)
        except (NotReported, TimeoutError) as error:
            final = isinstance(error, NotReported) and error.final
            log.warning(
                "a callback found no home", channel=caller.channel, reference=told.reference,
                final=final, why=str(error) or type(error).__name__,
            )  # fmt: skip
            return (422, "unknown_reference") if final else (503, "come_again")
        self._done[seen] = None
        while len(self._done) > self._settings.remembered_max:
            self._done.popitem(last=False)
        return 200, "taken"


def _check_ours(told: Told) -> None:
    try:
        kind = kind_of_id(told.reference)
    except ValueError:
        raise Malformed("the reference is none of ours") from None
    if kind is not Kind.ATTEMPT:
        raise Malformed("the reference is of no attempt")


@contextlib.asynccontextmanager
async def serving(settings: CallbackSettings, reporter: Reporter) -> AsyncIterator[int]:
    """Its port."""
    runner = web.AppRunner(Receiver(settings, reporter).application(), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port, ssl_context=_tls_of(settings))
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def receive(settings: CallbackSettings) -> None:
    """Serves until SIGTERM, or until its parent ends."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    parent = os.getppid()
    # The bank repeats what is not acknowledged: one attempt here, and the inner fails fast.
    policy = CallPolicy(timeout_s=settings.report_timeout_s)
    async with connect(settings.xds_bootstrap, policy=policy, fallback=settings.tls) as mesh:
        reporter = MeshReporter(mesh, settings.report_timeout_s)
        async with serving(settings, reporter) as port:
            print(json.dumps({"port": port}), flush=True)
            while not stop.is_set():
                if settings.ends_with_parent and os.getppid() != parent:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), _PARENT_POLL_S)


def _tls_of(settings: CallbackSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.certificate, settings.key)
    if settings.client_ca:
        context.load_verify_locations(settings.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def main() -> None:
    if sys.flags.optimize:
        raise SystemExit("python -O removes assertions that guard money; run without it")
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m cells.channels.callbacks SETTINGS.json")
    settings = _SETTINGS.validate_json(read_document(Path(sys.argv[1])))
    configure_logs(process="callbacks")
    uvloop.run(receive(settings))


if __name__ == "__main__":
    main()
