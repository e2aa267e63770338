"""An exhaustive exploration of operations: every order, crash and lost message, on the real code.

A state is everything that lasts: the store, the database's fence, what each cell believes and has
open, messages that are late, and how far each controller has come within a step. A controller's
progress is the list of answers that it has had since it read the operation: to take it one call
further the real `Runner.step` is run again from the start, is given those answers, is let through
to the world for one call more, and is cut off at the next. So nothing of the runner is modelled.
"""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import control.operations.runner
import control.operations.service
from control.fencing import FenceConflict
from control.operations.model import ACTIVE, ENDED, Operation, Request, Step
from control.operations.runner import Runner
from control.operations.service import request_of, roll_back
from control.operations.waves import Known, Verdict
from router.errors import Refusal
from router.slotmap import Move, SlotMap, StaleMove
from router.slots import SLOT_COUNT, SlotRange
from router.store.model import (
    AUDIT_PREFIX,
    OPERATIONS_PREFIX,
    RUNNING_OPERATION_KEY,
    SLOT_MAP_KEY,
    Item,
    StoreUnavailable,
)
from tests.property.protocol_state import (
    CELLS,
    FIRST,
    SLOTS,
    Blocked,
    Cut,
    Fenced,
    Items,
    Late,
    Local,
    State,
    Violation,
    World,
    bare,
    canonical,
    check,
    database,
    holds,
    holds_between,
    locks,
    never,
    operation_of,
    operations,
    owners_of,
    with_cell,
    with_local,
)


class Puppet:
    """Store, fence and cells of one controller: old answers first, then one new call, then none.

    `outcome`: ok; lost (nothing happened, no answer); unknown (it happened, no answer); late (it
    has not happened yet, and the caller is gone); free (every call goes through).
    """

    def __init__(self, world: World, log: tuple[Any, ...], outcome: str, fence: Any) -> None:
        self.items = {key: (value, revision) for key, value, revision in world.items}
        self.fenced = world.fence
        self._locks = world.locks
        self._log = list(log)
        self._outcome = outcome
        self._used = False
        self._database = fence
        self.fresh: list[Any] = []
        self.late: Late | None = None
        self.deferrable = False

    def _call(self, kind: str, arguments: Any, effect: Callable[[], Any]) -> Any:
        if self._log:
            return _answer(self._log.pop(0))
        if self._outcome == "free":
            return _answer(effect())
        if self._used:
            raise Cut
        self._used = True
        # Only a change can come too late.
        self.deferrable = kind != "get"
        if self._outcome == "late":
            self.late = Late(kind, arguments)
            raise Cut
        entry = ("lost",) if self._outcome == "lost" else effect()
        if self._outcome == "unknown":
            entry = ("lost",)
        self.fresh.append(entry)
        return _answer(entry)

    async def get(self, key: str) -> Item | None:
        def effect() -> Any:
            found = self.items.get(key)
            return ("item", Item(key, *found) if found else None)

        answer: Item | None = self._call("get", key, effect)
        return answer

    async def commit(self, *, expect: Any, puts: Any, deletes: Any = (), lease: Any = None) -> Any:
        arguments = (
            tuple(sorted(expect.items())),
            tuple(
                sorted(
                    (key, bare(value) if key.startswith(OPERATIONS_PREFIX) else value)
                    for key, value in puts.items()
                    if not key.startswith(AUDIT_PREFIX)
                )
            ),
            tuple(sorted(deletes)),
        )
        return self._call("commit", arguments, lambda: self.write(arguments))

    def write(self, arguments: Any) -> Any:
        expect, puts, deletes = arguments
        if any(self.items.get(key, ("", 0))[1] != revision for key, revision in expect):
            return ("revision", None)
        # Far above all that is remembered anywhere; `canonical` makes it small again.
        for key, value in puts:
            self.items[key] = (value, 1000)
        for key in deletes:
            self.items.pop(key, None)
        return ("revision", 1000)

    async def assign(self, moves: Sequence[Move], operation_id: str) -> None:
        self._call("assign", tuple(moves), lambda: self.fencing(tuple(moves)))

    def fencing(self, moves: tuple[Move, ...]) -> Any:
        try:
            self.fenced = self._database(self.fenced, moves, self._locks)
        except FenceConflict as error:
            return ("conflict", str(error))
        return ("revision", None)

    async def drain(self, cell: str, ranges: Sequence[SlotRange]) -> str:
        return ""

    async def recover(self, cell: str, ranges: Sequence[SlotRange]) -> int | None:
        return 0

    def world(self) -> tuple[Items, Fenced]:
        items = tuple(sorted((key, *pair) for key, pair in self.items.items()))
        return items, self.fenced


def _answer(entry: tuple[Any, ...]) -> Any:
    if entry[0] == "lost":
        raise StoreUnavailable("lost")
    if entry[0] == "conflict":
        raise FenceConflict(entry[1])
    return entry[1]


