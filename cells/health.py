"""Tells the control plane how this process's payments fare: figures in etcd, under a lease.

A health check shows that a process answers; only payments show that it can pay (pitfall 25). What
the figures mean is decided there, by control/verdicts.py.
"""

from __future__ import annotations

import asyncio
import json
import uuid

import structlog

from cells.settings import CellSettings
from router.store.model import CELL_HEALTH_PREFIX, Lease, Store, StoreUnavailable
from router.tally import Tally

log = structlog.get_logger(__name__)

# Half of the window that the control plane judges by.
_INTERVAL_S = 0.5


class Reporter:
    def __init__(self, store: Store, settings: CellSettings, tally: Tally) -> None:
        self._store = store
        # The counters are this process's: with it they begin anew, and under another name.
        self._key = f"{CELL_HEALTH_PREFIX}{settings.cell}/{uuid.uuid4().hex[:12]}"
        self._tally = tally
        self._ttl_s = settings.lease_ttl_s
        self._lease: Lease | None = None
        self._refresh_at = 0.0
        self._told = ""

    async def run(self) -> None:
        """Reports what has changed, for ever; what etcd does not hear it hears later."""
        while True:
            await asyncio.sleep(_INTERVAL_S)
            ok, failed, buckets = self._tally.look()
            try:
                await self._tell(json.dumps({"ok": ok, "failed": failed, "buckets": buckets}))
            except StoreUnavailable as error:
                self._lease = None
                log.debug("etcd is away; it does not hear how payments fare", error=str(error))

    async def _tell(self, figures: str) -> None:
        now = asyncio.get_running_loop().time()
        if self._lease is not None and now >= self._refresh_at:
            self._refresh_at = now + self._ttl_s / 4
            if not await self._lease.refresh():
                self._lease = None
        if self._lease is None:
            self._lease = await self._store.lease(self._ttl_s)
            self._refresh_at = now + self._ttl_s / 4
            self._told = ""
        if figures != self._told:
            await self._store.commit(expect={}, puts={self._key: figures}, lease=self._lease)
            self._told = figures
