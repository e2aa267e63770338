"""What a process tells of itself: one key under a lease of its own, gone with the process."""

from __future__ import annotations

import asyncio

from router.store.model import Lease, Store, StoreUnavailable


class LeasedValue:
    """One key. It keeps nothing that the store did not confirm, so whatever failed is told anew."""

    def __init__(self, store: Store, key: str, ttl_s: int) -> None:
        self._store = store
        self._key = key
        self._ttl_s = ttl_s
        self._lease: Lease | None = None
        self._refresh_at = 0.0
        self._told = ""

    async def tell(self, value: str) -> None:
        """Puts the value if it is another than before, and keeps the lease; to be called more
        often than the lease is long. Raises StoreUnavailable."""
        try:
            await self._tell(value)
        except StoreUnavailable:
            # The next call begins with another lease: this one may have run out meanwhile.
            self._lease = None
            raise

    async def _tell(self, value: str) -> None:
        now = asyncio.get_running_loop().time()
        if self._lease is not None and now >= self._refresh_at:
            self._refresh_at = now + self._ttl_s / 4
            if not await self._lease.refresh():
                self._lease = None
        if self._lease is None:
            self._lease = await self._store.lease(self._ttl_s)
            self._refresh_at = now + self._ttl_s / 4
            self._told = ""
        if value != self._told:
            await self._store.commit(expect={}, puts={self._key: value}, lease=self._lease)
            self._told = value
