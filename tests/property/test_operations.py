"""Operations under crashes: whatever is interrupted, any controller brings it to its end.

The runner and the plans are the real ones, over the store in memory and a double of the database's
fence. The model is the design's: one owner a slot at an epoch, epochs only grow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import control.operations.runner
from control.fencing import FenceConflict
from control.operations.model import ACTIVE, ENDED, TRANSITIONS, Operation, OperationKind, Step
from control.operations.records import Change
from control.operations.runner import Runner
from control.operations.service import start_operation
from control.operations.steps import Wish
from control.operations.waves import Known
from router.errors import Refusal
from router.slotmap import Move, SlotMap
from router.slots import SLOT_COUNT, SlotRange
from router.store.memory import MemoryStore
from router.store.model import (
    OPERATIONS_PREFIX,
    PREFERRED_SLOT_MAP_KEY,
    RUNNING_OPERATION_KEY,
    SLOT_MAP_KEY,
    Item,
    StoreUnavailable,
)

CELLS = ("a", "b", "c")
FIRST = SlotMap.even(CELLS)


class Crash(Exception):
    """The controller dies here."""


class FenceDouble:
    """The database: remembers every owner of every slot by epoch, and refuses a second one."""

    def __init__(self) -> None:
        self.owners = {slot: (FIRST.at(slot).cell, 1) for slot in range(SLOT_COUNT)}
        self.ever = {(slot, 1): owner for slot, (owner, _) in self.owners.items()}

    async def assign(self, moves: Sequence[Move], operation_id: str) -> None:
        for move in moves:
            for slot in range(move.first, move.last + 1):
                owner, epoch = self.owners[slot]
                if (owner, epoch) == (move.target, move.epoch):
                    continue
                if owner != move.source or epoch >= move.epoch:
                    raise FenceConflict(str(move))
                assert (slot, move.epoch) not in self.ever, "two owners at one epoch"
                self.ever[(slot, move.epoch)] = move.target
                self.owners[slot] = (move.target, move.epoch)


class Calls:
    """Cells that answer, or not."""

    def __init__(self, silent: frozenset[str]) -> None:
        self._silent = silent

    async def drain(self, cell: str, ranges: Sequence[SlotRange]) -> str:
        return f"{cell} is dead" if cell in self._silent else f"{cell} drained"

    async def recover(self, cell: str, ranges: Sequence[SlotRange]) -> int | None:
        return 0


class CrashingRunner(Runner):
    """Dies before or after its n-th step's effect has been recorded, or not recorded."""

    def __init__(self, store: MemoryStore, fence: FenceDouble, calls: Calls, life: int) -> None:
        super().__init__(store, fence, calls, now_ms=lambda: 0)
        self._life = life

    async def _fence_slots(self, operation: Operation) -> None:
        self._tick()
        await super()._fence_slots(operation)
        self._tick()

    async def _commit(self, change: Change) -> None:
        self._tick()
        await super()._commit(change)
        self._tick()

    def _tick(self) -> None:
        self._life -= 1
        if self._life == 0:
            raise Crash


wishes = st.one_of(
    st.builds(Wish, st.just(OperationKind.FAILOVER), st.sampled_from(CELLS)),
    st.builds(Wish, st.just(OperationKind.DRAIN), st.sampled_from(CELLS)),
    st.builds(Wish, st.just(OperationKind.RESTORE), st.sampled_from(CELLS)),
    st.builds(
        lambda first, size, target: Wish(
            OperationKind.MOVE, "", target, SlotRange(first, min(first + size, SLOT_COUNT - 1))
        ),
        st.integers(0, SLOT_COUNT - 1),
        st.integers(0, 300),
        st.sampled_from(CELLS),
    ),
)


async def current(store: MemoryStore) -> tuple[SlotMap, int]:
    item = await store.get(SLOT_MAP_KEY)
    assert item is not None
    return SlotMap.from_json(item.value), item.revision


async def one_operation(
    store: MemoryStore, fence: FenceDouble, wish: Wish, lives: list[int], *, two_at_once: bool
) -> None:
    slot_map, revision = await current(store)
    known = Known(slot_map, FIRST, frozenset(CELLS), frozenset(CELLS))
    try:
        operation = await start_operation(store, known, revision, wish, "me", "a property")
    except Refusal:
        return
    calls = Calls(frozenset({wish.cell}))
    for life in lives:
        try:
            await CrashingRunner(store, fence, calls, life).run(operation.operation_id)
        except Crash:
            item = await store.get(OPERATIONS_PREFIX + operation.operation_id)
            assert item is not None
            if Operation.from_json(item.value).step not in ENDED:
                assert await store.get(RUNNING_OPERATION_KEY) is not None
    runners = [Runner(store, fence, calls, now_ms=lambda: 0) for _ in range(1 + two_at_once)]
    ended = await asyncio.gather(*(runner.run(operation.operation_id) for runner in runners))
    assert all(found is not None and found.step == Step.DONE for found in ended)