def named(number: int) -> Callable[[str], str]:
    """Instead of IDs by time and chance: the same in every run."""

    def new_id(prefix: str) -> str:
        return f"{prefix}-{number}"

    return new_id


class Judged(Runner):
    """A runner whose gate sees what the state says."""

    bad = False

    def verdict(self, operation: Operation, known: Known) -> Verdict:
        return Verdict.FAILED_PAYMENTS if self.bad else Verdict.PASS


@dataclass
class Explorer:
    """`begin` puts the operation into the store. Bugs are planted by other `database`s, runners
    and tables."""

    runner: type[Judged] = Judged
    database: Any = database
    controllers: int = 2
    faults: int = 1
    asks: int = 0
    requests: tuple[str, ...] = ()
    # Cells take requests and write; else only operations are looked at.
    writing: bool = False
    may_go_bad: bool = False
    # Slots that b has head-room for; one more at each turn of the environment.
    room: int = 2

    def __post_init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._cache: dict[Any, Any] = {}
        self.states = 0
        self.transitions = 0

    def known(self, items: Items, room: int) -> Known:
        text = next(value for key, value, _ in items if key == SLOT_MAP_KEY)
        slot_map = SlotMap.from_json(text)
        return Known(slot_map, FIRST, CELLS, CELLS, capacity={"b": SLOT_COUNT - len(SLOTS) + room})

    def _advance(self, local: Local, world: World, room: int, outcome: str) -> Any:
        """One call further: (local or None when the step is over, items, fence, late, changes).

        None: the database makes it wait. `changes`: whether the call may come late.
        """
        found = (local, world, room, outcome)
        if found not in self._cache:
            self._cache[found] = self._run(local, world, room, outcome)
        return self._cache[found]

    def _run(self, local: Local, world: World, room: int, outcome: str) -> Any:
        puppet = Puppet(world, local.log, outcome, self.database)
        known = self.known(world.items, room)
        parts: Any = puppet
        runner = self.runner(parts, parts, parts, known=lambda: known, now_ms=lambda: 0)
        runner.bad = local.bad
        operation = Operation.from_json(local.value)
        item = Item(local.key, local.value, local.revision)
        number = len(operations(world.items)) + 1
        after: Local | None = None
        with mock.patch.object(control.operations.runner, "new_id", new=named(number)):
            try:
                self._loop.run_until_complete(runner.step(operation, item))
            except Cut:
                after = local._replace(log=(*local.log, *puppet.fresh))
            except Blocked:
                return None
            except (StoreUnavailable, StaleMove):
                # `Runner.run` reads anew.
                after = None
        return (after, *puppet.world(), puppet.late, puppet.deferrable)

    def _ask(self, request: str, operation_id: str, state: State) -> State | None:
        """An operator's request, by the functions behind the API; None when it is refused."""
        key = (request, operation_id, state.items, state.fence, state.room)
        if key not in self._cache:
            world = World(state.items, state.fence, frozenset())
            puppet: Any = Puppet(world, (), "free", self.database)
            number = sum(key.startswith(OPERATIONS_PREFIX) for key, _, _ in state.items) + 1
            with mock.patch.object(control.operations.service, "new_id", new=named(number)):
                self._cache[key] = self._answered(request, operation_id, state, puppet)
        items = self._cache[key]
        return None if items is None else state._replace(items=items)

    def _answered(self, request: str, operation_id: str, state: State, puppet: Any) -> Items | None:
        work: Any
        if request == "rollback":
            revision = next(rev for key, _, rev in state.items if key == SLOT_MAP_KEY)
            known = self.known(state.items, state.room)
            work = roll_back(puppet, known, revision, operation_id, "", "")
        else:
            work = request_of(puppet, operation_id, Request(request), "", "")
        try:
            self._loop.run_until_complete(work)
        except Refusal:
            return None
        return puppet.world()[0] if isinstance(puppet, Puppet) else None

    def successors(self, state: State) -> Iterator[tuple[str, State]]:
        yield from self._controllers(state)
        yield from self._late(state)
        yield from self._operators(state)
        if self.writing:
            yield from self._cells(state)
        if self.may_go_bad and not state.bad:
            yield "payments at the target fail", state._replace(bad=True)
        if state.room < len(SLOTS):
            yield "head-room grows", state._replace(room=state.room + 1)

    def _controllers(self, state: State) -> Iterator[tuple[str, State]]:
        for number, local in enumerate(state.controllers):
            if local is None:
                for key, value, revision in operations(state.items):
                    step = operation_of(value).step
                    if step not in ENDED and step != Step.PAUSED:
                        begun = Local(key, value, revision, state.bad, ())
                        yield f"{number} reads {key[-4:]} {step}", with_local(state, number, begun)
                continue
            for outcome in ("ok", "lost", "unknown", "late") if state.faults else ("ok",):
                yield from self._one_call(state, number, local, outcome)
            if state.faults:
                crashed = with_local(state, number, None)._replace(faults=state.faults - 1)
                yield f"{number} crashes", crashed

    def _one_call(
        self, state: State, number: int, local: Local, outcome: str
    ) -> Iterator[tuple[str, State]]:
        world = World(state.items, state.fence, locks(state))
        found = self._advance(local, world, state.room, outcome)
        if found is None:
            return
        after, items, fence, late, deferrable = found
        faults = state.faults - (outcome != "ok")
        if outcome == "late":
            if late is None or late.kind == "get":
                return
            after = None
        elif outcome != "ok" and not deferrable:
            # A read without an answer is a crash of the step, which is there already.
            return
        following = with_local(state, number, after)._replace(
            items=items, fence=fence, faults=faults, late=state.late + ((late,) if late else ())
        )
        yield f"{number} {outcome}", following

    def _late(self, state: State) -> Iterator[tuple[str, State]]:
        for number, late in enumerate(state.late):
            rest = state.late[:number] + state.late[number + 1 :]
            puppet = Puppet(World(state.items, state.fence, locks(state)), (), "ok", self.database)
            try:
                if late.kind == "assign":
                    puppet.fencing(late.arguments)
                else:
                    puppet.write(late.arguments)
            except Blocked:
                continue
            items, fence = puppet.world()
            yield f"late {late.kind}", state._replace(items=items, fence=fence, late=rest)

    def _operators(self, state: State) -> Iterator[tuple[str, State]]:
        for key, value, _ in operations(state.items):
            operation_id = key.removeprefix(OPERATIONS_PREFIX)
            paused = operation_of(value).step == Step.PAUSED
            for request in self.requests:
                free = request == "resume" and paused
                if not free and (state.asks == 0 or request == "resume"):
                    continue
                asked = self._ask(request, operation_id, state)
                if asked is not None:
                    yield f"{request} {operation_id}", asked._replace(asks=state.asks - (not free))

    def _cells(self, state: State) -> Iterator[tuple[str, State]]:
        told = owners_of(next(v for k, v, _ in state.items if k == SLOT_MAP_KEY))[0][0]
        owner, epoch = state.fence[0]
        for number, (takes, read) in enumerate(state.cells):
            cell = CELLS[number]
            if takes != (told == cell):
                # A paused cell hears of it late, or never.
                yield f"{cell} hears of the map", with_cell(state, number, told == cell, read)
            if read is None and takes and owner == cell:
                yield f"{cell} begins to write", with_cell(state, number, takes, epoch)
            if read is not None:
                check(
                    read > state.last[0] or (read, cell) == state.last,
                    f"{cell} commits at epoch {read} after {state.last}",
                )
                committed = with_cell(state, number, takes, None)._replace(last=(read, cell))
                yield f"{cell} commits", committed
                yield f"{cell}'s transaction ends", with_cell(state, number, takes, None)

    def explore(self, operation: Operation) -> set[str]:
        """Every state from here; raises Violation. Returns the steps that operations ended in."""
        root = self._root(operation)
        numbers: dict[State, int] = {root: 0}
        came_from: list[tuple[int, str]] = [(-1, "")]
        backwards: list[list[int]] = [[]]
        queue = deque([root])
        ended: list[int] = []
        ends: set[str] = set()
        # States are kept to the end: to look for garbage among them takes a fifth of the time.
        gc.disable()
        try:
            while queue:
                state = queue.popleft()
                here = numbers[state]
                steps = {operation_of(value).step for _, value, _ in operations(state.items)}
                if steps <= ENDED:
                    ended.append(here)
                    ends |= steps
                for label, reached in self.successors(state):
                    self.transitions += 1
                    following = canonical(reached)
                    there = numbers.get(following)
                    if there is None:
                        there = numbers[following] = len(numbers)
                        came_from.append((here, label))
                        backwards.append([])
                        queue.append(following)
                        holds_between(state, following)
                        holds(following)
                    backwards[there].append(here)
            stuck = never(backwards, ended)
            check(not stuck, f"{len(stuck)} states from which no end can be reached")
        except Violation as broken:
            path = []
            at = len(came_from) - 1 if "no end" not in str(broken) else stuck[0]
            while at > 0:
                at, label = came_from[at]
                path.append(label)
            raise Violation(f"{broken}: {' → '.join(reversed(path))}") from None
        finally:
            gc.enable()
            self.states = len(numbers)
            self._loop.close()
        return ends

    def _root(self, operation: Operation) -> State:
        puts = {SLOT_MAP_KEY: FIRST.to_json()}
        puts[OPERATIONS_PREFIX + operation.operation_id] = bare(operation.to_json())
        if operation.step in ACTIVE:
            puts[RUNNING_OPERATION_KEY] = operation.operation_id
        return State(
            tuple(sorted((key, value, 1) for key, value in puts.items())),
            tuple(FIRST.at(slot)[2:] for slot in SLOTS),
            ((True, None), (False, None)),
            (1, "a"),
            (None,) * self.controllers,
            (),
            False,
            self.room,
            self.faults,
            self.asks,
        )
