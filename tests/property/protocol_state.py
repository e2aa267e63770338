"""A state of the explored protocol, and what must be true of it (tests/property/explorer.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

from control.fencing import FenceConflict
from control.operations.model import ACTIVE, TRANSITIONS, Operation, Step
from router.slotmap import Move, Owned, SlotMap
from router.slots import SLOT_COUNT
from router.store.model import OPERATIONS_PREFIX, RUNNING_OPERATION_KEY, SLOT_MAP_KEY

CELLS = ("a", "b")
# The slots that move; the rest of the map is b's and never does.
SLOTS = (0, 1)
FIRST = SlotMap((Owned(0, 1, "a", 1), Owned(2, SLOT_COUNT - 1, "b", 1)))

Items = tuple[tuple[str, str, int], ...]
Fenced = tuple[tuple[str, int], ...]


class Cut(Exception):
    """The next call is another transition's."""


class Blocked(Exception):
    """The database makes the call wait: not now."""


class Local(NamedTuple):
    """A controller within a step: what it read, and the answers that it has had."""

    key: str
    value: str
    revision: int
    # Whether payments at the target fail, when the step began.
    bad: bool
    log: tuple[Any, ...]


class Late(NamedTuple):
    """A call that may still arrive, long after its caller has gone."""

    kind: str
    arguments: Any


class World(NamedTuple):
    """What controllers share."""

    items: Items
    fence: Fenced
    # Slots under the share lock of a cell's open transaction, with the cell.
    locks: frozenset[tuple[int, str]]


class State(NamedTuple):
    items: Items
    fence: Fenced
    # Of each cell: does it take requests for slot 0; the epoch that its open transaction read.
    cells: tuple[tuple[bool, int | None], ...]
    # The last write for slot 0 that was committed: epoch and cell.
    last: tuple[int, str]
    controllers: tuple[Local | None, ...]
    late: tuple[Late, ...]
    bad: bool
    room: int
    # Left: faults, requests of operators.
    faults: int
    asks: int


# Any order of controllers' progress, as long as it stays the same.
_ORDER: dict[Local, int] = {}


class Violation(AssertionError):
    """An invariant is broken; the story of how."""


def database(owners: Fenced, moves: Sequence[Move], locks: frozenset[tuple[int, str]]) -> Fenced:
    """What control/fencing.py's transaction does: all or nothing, after the writers in flight."""
    after = list(owners)
    for move in moves:
        for slot in range(move.first, move.last + 1):
            owner, epoch = after[slot]
            if any(locked == slot for locked, _ in locks):
                raise Blocked
            if (owner, epoch) == (move.target, move.epoch):
                continue
            if owner != move.source or epoch >= move.epoch:
                raise FenceConflict(str(move))
            after[slot] = (move.target, move.epoch)
    return tuple(after)


@cache
def bare(value: str) -> str:
    """The record without its history: how often it was paused makes no other state."""
    return replace(Operation.from_json(value), history=(), actor="", reason="").to_json()


@cache
def operation_of(value: str) -> Operation:
    return Operation.from_json(value)


@cache
def owners_of(value: str) -> Fenced:
    slot_map = SlotMap.from_json(value)
    return tuple(slot_map.at(slot)[2:] for slot in SLOTS)


def check(holds: bool, what: str) -> None:
    if not holds:
        raise Violation(what)


def operations(items: Items) -> list[tuple[str, str, int]]:
    return [item for item in items if item[0].startswith(OPERATIONS_PREFIX)]


def locks(state: State) -> frozenset[tuple[int, str]]:
    return frozenset(
        (0, CELLS[number]) for number, (_, read) in enumerate(state.cells) if read is not None
    )