async def story(plans: list[tuple[Wish, list[int], bool]]) -> None:
    store, fence = MemoryStore(), FenceDouble()
    text = FIRST.to_json()
    await store.commit(expect={}, puts={SLOT_MAP_KEY: text, PREFERRED_SLOT_MAP_KEY: text})
    for wish, lives, two_at_once in plans:
        before, _ = await current(store)
        await one_operation(store, fence, wish, lives, two_at_once=two_at_once)
        after, _ = await current(store)
        assert await store.get(RUNNING_OPERATION_KEY) is None
        for slot in range(SLOT_COUNT):
            owned = after.at(slot)
            assert fence.owners[slot] == (owned.cell, owned.epoch)
            assert owned.epoch >= before.at(slot).epoch


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(wishes, st.lists(st.integers(1, 9), max_size=4), st.booleans()),
        min_size=1,
        max_size=5,
    )
)
def test_an_interrupted_operation_is_finished_by_whoever_comes_next(
    plans: list[tuple[Wish, list[int], bool]],
) -> None:
    asyncio.run(story(plans))


def test_a_second_operation_is_refused_while_one_runs() -> None:
    async def run() -> None:
        store = MemoryStore()
        text = FIRST.to_json()
        await store.commit(expect={}, puts={SLOT_MAP_KEY: text})
        known = Known(FIRST, FIRST, frozenset(CELLS), frozenset(CELLS))
        _, revision = await current(store)
        wish = Wish(OperationKind.DRAIN, "a")
        first = await start_operation(store, known, revision, wish, "me", "first")
        with pytest.raises(Refusal) as caught:
            await start_operation(store, known, revision, wish, "me", "second")
        assert caught.value.reason == "OPERATION_IN_PROGRESS"
        assert caught.value.metadata == {"operation_id": first.operation_id}

    asyncio.run(run())


def test_a_plan_that_the_database_contradicts_fails_and_changes_nothing() -> None:
    async def run() -> None:
        store, fence = MemoryStore(), FenceDouble()
        await store.commit(expect={}, puts={SLOT_MAP_KEY: FIRST.to_json()})
        known = Known(FIRST, FIRST, frozenset(CELLS), frozenset(CELLS))
        _, revision = await current(store)
        wish = Wish(OperationKind.MOVE, "", "b", SlotRange(0, 3))
        operation = await start_operation(store, known, revision, wish, "me", "why")
        fence.owners[2] = ("c", 7)
        ended = await Runner(store, fence, Calls(frozenset())).run(operation.operation_id)
        assert ended is not None
        assert ended.step == Step.FAILED
        assert (await current(store))[0] == FIRST
        assert fence.owners[0] == ("a", 1) or fence.owners[0] == ("b", 2)
        assert await store.get(RUNNING_OPERATION_KEY) is None

    asyncio.run(run())


class AuditedStore(MemoryStore):
    """Looks at every commit: no step is skipped or done twice, no epoch shrinks, turns are kept."""

    async def commit(self, **change: Any) -> int | None:
        before = dict((await self.list("")).items)
        revision = await super().commit(**change)
        after = (await self.list("")).items
        for key, item in after.items():
            if key.startswith(OPERATIONS_PREFIX) and key in before and item != before[key]:
                self._check_step(before[key].value, item.value)
        if SLOT_MAP_KEY in before:
            old, new = (SlotMap.from_json(at[SLOT_MAP_KEY].value) for at in (before, after))
            assert all(new.at(slot).epoch >= old.at(slot).epoch for slot in range(SLOT_COUNT))
        if RUNNING_OPERATION_KEY in before and RUNNING_OPERATION_KEY not in after:
            running = after[OPERATIONS_PREFIX + before[RUNNING_OPERATION_KEY].value]
            assert Operation.from_json(running.value).step in ENDED
        return revision

    def _check_step(self, before: str, after: str) -> None:
        one, two = Operation.from_json(before), Operation.from_json(after)
        known = len(one.history)
        assert two.history[:known] == one.history
        told = [one.step, *(record.step for record in two.history[known:])]
        assert told[-1] == two.step != one.step
        assert all(step in TRANSITIONS[earlier] for earlier, step in pairwise(told))


class Weather:
    """One controller's way to the store: calls are late, get lost, or work and seem lost."""

    def __init__(self, store: MemoryStore, coming: list[int]) -> None:
        self._store = store
        self._coming = list(coming)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def _pass(self) -> bool:
        """Whether the answer gets lost on its way back."""
        now = self._coming.pop() if self._coming else 0
        for _ in range(now):
            await asyncio.sleep(0)
        if now == 1:
            raise StoreUnavailable("the request was lost")
        return now == 2

    async def get(self, key: str) -> Item | None:
        lost = await self._pass()
        item = await self._store.get(key)
        if lost:
            raise StoreUnavailable("the answer was lost")
        return item

    async def commit(self, **change: Any) -> int | None:
        lost = await self._pass()
        revision = await self._store.commit(**change)
        if lost:
            raise StoreUnavailable("the answer was lost")
        return revision


