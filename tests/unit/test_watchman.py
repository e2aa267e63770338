"""The watchman starts what the rules allow, and nothing when the switch is off or etcd is away."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from control.health import Watchman
from control.operations.holding import Hold, hold_down, release
from control.operations.model import Gate, Operation, OperationKind, Step
from control.operations.service import abort_operation, start_operation
from control.operations.steps import Wish
from control.verdicts import FailoverPolicy, Held, Pulse
from control.view import LiveCell, View
from router.errors import Refusal
from router.slotmap import SlotMap
from router.slots import SlotRange
from router.store.memory import MemoryStore
from router.store.model import (
    FAILOVER_HOLDS_PREFIX,
    FAILOVER_POLICY_KEY,
    HELD_CELLS_PREFIX,
    OPERATIONS_PREFIX,
    SLOT_MAP_KEY,
    StoreUnavailable,
)

FIRST = SlotMap.even(["a", "b", "c"])


def leader() -> Any:
    return SimpleNamespace(leads=True, unsettled_until=0.0)


class Watch:
    """A watchman of a mesh in memory, and what he has started."""

    def __init__(self, store: MemoryStore, live: str = "abc") -> None:
        self.store = store
        self.view = View(store)
        self.view.slot_map, self.view.preferred, self.view.knows_live = FIRST, FIRST, True
        self.view.declared = {"a": "north", "b": "north", "c": "south"}
        self.view.live = {cell: LiveCell("x", ["127.0.0.1:1"], "x") for cell in live}
        self.view.seen_alive = set("abc")
        self.leadership = leader()
        self.man = Watchman(
            store, self.view, self.leadership, actor="me", startup_grace_s=0, dead_confirm_s=0
        )

    async def look(self) -> list[Operation]:
        item = await self.store.get(SLOT_MAP_KEY)
        self.view.revision = item.revision if item else 0
        await self.man._look()
        return await self.operations()

    async def operations(self) -> list[Operation]:
        listing = await self.store.list(OPERATIONS_PREFIX)
        return [Operation.from_json(item.value) for item in listing.items.values()]


@pytest.fixture
async def store() -> MemoryStore:
    made = MemoryStore()
    policy = FailoverPolicy().to_json()
    await made.commit(expect={}, puts={SLOT_MAP_KEY: FIRST.to_json(), FAILOVER_POLICY_KEY: policy})
    return made


async def test_a_dead_cell_is_failed_over_and_held_out_in_one_commit(store: MemoryStore) -> None:
    (operation,) = await Watch(store, live="ac").look()
    assert (operation.kind, operation.cell) == (OperationKind.FAILOVER, "b")
    assert operation.reason == "cell b lost its lease"
    item = await store.get(HELD_CELLS_PREFIX + "b")
    written = await store.get(OPERATIONS_PREFIX + operation.operation_id)
    assert item is not None
    assert written is not None
    assert Held.from_json(item.value) == Held(1, True, "lost its lease")
    assert item.revision == written.revision


async def test_a_grey_cell_is_failed_over(store: MemoryStore) -> None:
    watch = Watch(store)
    watch.man.pulses.by_cell = {"a": Pulse(well=True), "b": Pulse(bad=3), "c": Pulse(well=True)}
    (operation,) = await watch.look()
    assert operation.cell == "b"
    assert "fails its payments" in operation.reason
    assert "b" not in watch.man.pulses.by_cell


@pytest.mark.parametrize("trouble", ["switch", "leads", "settled", "region"])
async def test_nothing_starts_while_something_forbids_it(store: MemoryStore, trouble: str) -> None:
    watch = Watch(store, live="ac")
    if trouble == "switch":
        # Thrown a moment ago: this controller has not heard of it.
        off = FailoverPolicy(automatic=False).to_json()
        await store.commit(expect={}, puts={FAILOVER_POLICY_KEY: off})
    watch.leadership.leads = trouble != "leads"
    watch.leadership.unsettled_until = 1e12 if trouble == "settled" else 0.0
    if trouble == "region":
        watch.view.declared = {"a": "north", "b": "north", "c": "south", "d": "west"}
        watch.view.held = {"d": Held(1, True)}
    assert await watch.look() == []


async def test_an_etcd_without_a_majority_starts_nothing(store: MemoryStore) -> None:
    watch = Watch(store, live="ac")
    store.available = False
    with pytest.raises(StoreUnavailable):
        await watch.man._look()
    store.available = True
    assert await watch.operations() == []


async def test_a_gradual_move_makes_way_for_a_failover(store: MemoryStore) -> None:
    """It may be watched for minutes; a dead cell's users do not wait for that."""
    watch = Watch(store)
    known = watch.view.known()
    assert known is not None
    item = await store.get(SLOT_MAP_KEY)
    assert item is not None
    wish = Wish(OperationKind.MOVE, "", "c", SlotRange(0, 99), percents=(10, 100))
    gradual = await start_operation(store, known, item.revision, wish, "me", "r", gate=Gate())
    watch.view.live.pop("b")
    with pytest.raises(Refusal) as caught:
        await watch.look()
    assert caught.value.reason == "OPERATION_IN_PROGRESS"
    steps = {each.operation_id: each.step for each in await watch.look()}
    assert steps.pop(gradual.operation_id) == Step.PAUSED
    assert list(steps.values()) == [Step.PLANNED]


async def test_an_aborted_failover_does_not_begin_again_until_it_is_released(
    store: MemoryStore,
) -> None:
    watch = Watch(store, live="ac")
    (first,) = await watch.look()
    await abort_operation(store, first.operation_id, "ann", "it is only the lease", 600)
    (key,) = (await store.list(FAILOVER_HOLDS_PREFIX)).items
    assert key == FAILOVER_HOLDS_PREFIX + "b"
    # This controller has not heard of it: the commit finds it all the same.
    with pytest.raises(Refusal) as caught:
        await watch.look()
    assert caught.value.reason == "MAP_CHANGED"
    watch.view.held_down = {"b": Hold("ann", "it is only the lease", first.operation_id, 600)}
    assert [each.step for each in await watch.look()] == [Step.ABORTED]
    await release(store, "b", "ann", "it is dead after all")
    watch.view.held_down = {}
    steps = [each.step for each in await watch.look()]
    assert sorted(steps) == [Step.ABORTED, Step.PLANNED]
    with pytest.raises(Refusal) as caught:
        await release(store, "b", "ann", "again")
    assert caught.value.reason == "NOT_HELD_DOWN"


async def test_a_hold_ends_with_its_time_and_a_refused_abort_leaves_none(
    store: MemoryStore,
) -> None:
    watch = Watch(store, live="ac")
    (first,) = await watch.look()
    lease = await hold_down(store, ["b"], Hold("ann", "r", first.operation_id, 600))
    await abort_operation(store, first.operation_id, "bob", "r", 600)
    (item,) = (await store.list(FAILOVER_HOLDS_PREFIX)).items.values()
    assert Hold.from_json(item.value).actor == "ann", "the first one stays"
    await lease.revoke()
    assert len(await watch.look()) == 2
    with pytest.raises(Refusal):
        await abort_operation(store, first.operation_id, "ann", "it has ended", 600)
    assert not (await store.list(FAILOVER_HOLDS_PREFIX)).items
