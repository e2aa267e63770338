"""Webhooks: sends what is due to merchants' endpoints, which may be slow, broken or hostile.

    due ──▶ claim, fenced ──▶ POST, signed, no transaction open ──▶ end the attempt, fenced

At least once: whoever dies or loses the slot in between, the claim ends and the delivery is due
again; the receiver sorts out repeats by webhook-id. Its own process and bounded everywhere, so that
no endpoint can hold up another, let alone a payment (pitfall 20).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import structlog

from cells.answers import resource_of
from cells.cancellation import go_on_unless_cancelled
from cells.ledger.worker import Lanes
from cells.notifications.cooldown import CoolDowns
from cells.notifications.model import Delivery, Retrying
from cells.notifications.rules import (
    ClaimDelivery,
    EndAttempt,
    backoff_ceiling_s,
    public_address,
    public_signature,
    signature,
    signed_content,
)
from cells.notifications.secrets import Secrets
from cells.notifications.store import Due, due_deliveries
from cells.reading import ReadEngine
from cells.settings import WebhookSettings
from router.errors import Refusal
from router.signing.keys import Signer
from router.tracing.model import SpanKind
from router.tracing.rules import TRACEPARENT
from router.tracing.tracer import Tracer, root
from router.waiting import heard

log = structlog.get_logger(__name__)

# An attempt's claim outlives its time-out by this much: the time to write down how it ended.
_CLAIM_MARGIN_S = 10.0
_COOL_DOWN_CAP_S = 60.0
# An answer that takes longer than this part of the time-out is slow.
_SLOW_PART = 0.5
# One endpoint may take this part of the connections.
_SHARE_PER_ENDPOINT = 4
_RESPONSE_BYTES_MAX = 16 * 1024
_READ_AHEAD = 4
_BACKOFF_BASE_S = 0.2
_BACKOFF_CAP_S = 5.0


class AddressRefused(OSError):
    """The host is at an address that is not of the public Internet."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How the endpoint took it. `error` empty: it has it."""

    error: str
    took_s: float