def holds(state: State) -> None:
    """What is true in every state."""
    told = owners_of(next(value for key, value, _ in state.items if key == SLOT_MAP_KEY))
    found = [operation_of(value) for _, value, _ in operations(state.items)]
    running = [value for key, value, _ in state.items if key == RUNNING_OPERATION_KEY]
    active = [operation.operation_id for operation in found if operation.step in ACTIVE]
    check(active == running, f"under way: {active}; by the key: {running}")
    for slot in SLOTS:
        (owner, epoch), (fenced, at) = told[slot], state.fence[slot]
        check(
            epoch < at or (owner, epoch) == (fenced, at),
            f"slot {slot}: the map tells of {owner}@{epoch}, the database of {fenced}@{at}",
        )
    if not any(operation.step in (Step.DRAINED, Step.FENCED) for operation in found):
        check(told == state.fence, f"given up half way: {told} told, {state.fence} fenced")
    writers = {cell for _, cell in locks(state)}
    check(len(writers) <= 1, f"{writers} write for one slot at once")


def holds_between(before: State, after: State) -> None:
    """What is true of every transition."""
    for slot in SLOTS:
        (owner, epoch), (following, at) = before.fence[slot], after.fence[slot]
        check(
            at > epoch or (owner, epoch) == (following, at),
            f"slot {slot} went from {owner}@{epoch} to {following}@{at}",
        )
    steps = {key: operation_of(value).step for key, value, _ in operations(after.items)}
    for key, value, _ in operations(before.items):
        step = operation_of(value).step
        # A commit tells of the fence and of the map at once.
        both = (step, steps[key]) == (Step.DRAINED, Step.PUBLISHED)
        check(
            steps[key] == step or both or steps[key] in TRANSITIONS[step],
            f"{key} went from {step} to {steps[key]}",
        )


def canonical(state: State) -> State:
    """The same state with revisions counted from 1: only which are equal, and which are the
    newest, makes a difference."""
    seen: dict[str, set[int]] = {}
    for key, _, revision in state.items:
        seen.setdefault(key, set()).add(revision)
    for key, revision in _remembered(state):
        seen.setdefault(key, set()).add(revision)
    if all(max(revisions) <= len(revisions) for revisions in seen.values()):
        return state
    small = {
        (key, revision): number
        for key, revisions in seen.items()
        for number, revision in enumerate(sorted(revisions - {0}), 1)
    }

    def renamed(key: str, revision: int) -> int:
        return small.get((key, revision), 0)

    return state._replace(
        items=tuple((key, value, renamed(key, rev)) for key, value, rev in state.items),
        controllers=tuple(_renamed(local, renamed) for local in state.controllers),
        late=tuple(
            late
            if late.kind == "assign"
            else Late(
                late.kind,
                (
                    tuple((key, renamed(key, rev)) for key, rev in late.arguments[0]),
                    *late.arguments[1:],
                ),
            )
            for late in state.late
        ),
    )


def _remembered(state: State) -> Iterator[tuple[str, int]]:
    for local in state.controllers:
        if local is not None:
            yield local.key, local.revision
            for entry in local.log:
                if entry[0] == "item" and entry[1] is not None:
                    yield entry[1].key, entry[1].revision
    for late in state.late:
        if late.kind == "commit":
            yield from late.arguments[0]


def _renamed(local: Local | None, renamed: Callable[[str, int], int]) -> Local | None:
    if local is None:
        return None
    log = tuple(
        ("item", entry[1]._replace(revision=renamed(entry[1].key, entry[1].revision)))
        if entry[0] == "item" and entry[1] is not None
        else entry
        for entry in local.log
    )
    return local._replace(revision=renamed(local.key, local.revision), log=log)


def with_local(state: State, number: int, local: Local | None) -> State:
    controllers = list(state.controllers)
    controllers[number] = local
    # Two controllers are alike: which is which makes no other state.
    controllers.sort(key=_order)
    return state._replace(controllers=tuple(controllers))


def _order(local: Local | None) -> int:
    return -1 if local is None else _ORDER.setdefault(local, len(_ORDER))


def with_cell(state: State, number: int, takes: bool, read: int | None) -> State:
    cells = list(state.cells)
    cells[number] = (takes, read)
    return state._replace(cells=tuple(cells))


def never(backwards: list[list[int]], ended: Iterable[int]) -> list[int]:
    """States that reach none of `ended`."""
    reached, todo = set(ended), list(ended)
    while todo:
        for before in backwards[todo.pop()]:
            if before not in reached:
                reached.add(before)
                todo.append(before)
    return [number for number in range(len(backwards)) if number not in reached]
