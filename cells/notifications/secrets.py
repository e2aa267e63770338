"""Merchants' webhook secrets at rest: wrapped by the vault's KMS, bound to their merchant.

Rows of before hold a secret as it is; `Sealing` replaces them in the background, and what a
replaced master key has wrapped. A cell without a KMS has nothing to seal with, and does not.
"""

from __future__ import annotations

import asyncio
import base64
import random
from typing import NamedTuple

import grpc
import structlog
from sqlalchemy import or_, select

from cells.answers import resource_of
from cells.ledger.worker import Lanes
from cells.notifications.model import Endpoint
from cells.notifications.rules import ResealEndpoint
from cells.notifications.tables import ENDPOINTS, endpoints
from cells.reading import ReadEngine, any_slot, fetch
from cells.vault.kms import Kms, KmsFault, KmsRefused, NoKms, Wrapped
from router.errors import Refusal
from router.guard import SlotsHere

log = structlog.get_logger(__name__)

_BATCH_MAX = 256


class Sealed(NamedTuple):
    """As a row holds it: sealed, or, without a KMS, as it is."""

    plain: bytes
    sealed: str
    kms_version: str


def _context(merchant_id: str) -> bytes:
    return f"cellpay.webhook.1/{merchant_id}".encode()


class Secrets:
    """Raises Refusal when the KMS cannot be asked."""

    def __init__(self, kms: Kms) -> None:
        self._kms = kms
        self.seals = not isinstance(kms, NoKms)

    async def seal(self, merchant_id: str, secret: bytes) -> Sealed:
        if not self.seals:
            return Sealed(secret, "", "")
        try:
            wrapped = await self._kms.wrap(secret, _context(merchant_id))
        except KmsFault as fault:
            raise _unavailable(fault) from None
        return Sealed(b"", base64.b64encode(wrapped.data).decode("ascii"), wrapped.version)

    async def open(self, endpoint: Endpoint) -> bytes:
        if not endpoint.secret_sealed:
            return endpoint.secret
        wrapped = Wrapped(endpoint.kms_version, base64.b64decode(endpoint.secret_sealed))
        try:
            return await self._kms.unwrap(wrapped, _context(endpoint.endpoint_id))
        except KmsRefused:
            log.error("a webhook's secret does not open", merchant=endpoint.endpoint_id, audit=True)
            raise Refusal(
                grpc.StatusCode.DATA_LOSS, "SEAL_BROKEN", "what was sealed does not open"
            ) from None
        except KmsFault as fault:
            raise _unavailable(fault) from None

    async def current_version(self) -> str:
        try:
            return await self._kms.current_version()
        except KmsFault as fault:
            raise _unavailable(fault) from None


def _unavailable(fault: KmsFault) -> Refusal:
    log.warning("webhook secrets: the KMS cannot be asked", why=str(fault))
    return Refusal(grpc.StatusCode.UNAVAILABLE, "KMS_UNAVAILABLE", str(fault), retry_after_ms=1000)


class Sealing:
    def __init__(
        self, lanes: Lanes, engine: ReadEngine, here: SlotsHere, secrets: Secrets, interval_s: float
    ) -> None:
        self._lanes = lanes
        self._engine = engine
        self._here = here
        self._secrets = secrets
        self._interval_s = interval_s

    async def run(self) -> None:
        """Seals what is not sealed by the KMS's key of today, for ever."""
        while self._secrets.seals:
            await asyncio.sleep(random.uniform(0.5, 1.0) * self._interval_s)
            try:
                await self.look()
            except Refusal as refusal:
                log.info("webhook secrets wait to be sealed", reason=refusal.reason)
            except Exception as error:
                log.warning("webhook secrets wait to be sealed", error=type(error).__name__)

    async def look(self) -> int:
        """One batch of this cell's slots; returns how many rows there were."""
        current = await self._secrets.current_version()
        statement = (
            select(*(endpoints.c[name] for name in ENDPOINTS.fields))
            .where(
                endpoints.c.slot == any_slot(self._here.owned()),
                or_(endpoints.c.secret_sealed == "", endpoints.c.kms_version != current),
            )
            .limit(_BATCH_MAX)
        )
        rows = [Endpoint(*row) for row in await fetch(self._engine, statement)]
        for row in rows:
            secret = await self._secrets.open(row)
            sealed = await self._secrets.seal(row.endpoint_id, secret)
            command = ResealEndpoint(row, sealed.plain, sealed.sealed, sealed.kms_version)
            resource_of(await self._lanes.submit(command))
        return len(rows)
