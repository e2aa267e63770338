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
        self.keys: set[str] = set()
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
        self._store.drop(self.keys)

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
    """`available` False makes every call raise StoreUnavailable, as an etcd that is away does."""

    def __init__(self) -> None:
        self.available = True
        self._items: dict[str, Item] = {}
        self._revision = 1
        self._changed = asyncio.Event()

    def check(self) -> None:
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
            if isinstance(lease, MemoryLease):
                lease.keys.add(key)
        for key in deletes:
            self._items.pop(key, None)
        self._wake()
        return self._revision

    def drop(self, keys: Iterable[str]) -> None:
        self._revision += 1
        for key in keys:
            self._items.pop(key, None)
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
            if self.available:
                listing = await self.list(prefix)
                if listing.items != seen:
                    seen = listing.items
                    yield listing
                    continue
            await changed.wait()

    async def close(self) -> None:
        """Nothing is open."""
