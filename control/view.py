"""What a controller sees of the mesh: slot map, live cells, who leads. Fed by watches."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import structlog

from control.operations.holding import Hold
from control.operations.model import OperationKind
from control.operations.records import Open
from control.operations.waves import Figures, Known
from control.verdicts import FailoverPolicy, Held, barred, still_out
from router.slotmap import SlotMap
from router.store.model import (
    AWAY_CELLS_PREFIX,
    CELL_HEALTH_PREFIX,
    DECLARED_CELLS_PREFIX,
    DETOURS_PREFIX,
    FAILOVER_HOLDS_PREFIX,
    FAILOVER_POLICY_KEY,
    HELD_CELLS_PREFIX,
    LEAVING_CELLS_PREFIX,
    LIVE_CELLS_PREFIX,
    OPEN_OPERATIONS_PREFIX,
    PREFERRED_SLOT_MAP_KEY,
    SLOT_MAP_KEY,
    Listing,
    Store,
)

log = structlog.get_logger(__name__)

T = TypeVar("T")

_RECENT_S = 30


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
    _documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    live: dict[str, LiveCell] = field(default_factory=dict)
    # Cell → addresses of a drill's proxies before it.
    detours: dict[str, list[str]] = field(default_factory=dict)
    # False until the first listing: to publish before it would tell clients that all are dead.
    knows_live: bool = False
    seen_alive: set[str] = field(default_factory=set)
    # Cell → since when (monotonic) it has had no lease, or has had one.
    missing_since: dict[str, float] = field(default_factory=dict)
    live_since: dict[str, float] = field(default_factory=dict)
    # Cells that hold a lease still, and where nothing listens any more.
    gone: set[str] = field(default_factory=set)
    # What was declared of cells beside their region: absent means no limit.
    capacity: dict[str, int] = field(default_factory=dict)
    surge: dict[str, int] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    # Cells whose failover is not automatic, by an operator's wish.
    held_down: dict[str, Hold] = field(default_factory=dict)
    policy: FailoverPolicy = field(default_factory=FailoverPolicy)
    # Cells that were told to end, and those that have ended so: cell → incarnation.
    leaving: dict[str, str] = field(default_factory=dict)
    away: dict[str, str] = field(default_factory=dict)
    # Operations that wait or are paused.
    open_operations: dict[str, Open] = field(default_factory=dict)
    # How payments fare, by cell: all that was heard since this controller started.
    figures: dict[str, Figures] = field(default_factory=dict)
    # The same of the slots that each cell was given last.
    newcomers: dict[str, Figures] = field(default_factory=dict)
    # The figures as they were, with the time (monotonic), a second or more apart.
    _earlier: deque[tuple[float, dict[str, Figures]]] = field(
        default_factory=lambda: deque(maxlen=_RECENT_S)
    )
    # The last word of each process that ever was: one that comes back goes on from there.
    _processes: dict[str, Figures] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def addresses_of(self, cell: str) -> Sequence[str]:
        found = self.live.get(cell)
        return found.addresses if found else ()

    def known(self) -> Known | None:
        if self.slot_map is None or self.preferred is None or not self.knows_live:
            return None
        alive_s = {cell: time.monotonic() - since for cell, since in self.live_since.items()}
        known = Known(
            self.slot_map,
            self.preferred,
            frozenset(self.declared),
            frozenset(self.live) - self.gone,
            regions=dict(self.declared),
            capacity=dict(self.capacity),
            surge=dict(self.surge),
            barred={
                **barred(self.held, alive_s, self.policy),
                **dict.fromkeys(self.leaving, "it was told to end"),
            },
            waiting=frozenset(
                cell
                for operation in self.open_operations.values()
                if operation.kind == OperationKind.FAILOVER
                for cell in operation.cells
            ),
        )
        return replace(known, held={*still_out(self.held, known), *self.leaving})

    def set_gone(self, cell: str, *, gone: bool) -> None:
        if gone == (cell in self.gone):
            return
        if gone:
            log.warning("nothing listens where a cell was", cell=cell)
            self.gone.add(cell)
        else:
            self.gone.discard(cell)
        self._wake()

    def live_for_s(self, cell: str) -> float:
        return time.monotonic() - self.live_since.get(cell, time.monotonic())

    def figures_of(self, cell: str) -> Figures:
        return self.figures.get(cell, Figures())

    def newcomers_of(self, cell: str) -> Figures:
        return self.newcomers.get(cell, Figures())

    def recent_of(self, cell: str) -> Figures:
        """Of the last half minute, at most."""
        earliest = time.monotonic() - _RECENT_S
        then = next((seen for when, seen in self._earlier if when >= earliest), {})
        return self.figures_of(cell).minus(then.get(cell, Figures()))

    async def follow_map(self) -> None:
        async for listing in self.store.watch(SLOT_MAP_KEY):
            item = listing.items.get(SLOT_MAP_KEY)
            preferred = listing.items.get(PREFERRED_SLOT_MAP_KEY)
            if item is None or preferred is None:
                continue
            try:
                maps = SlotMap.from_json(item.value), SlotMap.from_json(preferred.value)
            except _UNREADABLE as error:
                log.critical("the slot map is unreadable; going on with the last", why=str(error))
                continue
            self.slot_map, self.preferred = maps
            self.revision = item.revision
            self._tell()

    async def follow(self) -> None:
        """Everything, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.follow_map())
            group.create_task(self.follow_declared())
            group.create_task(self.follow_live())
            group.create_task(self.follow_operations())
            group.create_task(self.follow_detours())

    async def follow_declared(self) -> None:
        async for listing in self.store.watch(DECLARED_CELLS_PREFIX):
            documents = self._documents = _read(
                listing, DECLARED_CELLS_PREFIX, _declaration, self._documents
            )
            # A removed cell's record stays, so that no controller's settings declare it anew.
            documents = {cell: it for cell, it in documents.items() if not it.get("removed")}
            self.declared = {cell: it["region"] for cell, it in documents.items()}
            self.capacity = {c: it["capacity"] for c, it in documents.items() if it.get("capacity")}
            self.surge = {c: it["surge"] for c, it in documents.items() if it.get("surge")}
            self._tell()

    async def follow_live(self) -> None:
        async for listing in self.store.watch(LIVE_CELLS_PREFIX):
            before = set(self.live)
            self.live = _read(listing, LIVE_CELLS_PREFIX, _live_cell, self.live)
            self.knows_live = True
            self.seen_alive |= set(self.live)
            for cell in before - set(self.live):
                log.warning("a cell lost its lease", cell=cell)
                self.missing_since[cell] = time.monotonic()
                self.live_since.pop(cell, None)
            for cell in self.live:
                self.missing_since.pop(cell, None)
                self.live_since.setdefault(cell, time.monotonic())
            self._tell()

    async def follow_operations(self) -> None:
        """What operations and the automatic failover go by, beside the map and the leases."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_held())
            group.create_task(self._follow_held_down())
            group.create_task(self._follow_policy())
            group.create_task(self._follow_open())
            group.create_task(self._follow_leaving())
            group.create_task(self._follow_away())
            group.create_task(self._follow_health())

    async def _follow_held(self) -> None:
        async for listing in self.store.watch(HELD_CELLS_PREFIX):
            self.held = _read(listing, HELD_CELLS_PREFIX, Held.from_json, self.held)
            self._wake()

    async def _follow_held_down(self) -> None:
        async for listing in self.store.watch(FAILOVER_HOLDS_PREFIX):
            self.held_down = _read(listing, FAILOVER_HOLDS_PREFIX, Hold.from_json, self.held_down)
            self._wake()

    async def _follow_policy(self) -> None:
        async for listing in self.store.watch(FAILOVER_POLICY_KEY):
            found = _read(listing, "", FailoverPolicy.from_json, {FAILOVER_POLICY_KEY: self.policy})
            if FAILOVER_POLICY_KEY in found:
                self.policy = found[FAILOVER_POLICY_KEY]
                self._wake()

    async def _follow_open(self) -> None:
        async for listing in self.store.watch(OPEN_OPERATIONS_PREFIX):
            self.open_operations = _read(
                listing, OPEN_OPERATIONS_PREFIX, Open.from_json, self.open_operations
            )
            self._wake()

    async def _follow_leaving(self) -> None:
        async for listing in self.store.watch(LEAVING_CELLS_PREFIX):
            self.leaving = _read(listing, LEAVING_CELLS_PREFIX, _incarnation, self.leaving)
            self._wake()

    async def _follow_away(self) -> None:
        async for listing in self.store.watch(AWAY_CELLS_PREFIX):
            self.away = _read(listing, AWAY_CELLS_PREFIX, _incarnation, self.away)
            self._wake()

    async def _follow_health(self) -> None:
        first = True
        async for listing in self.store.watch(CELL_HEALTH_PREFIX):
            for name, (whole, new) in _read(listing, CELL_HEALTH_PREFIX, _health, {}).items():
                cell = name.partition("/")[0]
                self._count(self.figures, cell, name, whole, first=first)
                self._count(self.newcomers, cell, f"{name} newcomers", new, first=first)
            now = time.monotonic()
            if not self._earlier or now - self._earlier[-1][0] >= 1:
                self._earlier.append((now, dict(self.figures)))
            # Nobody is woken: figures are looked at by the clock.
            first = False

    def _count(
        self, totals: dict[str, Figures], cell: str, process: str, now: Figures, *, first: bool
    ) -> None:
        # What was counted before this controller listened is no news.
        before = self._processes.get(process, now if first else Figures())
        totals[cell] = totals.get(cell, Figures()).plus(now.minus(before))
        self._processes[process] = now

    async def follow_detours(self) -> None:
        async for listing in self.store.watch(DETOURS_PREFIX):
            self.detours = _read(listing, DETOURS_PREFIX, json.loads, self.detours)
            self._tell()

    def missing_for_s(self, cell: str) -> float:
        since = self.missing_since.get(cell)
        return float("inf") if since is None else time.monotonic() - since

    def _tell(self) -> None:
        self.on_change()
        self._wake()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


# What reading a key may raise that another version wrote, or somebody by hand.
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError)


def _read(
    listing: Listing, prefix: str, parse: Callable[[str], T], before: Mapping[str, T]
) -> dict[str, T]:
    """By name. What cannot be read stays as it was: one bad key must not end every controller."""
    found: dict[str, T] = {}
    for key, item in listing.items.items():
        name = key.removeprefix(prefix)
        try:
            found[name] = parse(item.value)
        except _UNREADABLE as error:
            log.error("a key is unreadable and is left out of account", key=key, why=repr(error))
            if name in before:
                found[name] = before[name]
    return found


def _declaration(text: str) -> dict[str, Any]:
    document = json.loads(text)
    return (
        {"removed": True} if document.get("removed") else {**document, "region": document["region"]}
    )


def _live_cell(text: str) -> LiveCell:
    document = json.loads(text)
    return LiveCell(document["region"], list(document["addresses"]), document["incarnation"])


def _incarnation(text: str) -> str:
    return str(json.loads(text)["incarnation"])


def _health(text: str) -> tuple[Figures, Figures]:
    """Of all, and of the slots that came last, which a cell of another version does not know."""
    document = json.loads(text)
    new = document.get("newcomers")
    return _figures(document), _figures(new) if new else Figures()


def _figures(document: Mapping[str, Any]) -> Figures:
    return Figures(document["ok"], document["failed"], tuple(document["buckets"]))
