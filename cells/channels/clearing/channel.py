"""The Channel: a signed request, a verified answer, and a verdict for whatever lies between."""

from __future__ import annotations

import asyncio
import ssl
import time
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
    Operation,
    Request,
    Verdict,
)

log = structlog.get_logger(__name__)

_PATH = "/v1/requests"


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
        statements,
    )


class ClearingChannel:
    """Late answers come as callbacks, to a process of their own: it needs no listener."""

    def __init__(
        self,
        name: str,
        options: ClearingOptions,
        signer: Signer,
        verifier: Verifier,
        statements: StatementSource | None = None,
    ) -> None:
        self._name = name
        self._options = options
        self._signer = signer
        self._verifier = verifier
        self._statements = statements
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
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        body = encode(request, self._sender)
        answer = await self._ask(request, body, timeout_s)
        while operation is Operation.VOID and answer.verdict is Verdict.UNKNOWN:
            # It has one effect however often it is said; only silence would leave the money there.
            rest_s = deadline - loop.time()
            if rest_s <= self._options.repeat_s:
                return answer
            await asyncio.sleep(self._options.repeat_s)
            again = await self._ask(request, body, deadline - loop.time())
            # What once may have left stays so, even if its repetition surely did not.
            if again.reason is not AnswerReason.NOT_SENT:
                answer = again
        return answer

    async def _ask(self, request: Request, body: bytes, timeout_s: float) -> Answer:
        headers = self._signer.request("POST", self._path, body, int(time.time()))
        headers["Content-Type"] = "application/json"
        nonce = headers[NONCE_HEADER]
        connect_s = min(self._options.connect_timeout_s, timeout_s)
        limits = aiohttp.ClientTimeout(total=timeout_s, sock_connect=connect_s)
        try:
            async with self._opened().post(
                self._url,
                data=body, headers=headers, timeout=limits, allow_redirects=False, ssl=self._tls,
            ) as response:  # fmt: skip
                said = await response.content.read(BODY_BYTES_MAX + 1)
                while len(said) <= BODY_BYTES_MAX and not response.content.at_eof():
                    said += await response.content.read(BODY_BYTES_MAX + 1 - len(said))
                return self._heard(request, nonce, response, said)
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
