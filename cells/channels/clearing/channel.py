"""The Channel: a signed request, a verified answer, and a verdict for whatever lies between."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import structlog

from cells.channels.clearing import rules
from cells.channels.clearing.messages import (
    BODY_BYTES_MAX,
    Malformed,
    Sender,
    decode,
    encode,
)
from cells.channels.clearing.options import ClearingOptions, options_of
from cells.channels.clearing.signing import (
    NONCE_HEADER,
    NotAuthentic,
    Signer,
    Verifier,
    read_signer,
    read_verifier,
)
from cells.channels.interface import (
    Listener,
    StatementFile,
    StatementMissing,
    StatementSource,
)
from cells.channels.model import (
    Answer,
    AnswerReason,
    ChannelSettings,
    Heard,
    Operation,
    Request,
    Verdict,
)

log = structlog.get_logger(__name__)

_PATH = "/v1/requests"
# Between tries to connect.
_PAUSE_S = 0.05


def open_channel(
    settings: ChannelSettings, listener: Listener, statements: StatementSource | None
) -> ClearingChannel:
    """Raises ValueError (pydantic's too) for options that are none, OSError for a missing key."""
    options = options_of(settings.options)
    return ClearingChannel(
        settings.name,
        options,
        read_signer(options.key_id, options.key_file),
        read_verifier(options.bank_keys),
        listener,
        statements,
    )


@dataclass(slots=True)
class _Asking:
    """A request, however often it is said."""

    request: Request
    body: bytes
    # So that only one answer of several is heard.
    is_answered: bool = False


class ClearingChannel:
    """What the clearing house says later comes by callbacks, to a process of their own; the
    listener hears answers that were only late."""

    def __init__(
        self,
        name: str,
        options: ClearingOptions,
        signer: Signer,
        verifier: Verifier,
        listener: Listener,
        statements: StatementSource | None = None,
    ) -> None:
        self._name = name
        self._options = options
        self._signer = signer
        self._verifier = verifier
        self._listener = listener
        self._statements = statements
        self._exchanges: set[asyncio.Task[Answer]] = set()
        self._sender = Sender(options.participant, options.callback_url)
        self._url = options.base_url.rstrip("/") + _PATH
        self._path = urlsplit(self._url).path
        self._tls = _tls_of(options)
        self._session: aiohttp.ClientSession | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def operations(self) -> frozenset[Operation]:
        return self._options.operations

    async def run(self) -> None:
        """Connections are made as requests need them; here they are closed at the end."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            for exchange in self._exchanges:
                exchange.cancel()
            session, self._session = self._session, None
            if session is not None:
                await session.close()

    async def fetch_statement(self, day: date, into: Path) -> StatementFile:
        if self._statements is None:
            raise StatementMissing(f"{self._name} has no source of statements")
        return await self._statements(day, into)

    async def perform(self, request: Request, timeout_s: float) -> Answer:
        operation = request.operation
        if operation not in self._options.operations:
            return rules.unsent(operation, AnswerReason.UNSUPPORTED)
        if operation is not Operation.QUERY and not 0 < request.amount <= self._options.amount_max:
            return rules.unsent(operation, AnswerReason.NOT_SENT, "an amount that it does not take")
        body = encode(request, self._sender)
        if operation is Operation.VOID:
            return await self._reverse(request, body, timeout_s)
        return await self._ask(_Asking(request, body), timeout_s)

    async def _reverse(self, request: Request, body: bytes, timeout_s: float) -> Answer:
        """Repeated until it is answered. It has one effect however often it is said; only silence
        would leave the money there."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        asking = _Asking(request, body)
        answer: Answer | None = None
        while True:
            begun = loop.time()
            rest_s = deadline - begun
            again = await self._ask(asking, min(rest_s, self._options.repeat_s))
            # What once may have left stays so, even if its repetition surely did not.
            if answer is None or again.reason is not AnswerReason.NOT_SENT:
                answer = again
            pause_s = begun + self._options.repeat_s - loop.time()
            if answer.verdict is not Verdict.UNKNOWN or loop.time() + pause_s >= deadline:
                return answer
            await asyncio.sleep(max(pause_s, 0.0))

    async def _ask(self, asking: _Asking, timeout_s: float) -> Answer:
        """The exchange goes on when whoever asked has gone: its answer is late, and heard."""
        if len(self._exchanges) >= self._options.in_flight_max:
            operation = asking.request.operation
            return rules.unsent(operation, AnswerReason.NOT_SENT, "too many under way")
        loop = asyncio.get_running_loop()
        # Kept, and ended by run(): a TaskGroup would end with the one who asks.
        exchange = loop.create_task(self._exchange(asking, timeout_s))
        self._exchanges.add(exchange)
        exchange.add_done_callback(self._exchanges.discard)
        answered = False
        try:
            async with asyncio.timeout(timeout_s):
                answer = await asyncio.shield(exchange)
            answered = True
            asking.is_answered |= answer.verdict is not Verdict.UNKNOWN
            return answer
        except TimeoutError:
            return rules.lost(AnswerReason.TIMED_OUT)
        finally:
            if not answered:
                exchange.add_done_callback(lambda late: self._hear_late(asking, late))

    def _hear_late(self, asking: _Asking, late: asyncio.Task[Answer]) -> None:
        # A query is asked again; its answer speaks of another request.
        if late.cancelled() or asking.is_answered or asking.request.operation is Operation.QUERY:
            return
        answer = late.result()
        if answer.verdict is not Verdict.UNKNOWN:
            asking.is_answered = True
            self._listener(Heard(self._name, asking.request.reference, answer))

    async def _exchange(self, asking: _Asking, timeout_s: float) -> Answer:
        loop = asyncio.get_running_loop()
        until = loop.time() + min(self._options.ready_wait_s, timeout_s / 2)
        while True:
            answer = await self._say(asking, timeout_s)
            if answer.reason is not AnswerReason.NOT_SENT or loop.time() + _PAUSE_S >= until:
                return answer
            await asyncio.sleep(_PAUSE_S)

    async def _say(self, asking: _Asking, timeout_s: float) -> Answer:
        request = asking.request
        headers = self._signer.request("POST", self._path, asking.body, int(time.time()))
        headers["Content-Type"] = "application/json"
        limits = aiohttp.ClientTimeout(
            total=timeout_s + self._options.late_s,
            sock_connect=min(self._options.connect_timeout_s, timeout_s),
        )
        try:
            async with self._opened().post(
                self._url,
                data=asking.body, headers=headers, timeout=limits, allow_redirects=False,
                ssl=self._tls,
            ) as response:  # fmt: skip
                said = b""
                async for piece in response.content.iter_any():
                    said += piece
                    if len(said) > BODY_BYTES_MAX:
                        return rules.lost(AnswerReason.MALFORMED, "an endless answer")
                return self._heard(request, headers[NONCE_HEADER], response, said)
        except (
            aiohttp.ClientConnectorError,
            aiohttp.ClientConnectorCertificateError,
            aiohttp.ConnectionTimeoutError,
        ) as error:
            # Not a byte of the request has left.
            return rules.unsent(request.operation, AnswerReason.NOT_SENT, type(error).__name__)
        except TimeoutError:
            return rules.lost(AnswerReason.TIMED_OUT)
        except (aiohttp.ClientError, OSError) as error:
            return rules.lost(AnswerReason.CONNECTION_LOST, type(error).__name__)

    def _heard(
        self, request: Request, nonce: str, response: aiohttp.ClientResponse, said: bytes
    ) -> Answer:
        try:
            self._verifier.answer(response.headers, response.status, nonce, said)
            return rules.answer_of(request, decode(said), self._options.codes)
        except NotAuthentic as error:
            log.warning(
                "an answer is not the bank's", channel=self._name, reference=request.reference,
                status=response.status, why=str(error),
            )  # fmt: skip
            return rules.lost(AnswerReason.NOT_AUTHENTIC, f"status {response.status}: {error}")
        except Malformed as error:
            return rules.lost(AnswerReason.MALFORMED, str(error))

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._options.connections_max),
                auto_decompress=False,
            )
        return self._session


def _tls_of(options: ClearingOptions) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.ca or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if options.certificate:
        context.load_cert_chain(options.certificate, options.certificate_key)
    return context
