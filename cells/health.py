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
from router.store.leased import LeasedValue
from router.store.model import CELL_HEALTH_PREFIX, Store, StoreUnavailable
from router.tally import Tally

log = structlog.get_logger(__name__)

# Half of the window that the control plane judges by.
_INTERVAL_S = 0.5


class Reporter:
    def __init__(self, store: Store, settings: CellSettings, tally: Tally) -> None:
        # The counters are this process's: with it they begin anew, and under another name.
        key = f"{CELL_HEALTH_PREFIX}{settings.cell}/{uuid.uuid4().hex[:12]}"
        self._figures = LeasedValue(store, key, settings.lease_ttl_s)
        self._tally = tally

    async def run(self) -> None:
        """Reports what has changed, for ever; what etcd does not hear it hears later."""
        while True:
            await asyncio.sleep(_INTERVAL_S)
            ok, failed, buckets = self._tally.look()
            try:
                new = self._tally.newcomers
                newcomers = {"ok": new.ok, "failed": new.failed, "buckets": new.buckets}
                figures = {"ok": ok, "failed": failed, "buckets": buckets, "newcomers": newcomers}
                await self._figures.tell(json.dumps(figures))
            except StoreUnavailable as error:
                log.debug("etcd is away; it does not hear how payments fare", error=str(error))
