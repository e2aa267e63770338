"""What a controller sees of the mesh: slot map, live cells, who leads. Fed by watches."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import structlog

from control.operations.steps import Known
from router.slotmap import SlotMap
from router.store.model import (
    DECLARED_CELLS_PREFIX,
    DETOURS_PREFIX,
    LIVE_CELLS_PREFIX,
    PREFERRED_SLOT_MAP_KEY,
    SLOT_MAP_KEY,
    Store,
)

log = structlog.get_logger(__name__)


class LiveCell(NamedTuple):
    region: str
    # Of its processes, the first one's first.
    addresses: Sequence[str]
    incarnation: str


@dataclass(slots=True)
class View:
    """Level-triggered: each watch replaces its part, then `on_change` is called."""

    store: Store
    on_change: Callable[[], None] = lambda: None
    slot_map: SlotMap | None = None
    revision: int = 0
    preferred: SlotMap | None = None
    declared: dict[str, str] = field(default_factory=dict)
    live: dict[str, LiveCell] = field(default_factory=dict)
    # Cell → addresses of a drill's proxies before it.
    detours: dict[str, list[str]] = field(default_factory=dict)
    # False until the first listing: to publish before it would tell clients that all are dead.
    knows_live: bool = False
    seen_alive: set[str] = field(default_factory=set)
    # Cell → since when (monotonic) it has had no lease.
    missing_since: dict[str, float] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def addresses_of(self, cell: str) -> Sequence[str]:
        found = self.live.get(cell)
        return found.addresses if found else ()

    def known(self) -> Known | None:
        if self.slot_map is None or self.preferred is None or not self.knows_live:
            return None
        return Known(self.slot_map, self.preferred, frozenset(self.declared), frozenset(self.live))

    async def follow_map(self) -> None:
        async for listing in self.store.watch(SLOT_MAP_KEY):
            item = listing.items.get(SLOT_MAP_KEY)
            preferred = listing.items.get(PREFERRED_SLOT_MAP_KEY)
            if item is None or preferred is None:
                continue
            self.slot_map = SlotMap.from_json(item.value)
            self.revision = item.revision
            self.preferred = SlotMap.from_json(preferred.value)
            self._tell()

    async def follow_declared(self) -> None:
        async for listing in self.store.watch(DECLARED_CELLS_PREFIX):
            self.declared = {
                key.removeprefix(DECLARED_CELLS_PREFIX): json.loads(item.value)["region"]
                for key, item in listing.items.items()
            }
            self._tell()

    async def follow_live(self) -> None:
        async for listing in self.store.watch(LIVE_CELLS_PREFIX):
            before = set(self.live)
            self.live = {
                key.removeprefix(LIVE_CELLS_PREFIX): LiveCell(**json.loads(item.value))
                for key, item in listing.items.items()
            }
            self.knows_live = True
            self.seen_alive |= set(self.live)
            for cell in before - set(self.live):
                log.warning("a cell lost its lease", cell=cell)
                self.missing_since[cell] = time.monotonic()
            for cell in self.live:
                self.missing_since.pop(cell, None)
            self._tell()

    async def follow_detours(self) -> None:
        async for listing in self.store.watch(DETOURS_PREFIX):
            self.detours = {
                key.removeprefix(DETOURS_PREFIX): json.loads(item.value)
                for key, item in listing.items.items()
            }
            self._tell()

    def missing_for_s(self, cell: str) -> float:
        since = self.missing_since.get(cell)
        return float("inf") if since is None else time.monotonic() - since

    def _tell(self) -> None:
        self.on_change()
        self.changed.set()
        self.changed = asyncio.Event()
