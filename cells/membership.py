"""A cell's place in the mesh: its lease in the store, and the slot map that it follows.

The lease says "alive" to the control plane. When etcd itself is away the cell goes on with the
last map: the fence in the database, not the lease, is what keeps a deposed cell from writing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import structlog

from router.guard import SlotsHere
from router.slotmap import SlotMap
from router.store.model import (
    LEAVING_CELLS_PREFIX,
    LIVE_CELLS_PREFIX,
    SLOT_MAP_KEY,
    Lease,
    Store,
    StoreUnavailable,
)

log = structlog.get_logger(__name__)


class Membership:
    def __init__(
        self,
        store: Store,
        here: SlotsHere,
        *,
        region: str,
        addresses: Callable[[], list[str]],
        incarnation: str,
        lease_ttl_s: int,
        on_gain: Callable[[frozenset[int]], None],
    ) -> None:
        """`addresses`: where the cell's processes listen now, its own first.

        `on_gain` hears of slots that have just come here, to recover what is in doubt there.
        """
        self._store = store
        self._here = here
        self._region = region
        self._addresses = addresses
        self.incarnation = incarnation
        self._ttl_s = lease_ttl_s
        self._on_gain = on_gain
        self._lease: Lease | None = None
        self._announced: list[str] = []
        # Who is told last is told the newest: a worker that leaves must not be named again.
        self._telling = asyncio.Lock()

    async def follow_map(self) -> None:
        """Takes each new slot map, for ever."""
        async for listing in self._store.watch(SLOT_MAP_KEY):
            item = listing.items.get(SLOT_MAP_KEY)
            if item is None:
                continue
            slot_map = SlotMap.from_json(item.value)
            gained = self._here.publish(slot_map)
            log.info("slot map", revision=item.revision, owned=len(self._here.owned()))
            if gained:
                self._on_gain(gained)

    async def follow_lease(self) -> None:
        """For a further process of the cell: it takes requests while the cell's lease lives.

        As the cell itself does, it goes on with what it knew while etcd is away.
        """
        key = LIVE_CELLS_PREFIX + self._here.cell
        async for listing in self._store.watch(key):
            item = listing.items.get(key)
            ours = item is not None and json.loads(item.value)["incarnation"] == self.incarnation
            self._here.set_alive(ours)

    async def keep_lease(self) -> None:
        """Registers, then refreshes the lease, for ever; registers anew when it was lost."""
        while True:
            try:
                if self._lease is None:
                    await self.register()
                    self._here.set_alive(True)
                elif not await self._lease.refresh():
                    log.warning("the lease was lost: this cell may have been replaced")
                    self._here.set_alive(False)
                    self._lease = None
                    continue
                elif self._announced != self._addresses():
                    await self._announce(self._lease)
            except StoreUnavailable as error:
                log.warning("etcd is away; going on with the last map", error=str(error))
            await asyncio.sleep(self._ttl_s / 4)

    async def register(self) -> None:
        lease = await self._store.lease(self._ttl_s)
        listing = await self._store.get(SLOT_MAP_KEY)
        if listing is not None:
            gained = self._here.publish(SlotMap.from_json(listing.value))
            if gained:
                self._on_gain(gained)
        await self._announce(lease)
        self._lease = lease

    async def announce(self) -> bool:
        """Tells the mesh of the addresses as they are now; what fails `keep_lease` makes good."""
        if self._lease is None:
            return False
        try:
            await self._announce(self._lease)
        except StoreUnavailable as error:
            log.warning("etcd is away; it does not hear of an address", error=str(error))
            return False
        return True

    async def has_heirs(self) -> bool:
        """Whether another cell lives and stays; True while etcd cannot say."""
        try:
            living = await self._store.list(LIVE_CELLS_PREFIX)
            leaving = await self._store.list(LEAVING_CELLS_PREFIX)
        except StoreUnavailable:
            return True
        staying = {key.removeprefix(LIVE_CELLS_PREFIX) for key in living.items}
        staying -= {key.removeprefix(LEAVING_CELLS_PREFIX) for key in leaving.items}
        return bool(staying - {self._here.cell})

    async def tell(self, key: str, value: str) -> None:
        """Puts a key that lives as long as this cell's lease; etcd away, nothing is told."""
        if self._lease is None:
            return
        try:
            await self._store.commit(expect={}, puts={key: value}, lease=self._lease)
        except StoreUnavailable as error:
            log.warning("etcd is away; it is not told", key=key, error=str(error))

    async def _announce(self, lease: Lease) -> None:
        async with self._telling:
            addresses = self._addresses()
            value = {
                "region": self._region,
                "addresses": addresses,
                "incarnation": self.incarnation,
            }
            key = LIVE_CELLS_PREFIX + self._here.cell
            await self._store.commit(expect={}, puts={key: json.dumps(value)}, lease=lease)
            self._announced = addresses
        log.info("registered", addresses=addresses)

    async def leave(self) -> None:
        """Gives the lease back, so that a failover need not wait for it to run out."""
        if self._lease is not None:
            try:
                await self._lease.revoke()
            except StoreUnavailable:
                log.warning("etcd is away; the lease runs out by itself")
