"""The store in memory: for tests of what sits on top of it. One process, nothing durable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping

from router.store.model import Item, Lease, Listing, StoreUnavailable


class MemoryLease:
    def __init__(self, store: MemoryStore, ttl_s: int) -> None:
        self._store = store
        self._ttl_s = ttl_s
        self.alive = True
        self._task_until = 0.0
        self._renew()

    @property
    def ttl_s(self) -> int:
        return self._ttl_s

    def _renew(self) -> None:
        loop = asyncio.get_running_loop()
        self._task_until = loop.time() + self._ttl_s
        loop.call_later(self._ttl_s, self._expire_if_due)

    def _expire_if_due(self) -> None:
        if self.alive and asyncio.get_running_loop().time() >= self._task_until:
            self.expire()

    def expire(self) -> None:
        self.alive = False
        self._store.drop(self)

    async def refresh(self) -> bool:
        self._store.check()
        if self.alive:
            self._renew()
        return self.alive

    async def revoke(self) -> None:
        self._store.check()
        if self.alive:
            self.expire()


class MemoryStore:
    """`available` False makes every call raise StoreUnavailable, as an etcd that is away does.

    No call awaits between a check and its effect, so each is atomic.
    """

    def __init__(self) -> None:
        self.available = True
        self._items: dict[str, Item] = {}
        # A key is under the lease of its last put, or under none.
        self._lease_of: dict[str, Lease | None] = {}
        self._closed = False
        self._revision = 1
        self._changed = asyncio.Event()

    def check(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if not self.available:
            raise StoreUnavailable("the store is away")

    async def get(self, key: str) -> Item | None:
        self.check()
        return self._items.get(key)

    async def list(self, prefix: str) -> Listing:
        self.check()
        return Listing(
            {key: item for key, item in self._items.items() if key.startswith(prefix)},
            self._revision,
        )

    async def commit(
        self,
        *,
        expect: Mapping[str, int],
        puts: Mapping[str, str],
        deletes: Iterable[str] = (),
        lease: Lease | None = None,
    ) -> int | None:
        self.check()
        for key, revision in expect.items():
            item = self._items.get(key)
            if (item.revision if item else 0) != revision:
                return None
        if lease is not None and not (isinstance(lease, MemoryLease) and lease.alive):
            raise StoreUnavailable("the lease has expired")
        self._revision += 1
        for key, value in puts.items():
            self._items[key] = Item(key, value, self._revision)
            self._lease_of[key] = lease
        for key in deletes:
            self._items.pop(key, None)
            self._lease_of.pop(key, None)
        self._wake()
        return self._revision

    def drop(self, lease: MemoryLease) -> None:
        """Takes the lease's keys away, as one change."""
        keys = [key for key, holder in self._lease_of.items() if holder is lease]
        self._revision += bool(keys)
        for key in keys:
            del self._items[key], self._lease_of[key]
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def lease(self, ttl_s: int) -> MemoryLease:
        self.check()
        return MemoryLease(self, ttl_s)

    async def watch(self, prefix: str) -> AsyncIterator[Listing]:
        seen: Mapping[str, Item] | None = None
        while True:
            changed = self._changed
            if self.available or self._closed:
                listing = await self.list(prefix)
                if listing.items != seen:
                    seen = listing.items
                    yield listing
                    continue
            await changed.wait()

    async def close(self) -> None:
        self._closed = True
        self._wake()
