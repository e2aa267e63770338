"""Processes of a cell on other machines: as many pods as its load asks for.

One that joins (`python -m cells.serve SETTINGS.json --join`) tells of itself by a key under a lease
of its own; the cell's first process, which holds the cell's lease, names it to the mesh beside its
own. It takes calls while the cell's lease names it, so a cell that is deposed takes all with it.
To leave it takes back its key, and ends when the mesh has forgotten it and nobody calls any more.
A money invariant that breaks there stops the whole cell, as it does in any process (fail-stop).
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from cells.ledger.book import MoneyBroken
from cells.workers import Announce, WorkerBroken
from router.guard import SlotsHere
from router.store.leased import LeasedValue
from router.store.model import (
    JOINED_CELLS_PREFIX,
    LIVE_CELLS_PREFIX,
    Listing,
    Store,
    StoreUnavailable,
)

log = structlog.get_logger(__name__)

Runner = Callable[[], Coroutine[Any, Any, None]]

_POLL_S = 0.1
_BROKEN = "broken"


class Joined:
    """In the cell's first process: who has joined it."""

    def __init__(self, store: Store, cell: str) -> None:
        self._store = store
        self._prefix = f"{JOINED_CELLS_PREFIX}{cell}/"
        self.addresses: list[str] = []

    async def follow(self, announce: Announce) -> None:
        """For ever; raises WorkerBroken when one says that its money invariant broke."""
        async for listing in self._store.watch(self._prefix):
            addresses = sorted(self._read(listing))
            if addresses != self.addresses:
                log.info("processes elsewhere", addresses=addresses)
                self.addresses = addresses
                # What fails here is told with the next refresh of the lease.
                await announce()

    def _read(self, listing: Listing) -> set[str]:
        found = set()
        for key, item in listing.items.items():
            try:
                address = str(json.loads(item.value)["address"])
            except (ValueError, LookupError, TypeError) as error:
                log.error("a key is unreadable and is left out", key=key, why=repr(error))
                continue
            if address == _BROKEN:
                raise WorkerBroken(key)
            found.add(address)
        return found


class Joining:
    """In a process that joins a cell."""

    def __init__(self, store: Store, here: SlotsHere, address: str, ttl_s: int) -> None:
        self._store = store
        self._here = here
        self._address = address
        self._ttl_s = ttl_s
        self._key = f"{JOINED_CELLS_PREFIX}{here.cell}/{uuid.uuid4().hex[:12]}"
        self._value = LeasedValue(store, self._key, ttl_s)
        self._is_named = False
        self._leaves = False

    async def keep(self) -> None:
        """Tells of itself until it leaves."""
        while not self._leaves:
            try:
                await self._value.tell(json.dumps({"address": self._address}))
            except StoreUnavailable as error:
                log.warning("etcd is away; going on as it was", error=str(error))
            await asyncio.sleep(self._ttl_s / 4)

    async def follow_lease(self) -> None:
        """Takes calls while the cell's lease names it; as a cell does, it goes on with what it
        knew while etcd is away."""
        key = LIVE_CELLS_PREFIX + self._here.cell
        async for listing in self._store.watch(key):
            item = listing.items.get(key)
            named = item is not None and self._address in json.loads(item.value)["addresses"]
            if self._leaves and item is not None:
                # Forgotten because it wished to be: who has not heard of it yet is still served.
                self._is_named = named
                continue
            self._is_named = named
            self._here.set_alive(named)

    async def leave(self) -> None:
        """Returns when the mesh has been told to forget it."""
        self._leaves = True
        while True:
            try:
                await self._store.commit(expect={}, puts={}, deletes=[self._key])
                break
            except StoreUnavailable as error:
                log.warning("etcd is away; it stays a while", error=str(error))
                await asyncio.sleep(_POLL_S)
        while self._is_named:
            await asyncio.sleep(_POLL_S)

    def guard(self, runner: Runner) -> Runner:
        """A lane, whose broken money is told to the cell before this process ends by it."""

        async def run() -> None:
            try:
                await runner()
            except MoneyBroken:
                try:
                    # Its lease outlives this process by as long as it takes to be heard.
                    await self._value.tell(json.dumps({"address": _BROKEN}))
                except StoreUnavailable as error:
                    log.critical("the cell could not be told", error=str(error))
                raise

        return run
