"""Cells that were told to end: their slots are moved away first, and given back when they return.

A cell asks by a key under its lease (cells/leaving.py); the leader answers with a drain, which is
an operation like an operator's, audited and resumed like one. What has been drained so is
remembered, so that a rolling update needs nobody: the cell that comes again under the same name,
and lives, gets its slots back. An unasked death is something else: who failed stays out until
somebody restores it (pitfall 26, control/health.py).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

import structlog

from control.leader import Leadership
from control.operations.model import OperationKind
from control.operations.records import Change
from control.operations.service import start_operation
from control.operations.steps import Wish
from control.operations.waves import Known
from control.view import View
from router.errors import Refusal
from router.store.model import AWAY_CELLS_PREFIX, Store, StoreUnavailable
from router.waiting import heard

log = structlog.get_logger(__name__)

_LOOK_INTERVAL_S = 0.5
# Somebody else's turn, or a map that has just changed: it is asked again.
_PASSING = frozenset({"OPERATION_IN_PROGRESS", "MAP_CHANGED"})


class Duty(StrEnum):
    MOVE_AWAY = "move away"
    GIVE_BACK = "give back"
    # There is nothing to give back, or nobody who may have it.
    FORGET = "forget"


@dataclass(frozen=True, slots=True)
class Living:
    """A cell that holds a lease."""

    incarnation: str
    alive_s: float


def duties(
    known: Known,
    living: Mapping[str, Living],
    leaving: Mapping[str, str],
    away: Mapping[str, str],
    held: Collection[str],
    give_back_after_s: float,
) -> list[tuple[str, Duty]]:
    """What is to be done now, cell by cell. Pure."""
    found = []
    heirs = set(living) - set(leaving)
    for cell, incarnation in sorted(leaving.items()) if heirs else ():
        owner = living.get(cell)
        if owner and owner.incarnation == incarnation and known.slot_map.slots_of(cell):
            found.append((cell, Duty.MOVE_AWAY))
    for cell, incarnation in sorted(away.items()):
        owner = living.get(cell)
        if owner is None or owner.incarnation == incarnation or cell in leaving:
            continue
        wanting = known.preferred.slots_of(cell) - known.slot_map.slots_of(cell)
        if cell in held or not wanting or not give_back_after_s:
            found.append((cell, Duty.FORGET))
        elif owner.alive_s >= give_back_after_s:
            found.append((cell, Duty.GIVE_BACK))
    return found


class Usher:
    """Sees cells out and in again, while this controller leads."""

    def __init__(
        self,
        store: Store,
        view: View,
        leadership: Leadership,
        actor: str,
        give_back_after_s: float,
    ) -> None:
        self._store = store
        self._view = view
        self._leadership = leadership
        self._actor = actor
        self._give_back_after_s = give_back_after_s
        # What was said last of a cell, so that it is said once.
        self._said: dict[str, str] = {}

    async def run(self) -> None:
        """Looks at each change of the view, and now and then, for ever."""
        while True:
            changed = self._view.changed
            try:
                await self._look()
            except StoreUnavailable as error:
                log.warning("etcd is away", why=str(error))
            await heard(changed, _LOOK_INTERVAL_S)

    async def _look(self) -> None:
        view = self._view
        known = view.known()
        if known is None or not self._leadership.leads:
            return
        living = {
            name: Living(it.incarnation, view.live_for_s(name)) for name, it in view.live.items()
        }
        for cell, duty in duties(
            known, living, view.leaving, view.away, set(view.held), self._give_back_after_s
        ):
            try:
                await self._do(cell, duty, known)
                self._said.pop(cell, None)
                # The next one is planned with what this one has changed.
                return
            except Refusal as refusal:
                if refusal.reason not in _PASSING and self._said.get(cell) != refusal.reason:
                    log.warning("no other homes", cell=cell, duty=duty, why=refusal.message)
                    self._said[cell] = refusal.reason

    async def _do(self, cell: str, duty: Duty, known: Known) -> None:
        """Raises Refusal."""
        key = AWAY_CELLS_PREFIX + cell
        if duty == Duty.FORGET:
            await self._store.commit(expect={}, puts={}, deletes=[key])
            return
        if duty == Duty.MOVE_AWAY:
            kind, why = OperationKind.DRAIN, "is told to end"
            record = json.dumps({"incarnation": self._view.leaving[cell]})
            beside = Change(puts={key: record})
        else:
            kind, why = OperationKind.RESTORE, "has come again"
            beside = Change(deletes=[key])
        operation = await start_operation(
            self._store,
            known,
            self._view.revision,
            Wish(kind, cell),
            self._actor,
            f"cell {cell} {why}",
            beside=beside,
        )
        log.info("a cell leaves or returns", cell=cell, operation=operation.operation_id)
