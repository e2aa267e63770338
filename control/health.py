"""Automatic failover: a lost lease, or payments that fail, start one, if the policy says so.

What to do is decided in verdicts.py and operations/steps.py; here it is looked at by the clock.
Slots are never given back by themselves: a flapping cell stays out until somebody restores it
(pitfall 26).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import structlog

from control.leader import Leadership
from control.operations.model import OperationKind, Request
from control.operations.records import Change
from control.operations.service import read_operation, request_of, start_operation
from control.operations.steps import Wish, dead_cells
from control.operations.waves import Figures, Known
from control.verdicts import (
    FailoverPolicy,
    Held,
    Obstacle,
    Pulse,
    beat,
    grey_cell,
    obstacle,
)
from control.view import View
from router.errors import Refusal
from router.store.model import (
    FAILOVER_HOLDS_PREFIX,
    FAILOVER_POLICY_KEY,
    HELD_CELLS_PREFIX,
    RUNNING_OPERATION_KEY,
    Store,
    StoreUnavailable,
)
from router.waiting import heard

log = structlog.get_logger(__name__)

_LOOK_INTERVAL_S = 0.5
# Cells report twice in it.
_WINDOW_S = 1.0
# A cell that was restored and has been well for so long has a clean record.
_CALM_S = 600.0


async def read_policy(store: Store) -> FailoverPolicy:
    """As etcd has it now; without one nothing is automatic."""
    item = await store.get(FAILOVER_POLICY_KEY)
    return FailoverPolicy.from_json(item.value) if item else FailoverPolicy(automatic=False)


@dataclass(slots=True)
class Pulses:
    """Samples the cells' figures, window by window."""

    by_cell: dict[str, Pulse] = field(default_factory=dict)
    # Of the last window, for people.
    windows: dict[str, Figures] = field(default_factory=dict)
    _then: dict[str, Figures] = field(default_factory=dict)
    _due: float = 0.0

    def sample(self, figures: dict[str, Figures], policy: FailoverPolicy, now: float) -> None:
        if now < self._due:
            return
        self._due = now + _WINDOW_S
        for cell, seen in figures.items():
            window = seen.minus(self._then.get(cell, seen))
            self._then[cell] = seen
            self.by_cell[cell] = beat(self.by_cell.get(cell, Pulse()), window, policy)
            if window.samples:
                self.windows[cell] = window

    def forget(self, cell: str) -> None:
        self.by_cell.pop(cell, None)


class Watchman:
    def __init__(
        self,
        store: Store,
        view: View,
        leadership: Leadership,
        *,
        actor: str,
        startup_grace_s: float,
        dead_confirm_s: float,
    ) -> None:
        self._store = store
        self._view = view
        self._leadership = leadership
        self.actor = actor
        self._grace_until = time.monotonic() + startup_grace_s
        self._confirm_s = dead_confirm_s
        # What was said of a cell last, so that it is said once.
        self._said: dict[str, Obstacle] = {}
        self.pulses = Pulses()

    async def run(self) -> None:
        """Looks at each change of the view, and now and then, for ever."""
        while True:
            changed = self._view.changed
            wait_s = _LOOK_INTERVAL_S
            try:
                wait_s = await self._look()
            except Refusal as refusal:
                log.info("no failover now", reason=refusal.reason, why=refusal.message)
            except StoreUnavailable as error:
                log.warning("etcd is away", why=str(error))
            await heard(changed, wait_s)

    async def _look(self) -> float:
        """Starts a failover if one is due; returns how long to wait before the next look."""
        known = self._view.known()
        if known is None:
            return _LOOK_INTERVAL_S
        self.pulses.sample(self._view.figures, self._view.policy, time.monotonic())
        await self._forgive(known)
        grace_over = time.monotonic() > self._grace_until
        dead = dead_cells(known, self._view.seen_alive, grace_over=grace_over)
        missing_s = {cell: self._view.missing_for_s(cell) for cell in dead}
        for cell in dead:
            why = "has gone" if cell in self._view.gone else "lost its lease"
            if missing_s[cell] >= self._confirm_s and await self._fail_over(
                cell, known, why, grey=False
            ):
                return _LOOK_INTERVAL_S
        judgement = grey_cell(self.pulses.by_cell, known, self._view.policy)
        self.pulses.by_cell = dict(judgement.pulses)
        if judgement.cell is not None:
            why = f"fails its payments: {judgement.note}"
            await self._fail_over(judgement.cell, known, why, grey=True)
        elif judgement.note:
            log.warning("no failover", why=judgement.note)
        unconfirmed = [self._confirm_s - s for s in missing_s.values() if s < self._confirm_s]
        return min([_LOOK_INTERVAL_S, *unconfirmed])

    async def _fail_over(self, cell: str, known: Known, why: str, *, grey: bool) -> bool:
        """Whether it has been started. Raises Refusal, and StoreUnavailable: a controller that
        etcd does not answer starts nothing."""
        loop = asyncio.get_running_loop()
        forbidden = obstacle(
            cell,
            known,
            self._view.held,
            self._view.policy,
            leads=self._leadership.leads,
            settled=loop.time() >= self._leadership.unsettled_until,
            grey=grey,
            held_down=self._view.held_down,
        )
        if forbidden is None and not (await read_policy(self._store)).automatic:
            # The kill switch is not looked up from memory.
            forbidden = Obstacle.SWITCHED_OFF
        if forbidden is not None:
            if self._said.get(cell) != forbidden and forbidden != Obstacle.NOT_LEADER:
                log.warning("no automatic failover", cell=cell, why=why, but=forbidden)
            self._said[cell] = forbidden
            return False
        item = await self._store.get(HELD_CELLS_PREFIX + cell)
        held = Held.again(Held.from_json(item.value) if item else None, why)
        key = HELD_CELLS_PREFIX + cell
        # Nor is an operator's no: it may have come a moment ago.
        expect = {key: item.revision if item else 0, FAILOVER_HOLDS_PREFIX + cell: 0}
        beside = Change(expect, {key: held.to_json()})
        try:
            operation = await start_operation(
                self._store,
                known,
                self._view.revision,
                Wish(OperationKind.FAILOVER, cell),
                self.actor,
                f"cell {cell} {why}",
                beside=beside,
            )
        except Refusal as refusal:
            if refusal.reason == "OPERATION_IN_PROGRESS":
                await self._make_way()
            raise
        self._said.pop(cell, None)
        self.pulses.forget(cell)
        log.warning("automatic failover", cell=cell, why=why, operation=operation.operation_id)
        return True

    async def _make_way(self) -> None:
        """A gradual move may be watched for minutes: it is paused. Others end by themselves."""
        running = await self._store.get(RUNNING_OPERATION_KEY)
        if running is None:
            return
        operation, _ = await read_operation(self._store, running.value)
        if operation.gate is not None and operation.request == Request.NONE:
            why = "a failover comes first"
            await request_of(self._store, running.value, Request.PAUSE, self.actor, why)

    async def _forgive(self, known: Known) -> None:
        """Clears the record of a cell that has been calm for long after its restore."""
        for cell, record in self._view.held.items():
            calm = not record.out and self._view.live_for_s(cell) > _CALM_S
            if calm and self._leadership.leads and known.slot_map.slots_of(cell):
                key = HELD_CELLS_PREFIX + cell
                item = await self._store.get(key)
                if item is not None and not Held.from_json(item.value).out:
                    await self._store.commit(expect={key: item.revision}, puts={}, deletes=[key])
