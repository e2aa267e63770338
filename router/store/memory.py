"""The store in memory: what etcd promises, in one process, for tests and for trying things out.

It keeps to the same contract as `etcd.py` (tests/integration/test_store_contract.py); a property
test that runs on it therefore says something about the store in earnest.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping

from router.store.model import Item, Lease, Listing, StoreUnavailable

_CLOSED = "the store is closed"


class MemoryLease:
    def __init__(self, store: MemoryStore, identifier: int, ttl_s: int) -> None:
        self._store = store
        self.identifier = identifier
        self._ttl_s = ttl_s

    @property
    def ttl_s(self) -> int:
        return self._ttl_s

    async def refresh(self) -> bool:
        return self._store.refresh(self)

    async def revoke(self) -> None:
        self._store.expire([self.identifier])


class MemoryStore:
    """Nothing in it awaits between a check and its effect, so each call is atomic.

    `now_s` is the clock of leases: a test that turns it also calls `tick`.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._items: dict[str, Item] = {}
        # As in etcd, the first write is revision 2.
        self._revision = 1
        self._lease_numbers = itertools.count(1)
        self._lease_ends: dict[int, float] = {}
        self._lease_of_key: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._closed = False

    async def get(self, key: str) -> Item | None:
        self.tick()
        return self._items.get(key)

    async def list(self, prefix: str) -> Listing:
        self.tick()
        return self._listing(prefix)

    async def commit(
        self,
        *,
        expect: Mapping[str, int],
        puts: Mapping[str, str],
        deletes: Iterable[str] = (),
        lease: Lease | None = None,
    ) -> int | None:
        self.tick()
        gone = set(deletes)
        assert not gone & set(puts), "etcd refuses to put and delete a key in one commit"
        lease_id = self._identifier(lease)
        if any(self._revision_of(key) != revision for key, revision in expect.items()):
            return None
        if lease_id and lease_id not in self._lease_ends:
            raise StoreUnavailable("the lease has expired")
        if not puts and not gone & set(self._items):
            return self._revision
        self._revision += 1
        for key, value in puts.items():
            self._items[key] = Item(key, value, self._revision)
            self._lease_of_key[key] = lease_id
        for key in gone:
            self._items.pop(key, None)
            self._lease_of_key.pop(key, None)
        self._wake()
        return self._revision

    async def lease(self, ttl_s: int) -> MemoryLease:
        self.tick()
        lease = MemoryLease(self, next(self._lease_numbers), ttl_s)
        self._lease_ends[lease.identifier] = self._now_s() + ttl_s
        return lease

    async def watch(self, prefix: str) -> AsyncIterator[Listing]:
        shown: Mapping[str, Item] | None = None
        while True:
            # Taken before reading: a change made while the consumer works is not missed.
            changed = self._changed
            self.tick()
            listing = self._listing(prefix)
            if listing.items != shown:
                shown = listing.items
                yield listing
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._until_next_end_s()):
                    await changed.wait()

    async def close(self) -> None:
        self._closed = True
        self._wake()

    def refresh(self, lease: MemoryLease) -> bool:
        self.tick()
        if lease.identifier not in self._lease_ends:
            return False
        self._lease_ends[lease.identifier] = self._now_s() + lease.ttl_s
        return True

    def tick(self) -> None:
        """Lets leases run out whose time has come. Raises StoreUnavailable once closed."""
        if self._closed:
            raise StoreUnavailable(_CLOSED)
        now_s = self._now_s()
        self.expire([lease for lease, end_s in self._lease_ends.items() if end_s <= now_s])

    def expire(self, leases: Iterable[int]) -> None:
        """Ends the leases and takes their keys away, as one change."""
        ended = {lease for lease in leases if self._lease_ends.pop(lease, None) is not None}
        keys = [key for key, lease in self._lease_of_key.items() if lease in ended]
        if not keys:
            return
        self._revision += 1
        for key in keys:
            del self._items[key]
            del self._lease_of_key[key]
        self._wake()

    def _identifier(self, lease: Lease | None) -> int:
        if lease is None:
            return 0
        assert isinstance(lease, MemoryLease), "a lease of another store"
        return lease.identifier

    def _revision_of(self, key: str) -> int:
        item = self._items.get(key)
        return item.revision if item else 0

    def _listing(self, prefix: str) -> Listing:
        found = {key: self._items[key] for key in sorted(self._items) if key.startswith(prefix)}
        return Listing(found, self._revision)

    def _until_next_end_s(self) -> float | None:
        if not self._lease_ends:
            return None
        return max(0.0, min(self._lease_ends.values()) - self._now_s())

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
