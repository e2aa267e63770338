"""Who runs operations: the controller that holds the leader's key under a lease.

Leadership only avoids double work. Two leaders for a moment do no harm: every change that they
make is a compare-and-set (pitfall 7).
"""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from router.store.model import LEADER_KEY, Lease, Store, StoreUnavailable

log = structlog.get_logger(__name__)


class Leadership:
    def __init__(self, store: Store, name: str, ttl_s: int) -> None:
        self._store = store
        self._name = name
        self._ttl_s = ttl_s
        self._lease: Lease | None = None
        self._leads = False
        # Loop time until which absent leases prove nothing: the store itself was away.
        self.unsettled_until = 0.0
        self.changed = asyncio.Event()

    @property
    def leads(self) -> bool:
        return self._leads

    async def run(self) -> None:
        """Campaigns and keeps the lease, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self._once()
            except StoreUnavailable as error:
                # Leases may have run out only because nobody could refresh them.
                self.unsettled_until = loop.time() + 3 * self._ttl_s
                log.warning("etcd is away", why=str(error))
            await asyncio.sleep(self._ttl_s / 4)

    async def _once(self) -> None:
        if self._lease is not None and not await self._lease.refresh():
            self._lease = None
            self._set(False)
        if self._lease is None:
            self._lease = await self._store.lease(self._ttl_s)
        if not self._leads:
            try:
                won = await self._store.commit(
                    expect={LEADER_KEY: 0}, puts={LEADER_KEY: self._name}, lease=self._lease
                )
            except StoreUnavailable:
                # It may have been applied: the key would then stand under a lease that we keep
                # alive, and nobody would ever lead. The next round begins with another lease; this
                # one is given back, or runs out.
                lost, self._lease = self._lease, None
                with contextlib.suppress(StoreUnavailable):
                    await lost.revoke()
                raise
            self._set(won is not None)

    def _set(self, leads: bool) -> None:
        if leads == self._leads:
            return
        self._leads = leads
        log.info("leads" if leads else "leads no more", controller=self._name)
        self.changed.set()
        self.changed = asyncio.Event()

    async def resign(self) -> None:
        self._set(False)
        if self._lease is not None:
            try:
                await self._lease.revoke()
            except StoreUnavailable:
                log.warning("etcd is away; the lease runs out by itself")
