"""What to do next, and what to move: pure functions of what is known."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from control.operations.model import Operation, OperationKind, Step
from router.slotmap import Move, SlotMap, plan_moves
from router.slots import SlotRange, ranges_of


class Action(StrEnum):
    DRAIN = "drain"
    FENCE = "fence"
    PUBLISH = "publish"
    RECOVER = "recover"
    FINISH = "finish"
    NOTHING = "nothing"


def next_action(operation: Operation) -> Action:
    """The one thing to do from this step; whoever resumes it does the same."""
    match operation.step:
        case Step.PLANNED:
            return Action.DRAIN
        case Step.DRAINED:
            return Action.FENCE
        case Step.FENCED:
            return Action.PUBLISH
        case Step.PUBLISHED:
            return Action.RECOVER
        case Step.RECOVERED:
            return Action.FINISH
        case Step.DONE | Step.FAILED:
            return Action.NOTHING
        case _:
            assert_never(operation.step)


class PlanReason(StrEnum):
    """Why there is no plan, in order of precedence."""

    UNKNOWN_CELL = "UNKNOWN_CELL"
    CELL_DEAD = "CELL_DEAD"
    TARGET_DEAD = "TARGET_DEAD"
    NO_TARGET = "NO_TARGET"
    NOTHING_TO_MOVE = "NOTHING_TO_MOVE"


@dataclass(frozen=True, slots=True)
class NoPlan:
    reason: PlanReason
    message: str


@dataclass(frozen=True, slots=True)
class Known:
    """What a plan is made from."""

    slot_map: SlotMap
    preferred: SlotMap
    declared: Collection[str]
    live: Collection[str]


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for. `cell` is empty for a move; `slots` is given for a move only."""

    kind: OperationKind
    cell: str = ""
    target: str = ""
    slots: SlotRange | None = None


def plan(wish: Wish, known: Known) -> tuple[Move, ...] | NoPlan:
    """The moves that fulfil the wish, or why there are none."""
    for name in (wish.cell, wish.target):
        if name and name not in known.declared:
            return NoPlan(
                PlanReason.UNKNOWN_CELL,
                f"there is no cell {name!r}; there are {', '.join(sorted(known.declared))}",
            )
    must_live = wish.cell if wish.kind in {OperationKind.DRAIN, OperationKind.RESTORE} else ""
    if must_live and must_live not in known.live:
        return NoPlan(PlanReason.CELL_DEAD, f"cell {must_live} holds no lease")
    if wish.target and wish.target not in known.live:
        return NoPlan(PlanReason.TARGET_DEAD, f"cell {wish.target} holds no lease")
    if wish.target and wish.target == wish.cell:
        return NoPlan(PlanReason.NO_TARGET, f"cell {wish.cell} cannot take over from itself")
    moves = _moves(wish, known)
    if isinstance(moves, tuple) and not moves:
        return NoPlan(PlanReason.NOTHING_TO_MOVE, "there is no slot to move")
    return moves


def _moves(wish: Wish, known: Known) -> tuple[Move, ...] | NoPlan:
    if wish.kind == OperationKind.RESTORE:
        wanted = known.preferred.slots_of(wish.cell) - known.slot_map.slots_of(wish.cell)
        give = list(ranges_of(wanted))
        targets: Mapping[str, int] = {wish.cell: 0}
    elif wish.kind == OperationKind.MOVE:
        give = [wish.slots] if wish.slots else []
        targets = {wish.target: 0}
    else:
        give = list(ranges_of(known.slot_map.slots_of(wish.cell)))
        targets = _receivers(wish, known)
        if not targets:
            return NoPlan(PlanReason.NO_TARGET, "no other cell holds a lease")
    return tuple(plan_moves(known.slot_map, give, targets))


def _receivers(wish: Wish, known: Known) -> Mapping[str, int]:
    names = [wish.target] if wish.target else [c for c in known.live if c != wish.cell]
    return {name: len(known.slot_map.slots_of(name)) for name in sorted(names)}


def dead_cell(known: Known, seen_alive: Collection[str], *, grace_over: bool) -> str | None:
    """A cell that owns slots, holds no lease and may be failed over now; None when there is none.

    A cell that was never seen alive is still coming up until the grace is over. Without another
    live cell there is nowhere to go.
    """
    for cell in sorted(known.declared):
        if cell in known.live or not known.slot_map.slots_of(cell):
            continue
        if cell not in seen_alive and not grace_over:
            continue
        if any(other != cell for other in known.live):
            return cell
    return None
