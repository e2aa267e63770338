"""What to do next, and what to move: pure functions of what is known."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import assert_never

from control.operations.model import (
    GRANTED,
    RESTING,
    Operation,
    OperationKind,
    Piece,
    Request,
    Step,
    slot_count,
)
from control.operations.waves import Known, assign, by_weights, wave_limit
from router.slotmap import Move, SlotMap
from router.slots import SLOT_COUNT, SlotRange, ranges_of


class Action(StrEnum):
    # To the wave, before its first request has to wait.
    COMMIT = "commit"
    # Drain, fence and publish: the stall.
    MOVE = "move"
    PUBLISH = "publish"
    RECOVER = "recover"
    # The next wave, a wait, the way back or the end.
    GO_ON = "go on"
    # Somebody else's turn: it has ended, or an operator has it.
    NOTHING = "nothing"


def next_action(operation: Operation) -> Action:
    """The one thing to do from this step; whoever resumes it does the same."""
    match operation.step:
        case Step.PLANNED:
            return Action.COMMIT
        case Step.DRAINED:
            return Action.MOVE
        case Step.FENCED:
            return Action.PUBLISH
        case Step.PUBLISHED:
            return Action.RECOVER
        case Step.RECOVERED | Step.WAITING:
            return Action.GO_ON
        case Step.PAUSED | Step.DONE | Step.FAILED | Step.ABORTED | Step.ROLLED_BACK:
            return Action.NOTHING
        case _:
            assert_never(operation.step)


def ask(operation: Operation, request: Request, *, time_ms: int, note: str) -> Operation | str:
    """The operation after an operator's request, or why it cannot be granted.

    While a wave may be in the database's hands the request is noted, and granted after it.
    """
    granted = GRANTED[request].get(operation.step)
    if granted is not None:
        return operation.onward(granted, (), time_ms=time_ms, note=note)
    if operation.step == Step.PAUSED:
        return "it is paused already"
    if operation.step in RESTING:
        return "it is not paused; it goes on by itself when there is head-room"
    if operation.step in (Step.DRAINED, Step.FENCED, Step.PUBLISHED):
        if request == Request.RESUME:
            if operation.request == Request.PAUSE:
                return operation.asking(Request.NONE)
            return "it is not paused"
        if operation.request == Request.ABORT:
            return "it is being aborted already"
        return operation.asking(request)
    if request == Request.RESUME and operation.step in (Step.PLANNED, Step.RECOVERED):
        return "it is not paused"
    return f"it has ended: {operation.step}"


class PlanReason(StrEnum):
    """Why there is no plan, in order of precedence."""

    UNKNOWN_CELL = "UNKNOWN_CELL"
    CELL_DEAD = "CELL_DEAD"
    TARGET_DEAD = "TARGET_DEAD"
    CELL_HELD_OUT = "CELL_HELD_OUT"
    NO_TARGET = "NO_TARGET"
    NOTHING_TO_MOVE = "NOTHING_TO_MOVE"
    NO_HEAD_ROOM = "NO_HEAD_ROOM"


@dataclass(frozen=True, slots=True)
class NoPlan:
    reason: PlanReason
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is to be moved, and the first wave of it; no wave when nothing fits yet."""

    pieces: tuple[Piece, ...]
    moves: tuple[Move, ...]
    # Slots that no cell has head-room for, now: they wait.
    waiting: int


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for. `slots` is given for a move only; so is `cell`, whose slots it moves."""

    kind: OperationKind
    cell: str = ""
    target: str = ""
    slots: SlotRange | None = None
    # When they are several.
    cells: tuple[str, ...] = ()
    percents: tuple[int, ...] = ()
    weights: Mapping[str, int] = field(default_factory=dict)
    force: bool = False

    def all_cells(self) -> tuple[str, ...]:
        return self.cells or ((self.cell,) if self.cell else ())


# Where the source is dead, some service is better than none: what does not fit waits.
_MAY_WAIT = frozenset({OperationKind.FAILOVER, OperationKind.ROLLBACK})
_MUST_LIVE = frozenset({OperationKind.DRAIN, OperationKind.RESTORE})


def plan(wish: Wish, known: Known) -> Plan | NoPlan:
    """What fulfils the wish, or why nothing does."""
    refused = _refused(wish, known)
    if refused is not None:
        return refused
    pieces = _pieces(wish, known)
    if not pieces and wish.kind != OperationKind.REMOVE:
        return NoPlan(PlanReason.NOTHING_TO_MOVE, "there is no slot to move")
    return fitted(wish, pieces, known)


def fitted(wish: Wish, pieces: tuple[Piece, ...], known: Known) -> Plan | NoPlan:
    """The plan of these pieces; refused when a planned move would overload its targets."""
    total = slot_count(pieces)
    reach = -(-total * wish.percents[-1] // 100) if wish.percents else total
    all_that_fits = assign(pieces, known, force=wish.force, slots_max=reach, at_once=False)
    waiting = reach - slot_count(all_that_fits)
    if waiting and wish.kind not in _MAY_WAIT:
        return NoPlan(
            PlanReason.NO_HEAD_ROOM,
            f"{waiting} of {reach} slots would overload their targets; {_rooms(wish, known)}",
        )
    limit = wave_limit(total, 0, wish.percents) if wish.percents else SLOT_COUNT
    first = assign(pieces, known, force=wish.force, slots_max=limit)
    return Plan(pieces, first, waiting)


def undo(operation: Operation, known: Known) -> Plan | NoPlan:
    """The way back: what the operation moved, and nobody has moved since, to where it was."""
    moved = operation.moved
    if operation.step == Step.RECOVERED:
        moved += operation.moves
    back = tuple(
        Piece(part.first, part.last, move.target, move.source)
        for move in moved
        for part in ranges_of(
            slot
            for slot in range(move.first, move.last + 1)
            if known.slot_map.at(slot)[2:] == (move.target, move.epoch)
        )
    )
    if not back:
        return NoPlan(PlanReason.NOTHING_TO_MOVE, "nothing of it is left to take back")
    dead = sorted({piece.target for piece in back} - set(known.live))
    if dead:
        return NoPlan(PlanReason.TARGET_DEAD, f"{', '.join(dead)} cannot take its slots back")
    return fitted(Wish(OperationKind.ROLLBACK, force=True), back, known)


def _refused(wish: Wish, known: Known) -> NoPlan | None:
    cells = wish.all_cells()
    for name in (*cells, wish.target, *sorted(wish.weights)):
        if name and name not in known.declared:
            return NoPlan(
                PlanReason.UNKNOWN_CELL,
                f"there is no cell {name!r}; there are {', '.join(sorted(known.declared))}",
            )
    dead = [cell for cell in cells if cell not in known.live]
    if dead and wish.kind in _MUST_LIVE:
        return NoPlan(PlanReason.CELL_DEAD, f"cell {dead[0]} holds no lease")
    heavy = [cell for cell in sorted(wish.weights) if cell not in known.live]
    if wish.target and wish.target not in known.live:
        return NoPlan(PlanReason.TARGET_DEAD, f"cell {wish.target} holds no lease")
    if heavy:
        return NoPlan(PlanReason.TARGET_DEAD, f"cell {heavy[0]} holds no lease")
    receivers = cells if wish.kind == OperationKind.RESTORE else (wish.target, *wish.weights)
    for cell in receivers:
        if cell in known.barred and not wish.force:
            why = f"cell {cell} is held out: {known.barred[cell]}"
            return NoPlan(PlanReason.CELL_HELD_OUT, why)
    if wish.target and wish.target in cells:
        return NoPlan(PlanReason.NO_TARGET, f"cell {wish.target} cannot take over from itself")
    leaves = wish.kind in {OperationKind.FAILOVER, OperationKind.DRAIN, OperationKind.REMOVE}
    if leaves and not wish.target and not set(known.live) - set(cells):
        return NoPlan(PlanReason.NO_TARGET, "no other cell holds a lease")
    return None


def _pieces(wish: Wish, known: Known) -> tuple[Piece, ...]:
    slot_map = known.slot_map
    if wish.kind == OperationKind.REBALANCE:
        return by_weights(known, wish.weights, force=wish.force)
    if wish.kind == OperationKind.RESTORE:
        return tuple(
            piece
            for cell in wish.all_cells()
            for piece in _owned(known.preferred.slots_of(cell), slot_map, cell)
        )
    if wish.slots is not None:
        return _owned(wish.slots.slots(), slot_map, wish.target)
    given = [slot_map.slots_of(cell) for cell in wish.all_cells()]
    return _owned(frozenset().union(*given), slot_map, wish.target)


def _owned(slots: Collection[int], slot_map: SlotMap, target: str) -> tuple[Piece, ...]:
    """The slots by their owners, less what is the target's already."""
    by_owner: dict[str, set[int]] = {}
    for slot in slots:
        by_owner.setdefault(slot_map.at(slot).cell, set()).add(slot)
    by_owner.pop(target, None)
    pieces = [
        Piece(part.first, part.last, owner, target)
        for owner, theirs in by_owner.items()
        for part in ranges_of(theirs)
    ]
    return tuple(sorted(pieces))


def _rooms(wish: Wish, known: Known) -> str:
    cells = sorted(set(known.live) - set(wish.all_cells()))
    return "head-room: " + ", ".join(f"{cell} {known.room(cell, at_once=False)}" for cell in cells)


def dead_cells(known: Known, seen_alive: Collection[str], *, grace_over: bool) -> list[str]:
    """Cells that own slots, hold no lease and may be failed over now.

    A cell that was never seen alive is still coming up until the grace is over. Without another
    live cell there is nowhere to go. What waits for head-room already is not begun again.
    """
    if not known.live:
        return []
    return [
        cell
        for cell in sorted(set(known.declared) - set(known.live) - set(known.waiting))
        if known.slot_map.slots_of(cell) and (cell in seen_alive or grace_over)
    ]