class Webhooks:
    def __init__(
        self,
        lanes: Lanes,
        engine: ReadEngine,
        cell: str,
        redis_url: str,
        settings: WebhookSettings,
        *,
        secrets: Secrets,
        signer: Callable[[], Signer | None],
        allow_private: bool,
        tracer: Tracer | None = None,
    ) -> None:
        """`signer`: our own key, by which a merchant knows us without a secret; None while there
        is none."""
        self._secrets = secrets
        self._signer = signer
        self._tracer = tracer
        self._lanes = lanes
        self._engine = engine
        self._cell = cell
        self._settings = settings
        self._allow_private = allow_private
        self._retrying = Retrying(
            settings.attempts_max, settings.backoff_base_s, settings.backoff_cap_s
        )
        self._cool_downs = CoolDowns(redis_url)
        self._share_max = max(1, settings.concurrency_max // _SHARE_PER_ENDPOINT)
        # Delivery ID → merchant.
        self._in_flight: dict[str, str] = {}
        self._freed = asyncio.Event()
        self._stopping = False

    def stop(self) -> None:
        """Takes nothing new; `run` returns when what is under way has ended."""
        self._stopping = True
        self._freed.set()

    async def run(self) -> None:
        """Sends for ever; waits out a database that is away."""
        failures = 0
        try:
            async with (
                client_session(self._settings, allow_private=self._allow_private) as session,
                asyncio.TaskGroup() as group,
            ):
                while not self._stopping:
                    go_on_unless_cancelled()
                    self._freed.clear()
                    try:
                        begun = await self._begin_due(session, group)
                    except Exception as error:
                        failures += 1
                        log.warning("webhooks wait", error=type(error).__name__, tries=failures)
                        await self._pause(_backoff_s(failures))
                        continue
                    failures = 0
                    if not begun:
                        await self._pause(self._settings.poll_interval_s)
        finally:
            await self._cool_downs.close()

    async def _pause(self, seconds: float) -> None:
        """Until then, or until an attempt has ended."""
        await heard(self._freed, seconds)

    async def _begin_due(self, session: aiohttp.ClientSession, group: asyncio.TaskGroup) -> int:
        """Begins what is due and has room; returns how many."""
        room = self._settings.concurrency_max - len(self._in_flight)
        if room <= 0:
            return 0
        busy = Counter(self._in_flight.values())
        full = {merchant for merchant, count in busy.items() if count >= self._share_max}
        due = await due_deliveries(
            self._engine,
            self._cell,
            without=full | await self._cool_downs.cooling(),
            count_max=room * _READ_AHEAD,
        )
        begun = 0
        for item in due:
            delivery = item.delivery
            merchant_id = delivery.merchant_id
            if begun == room or self._stopping:
                break
            if delivery.delivery_id in self._in_flight or busy[merchant_id] >= self._share_max:
                continue
            busy[merchant_id] += 1
            begun += 1
            self._in_flight[delivery.delivery_id] = merchant_id
            group.create_task(self._deliver(session, item))
        return begun

    async def _deliver(self, session: aiohttp.ClientSession, item: Due) -> None:
        """One attempt. Never raises: one delivery's trouble must not stop the others."""
        identifier = item.delivery.delivery_id
        try:
            await self._attempt(session, item)
        except Refusal as refusal:
            # The slot has moved, or the database is away: the claim ends, it is due again.
            log.info("an attempt has no end yet", delivery=identifier, reason=refusal.reason)
        except Exception as error:
            log.warning("an attempt broke", delivery=identifier, error=type(error).__name__)
        finally:
            del self._in_flight[identifier]
            self._freed.set()

    async def _attempt(self, session: aiohttp.ClientSession, item: Due) -> None:
        settings = self._settings
        # Before the claim: an attempt counts, and without the KMS none is made.
        secret = await self._secrets.open(item.endpoint)
        claimed: Delivery | None = resource_of(
            await self._lanes.submit(
                ClaimDelivery(
                    item.delivery.slot, item.delivery.delivery_id,
                    settings.timeout_s + _CLAIM_MARGIN_S, settings.attempts_max,
                )
            )
        )  # fmt: skip
        if claimed is None:
            return
        with root(self._tracer, "webhook", SpanKind.CLIENT, claimed.traceparent) as watching:
            unix_s = int(time.time())
            told = claimed._replace(traceparent=watching.traceparent)
            headers = signature_headers(told, secret, self._signer(), unix_s)
            answer = await send(session, told, item.endpoint.url, headers)
            watching.note(delivery_id=claimed.delivery_id, attempt=claimed.attempts)
            watching.fail(answer.error)
        await self._note(claimed.merchant_id, answer)
        ended: Delivery = resource_of(
            await self._lanes.submit(
                EndAttempt(
                    claimed.slot, claimed.delivery_id, claimed.attempts, answer.error,
                    random.random(), self._retrying,
                )
            )
        )  # fmt: skip
        log.info(
            "webhook",
            delivery=ended.delivery_id,
            state=ended.state,
            attempts=claimed.attempts,
            error=answer.error,
        )

    async def _note(self, merchant_id: str, answer: Answer) -> None:
        """What the answer says of the endpoint: a failing or slow one cools down."""
        if answer.error:
            failures = await self._cool_downs.count_failure(merchant_id)
            ceiling_s = backoff_ceiling_s(failures, self._settings.backoff_base_s, _COOL_DOWN_CAP_S)
            await self._cool_downs.cool(merchant_id, ceiling_s)
        elif answer.took_s > self._settings.timeout_s * _SLOW_PART:
            await self._cool_downs.cool(merchant_id, answer.took_s)
        else:
            await self._cool_downs.forget(merchant_id)


def client_session(settings: WebhookSettings, *, allow_private: bool) -> aiohttp.ClientSession:
    """Sends nothing but what we put in: no cookies, no proxies, no reused connections."""
    connector = aiohttp.TCPConnector(
        limit=settings.concurrency_max,
        force_close=True,
        use_dns_cache=False,
        # Asked for each connection with the address that it goes to: whatever a name resolved to
        # before, and however an address is written (SSRF, DNS rebinding).
        socket_factory=_any_socket if allow_private else _public_socket,
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=settings.timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        headers={"User-Agent": "Cellpay-Webhooks/1"},
    )


def signature_headers(
    delivery: Delivery, secret: bytes, signer: Signer | None, unix_s: int
) -> dict[str, str]:
    """By the merchant's secret and, with ours, for whoever trusts no secret that two know."""
    webhook_id = delivery.delivery_id
    signatures = [signature(secret, webhook_id, unix_s, delivery.body)]
    headers = {
        **({TRACEPARENT: delivery.traceparent} if delivery.traceparent else {}),
        "Content-Type": "application/json",
        "webhook-id": webhook_id,
        "webhook-timestamp": str(unix_s),
    }
    if signer is not None:
        content = signed_content(webhook_id, unix_s, delivery.body)
        signatures.append(public_signature(signer.sign_bytes(content)))
        headers["webhook-key-id"] = signer.key_id
    return {**headers, "webhook-signature": " ".join(signatures)}


async def send(
    session: aiohttp.ClientSession, delivery: Delivery, url: str, headers: Mapping[str, str]
) -> Answer:
    """Posts it once. Any 2xx is a yes; redirects are not followed."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    try:
        async with session.post(
            url,
            data=delivery.body.encode(),
            headers=headers,
            allow_redirects=False,
        ) as response:
            error = "" if 200 <= response.status < 300 else f"HTTP {response.status}"
            await _read_little(response)
    except TimeoutError:
        error = "no answer in time"
    except aiohttp.ClientConnectorError as fault:
        refused = isinstance(fault.os_error, AddressRefused)
        error = "the address is not public" if refused else f"no connection: {_name(fault)}"
    except (aiohttp.ClientError, OSError, ValueError) as fault:
        error = f"no answer: {_name(fault)}"
    return Answer(error, loop.time() - begun)


async def _read_little(response: aiohttp.ClientResponse) -> None:
    """Lets the receiver finish a short answer; what it says after its status does not count."""
    left = _RESPONSE_BYTES_MAX
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        while left > 0:
            chunk = await response.content.read(left)
            if not chunk:
                return
            left -= len(chunk)


def _any_socket(address: Any) -> socket.socket:
    family, kind, protocol, _, _ = address
    return socket.socket(family, kind, protocol)


def _public_socket(address: Any) -> socket.socket:
    host = address[4][0]
    if not public_address(host):
        raise AddressRefused(f"{host} is not a public address")
    return _any_socket(address)


def _name(error: BaseException) -> str:
    return type(error).__name__


def _backoff_s(failures: int) -> float:
    return random.uniform(0.2, 1.0) * min(
        _BACKOFF_CAP_S, _BACKOFF_BASE_S * 2.0 ** min(failures, 10)
    )