class LateFence:
    """Each transaction begins a little later than it was asked for, as between two machines."""

    def __init__(self, fence: FenceDouble, delays: list[int]) -> None:
        self._fence = fence
        self._delays = list(delays)

    async def assign(self, moves: Sequence[Move], operation_id: str) -> None:
        for _ in range(self._delays.pop() if self._delays else 0):
            await asyncio.sleep(0)
        await self._fence.assign(moves, operation_id)


# What one controller meets: the store's weather, and how late its transactions are.
Luck = tuple[list[int], list[int]]


async def stormy_story(plans: list[tuple[Wish, list[Luck]]]) -> None:
    store, fence, calls = AuditedStore(), FenceDouble(), Calls(frozenset())
    text = FIRST.to_json()
    await store.commit(expect={}, puts={SLOT_MAP_KEY: text, PREFERRED_SLOT_MAP_KEY: text})
    started: list[asyncio.Task[Operation | None]] = []
    async with asyncio.TaskGroup() as group:
        for wish, controllers in plans:
            slot_map, revision = await current(store)
            known = Known(slot_map, FIRST, frozenset(CELLS), frozenset(CELLS))
            try:
                operation = await start_operation(store, known, revision, wish, "me", "why")
            except Refusal:
                continue
            runners = [
                Runner(Weather(store, weather), LateFence(fence, delays), calls, now_ms=lambda: 0)
                for weather, delays in controllers
            ]
            tasks = [group.create_task(each.run(operation.operation_id)) for each in runners]
            # The first to end sets the way free; the others wake in the middle of what follows.
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            started += tasks
    ended = [task.result() for task in started]
    assert all(found is not None and found.step == Step.DONE for found in ended)
    assert await store.get(RUNNING_OPERATION_KEY) is None
    after, _ = await current(store)
    for slot in range(SLOT_COUNT):
        assert fence.owners[slot] == (after.at(slot).cell, after.at(slot).epoch)


# Mostly calm: a controller that only loses calls tells little.
_waits = st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 80))
_luck = st.tuples(st.lists(_waits, max_size=20), st.lists(_waits, max_size=3))
# Whole cells go to and fro, so that what a late controller does would be felt.
_moves = st.builds(
    lambda target: Wish(OperationKind.MOVE, "", target, SlotRange(0, 9)), st.sampled_from(CELLS)
)


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.one_of(_moves, wishes), st.lists(_luck, min_size=1, max_size=3)),
        min_size=1,
        max_size=4,
    )
)
def test_controllers_that_cross_each_other_in_a_bad_network_end_every_operation_once(
    plans: list[tuple[Wish, list[Luck]]],
) -> None:
    with mock.patch.object(control.operations.runner, "_STORE_RETRY_S", 0):
        asyncio.run(stormy_story(plans))


async def wake_late(asleep_at: Step) -> None:
    """A controller read the operation at this step, and goes on when the next one is planned."""
    store, fence, calls = AuditedStore(), FenceDouble(), Calls(frozenset())
    await store.commit(expect={}, puts={SLOT_MAP_KEY: FIRST.to_json()})
    runner = Runner(store, fence, calls, now_ms=lambda: 0)
    seen: dict[Step, Item] = {}
    for target in ("b", "c"):
        slot_map, revision = await current(store)
        known = Known(slot_map, FIRST, frozenset(CELLS), frozenset(CELLS))
        wish = Wish(OperationKind.MOVE, "", target, SlotRange(0, 9))
        operation = await start_operation(store, known, revision, wish, "me", "why")
        while target == "b":
            item = await store.get(OPERATIONS_PREFIX + operation.operation_id)
            assert item is not None
            stored = Operation.from_json(item.value)
            if stored.step in ENDED:
                break
            seen[stored.step] = item
            if stored.step == Step.DRAINED and asleep_at == Step.FENCED:
                # As another version leaves it: this one tells of the fence and the map at once.
                await fence.assign(stored.moves, stored.operation_id)
                await runner._record(stored, item, Step.FENCED)
                continue
            await runner.step(stored, item)
    late = seen[asleep_at]
    await runner.step(Operation.from_json(late.value), late)
    assert await store.get(RUNNING_OPERATION_KEY) is not None
    assert (await current(store))[0].at(0) == (0, 9, "b", 2)
    ended = await runner.run(operation.operation_id)
    assert ended is not None
    assert ended.step == Step.DONE
    assert (await current(store))[0].at(0) == (0, 9, "c", 3)


@pytest.mark.parametrize("asleep_at", [step for step in Step if step in ACTIVE])
def test_a_controller_that_wakes_late_changes_nothing(asleep_at: Step) -> None:
    asyncio.run(wake_late(asleep_at))
