"""A store whose audit records are links of one chain, whoever writes them.

It wraps a store: a commit that puts audit records gets them linked behind the head, and the head
compared and set in that same commit. Two writers at once: one of them links anew behind the other's
record. Its own conditions are not touched by that: `None` still means that one of *them* failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping

import structlog

from control.approvals.clearance import Clearance, current_clearance
from control.chain.rules import Head, Verdict, digest_of_unchained, is_chained, link, verify
from router.store.model import AUDIT_PREFIX, Item, Lease, Listing, Store, StoreUnavailable

log = structlog.get_logger(__name__)

# Records and head in one listing.
_ALL_PREFIX = AUDIT_PREFIX.rstrip("/")
AUDIT_HEAD_KEY = f"{_ALL_PREFIX}-head"
# Each try lost to another writer who got on; so many in a row are not an accident.
_TRIES_MAX = 200


class ChainedStore:
    """Looks like the store that it wraps, and is one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # Writers of this process take turns, so that only other controllers are lost to.
        self._turn = asyncio.Lock()

    async def get(self, key: str) -> Item | None:
        return await self._store.get(key)

    async def list(self, prefix: str) -> Listing:
        return await self._store.list(prefix)

    async def lease(self, ttl_s: int) -> Lease:
        return await self._store.lease(ttl_s)

    def watch(self, prefix: str) -> AsyncIterator[Listing]:
        return self._store.watch(prefix)

    async def close(self) -> None:
        await self._store.close()

    async def commit(
        self,
        *,
        expect: Mapping[str, int],
        puts: Mapping[str, str],
        deletes: Iterable[str] = (),
        lease: Lease | None = None,
    ) -> int | None:
        records = {key: value for key, value in puts.items() if key.startswith(AUDIT_PREFIX)}
        if not records:
            return await self._store.commit(expect=expect, puts=puts, deletes=deletes, lease=lease)
        assert lease is None, "an audit record must not vanish with a lease"
        clearance = current_clearance()
        if clearance is not None:
            records = {key: clearance.marked(value) for key, value in records.items()}
            expect = {**expect, **clearance.expect}
            puts = {**puts, **clearance.puts}
        others = {key: value for key, value in puts.items() if key not in records}
        async with self._turn:
            revision = await self._linked(expect, others, records, tuple(deletes))
        if clearance is not None:
            await self._settle(clearance, committed=revision is not None)
        return revision

    async def _linked(
        self,
        expect: Mapping[str, int],
        others: Mapping[str, str],
        records: Mapping[str, str],
        deletes: tuple[str, ...],
    ) -> int | None:
        for _ in range(_TRIES_MAX):
            item = await self._store.get(AUDIT_HEAD_KEY)
            before = Head.from_json(item.value) if item else None
            unchained = "" if before else await self._digest()
            links, head = link(before, unchained, records.items())
            revision = await self._store.commit(
                expect={**expect, AUDIT_HEAD_KEY: item.revision if item else 0},
                puts={**others, **links, AUDIT_HEAD_KEY: head.to_json()},
                deletes=deletes,
            )
            if revision is not None:
                log.info("audit", record=head.audit_id, sequence=head.sequence, sha256=head.sha256)
                return revision
            if not await self._holds(expect):
                return None
        raise StoreUnavailable("the audit log's head is never free")

    async def _digest(self) -> str:
        listing = await self._store.list(AUDIT_PREFIX)
        values = {key: item.value for key, item in listing.items.items()}
        return digest_of_unchained(
            {key: value for key, value in values.items() if not is_chained(value)}
        )

    async def _holds(self, expect: Mapping[str, int]) -> bool:
        for key, revision in expect.items():
            item = await self._store.get(key)
            if (item.revision if item else 0) != revision:
                return False
        return True

    async def _settle(self, clearance: Clearance, *, committed: bool) -> None:
        """An approval is good for one change; that it was this one's fault is said as such."""
        if committed:
            clearance.spent()
        elif not await self._holds(clearance.expect):
            raise clearance.refused()


async def verify_audit_log(store: Store, contains: str = "") -> Verdict:
    """Of the log as it is now: head and records are read at one revision."""
    listing = await store.list(_ALL_PREFIX)
    found = listing.items.get(AUDIT_HEAD_KEY)
    records = {
        key: item.value for key, item in listing.items.items() if key.startswith(AUDIT_PREFIX)
    }
    return verify(records, Head.from_json(found.value) if found else None, contains)
