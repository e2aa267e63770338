"""Following the policies: each change in etcd is in force here within the watch's delay.

With etcd away what was in force stays in force. What a process has applied it tells under a lease
of its own, so that the report vanishes with the process.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import structlog

from router.policies.model import POLICIES_PREFIX, REPORTS_PREFIX
from router.policies.rules import PolicySet, take
from router.store.leased import LeasedValue
from router.store.model import Store, StoreUnavailable
from router.waiting import heard

log = structlog.get_logger(__name__)

_REPORT_INTERVAL_S = 1.0
_REPORT_TTL_S = 5
_LARGE_CHARACTERS = 32 * 1024


class Follower:
    """`on_change` hears of the first set, empty as it may be, and of each new one, at once and
    without waiting for anything."""

    def __init__(self, store: Store, on_change: Callable[[PolicySet], None]) -> None:
        self._store = store
        self._on_change = on_change
        self.now = PolicySet()
        self._knows = False
        self.changed = asyncio.Event()

    async def known(self) -> None:
        """Returns once the first set is in force."""
        while not self._knows:
            await self.changed.wait()

    async def run(self) -> None:
        async for listing in self._store.watch(POLICIES_PREFIX):
            stored = {key: (item.value, item.revision) for key, item in listing.items.items()}
            if self._is_large(stored):
                taken = await asyncio.to_thread(take, self.now, stored)
            else:
                taken = take(self.now, stored)
            self._take(taken)

    def _is_large(self, stored: dict[str, tuple[str, int]]) -> bool:
        """Whether reading what is new takes longer than a turn of the event loop should."""
        known = self.now.policies
        return any(
            len(value) > _LARGE_CHARACTERS
            for key, (value, revision) in stored.items()
            if key not in known or known[key].revision != revision
        )

    def _take(self, taken: PolicySet) -> None:
        if self._knows and taken.applied == self.now.applied:
            return
        # That there are none is news too: until then nobody can say so.
        self._knows = True
        for item in taken.applied:
            if item.alarm and item not in self.now.applied:
                log.error("a policy is not valid and is ignored", **item._asdict())
        self.now = taken
        try:
            self._on_change(taken)
        except Exception:
            # Whatever an operator wrote must not end a process that carries payments.
            log.exception("policies could not be applied")
        log.info("policies", applied=len(taken.applied))
        self.changed.set()
        self.changed = asyncio.Event()


class Reporter:
    """Tells etcd what this process has applied: at each change, and now and then."""

    def __init__(
        self, store: Store, follower: Follower, process: str, report: Callable[[], dict[str, Any]]
    ) -> None:
        """`report`: what there is to tell beside the applied policies."""
        self._follower = follower
        self._report = report
        self._told = LeasedValue(store, REPORTS_PREFIX + process, _REPORT_TTL_S)

    async def run(self) -> None:
        while True:
            changed = self._follower.changed
            try:
                await self._tell()
            except StoreUnavailable as error:
                log.info("etcd does not hear of the policies applied", why=str(error))
            await heard(changed, _REPORT_INTERVAL_S)

    async def _tell(self) -> None:
        applied = [list(item) for item in self._follower.now.applied]
        await self._told.tell(json.dumps({"applied": applied, **self._report()}))
