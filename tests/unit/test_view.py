"""What a controller sees: a key that nobody can read does not take the rest away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from control.operations.waves import Figures
from control.view import LiveCell, View
from router.slotmap import SlotMap
from router.store.memory import MemoryStore
from router.store.model import (
    CELL_HEALTH_PREFIX,
    DECLARED_CELLS_PREFIX,
    DETOURS_PREFIX,
    FAILOVER_HOLDS_PREFIX,
    FAILOVER_POLICY_KEY,
    HELD_CELLS_PREFIX,
    LIVE_CELLS_PREFIX,
    OPEN_OPERATIONS_PREFIX,
    PREFERRED_SLOT_MAP_KEY,
    SLOT_MAP_KEY,
)

FIRST = SlotMap.even(["a", "b"]).to_json()
LIVE = {"region": "north", "addresses": ["127.0.0.1:1"], "incarnation": "x"}
GOOD = {
    SLOT_MAP_KEY: FIRST,
    PREFERRED_SLOT_MAP_KEY: FIRST,
    DECLARED_CELLS_PREFIX + "a": json.dumps({"region": "north", "capacity": 700}),
    LIVE_CELLS_PREFIX + "a": json.dumps(LIVE),
    HELD_CELLS_PREFIX + "a": json.dumps({"flaps": 1, "out": True, "why": "w"}),
    FAILOVER_HOLDS_PREFIX + "a": json.dumps(
        {"actor": "ann", "reason": "r", "operation_id": "op-1", "hold_s": 9}
    ),
    FAILOVER_POLICY_KEY: json.dumps({"windows": 7}),
    OPEN_OPERATIONS_PREFIX + "op-1": json.dumps(
        {"kind": "failover", "step": "waiting", "cells": ["a"]}
    ),
    DETOURS_PREFIX + "a": json.dumps(["127.0.0.1:2"]),
}


@pytest.fixture
async def store() -> MemoryStore:
    made = MemoryStore()
    await made.commit(expect={}, puts=GOOD)
    return made


@pytest.fixture
async def view(store: MemoryStore) -> AsyncIterator[View]:
    made = View(store)
    async with asyncio.TaskGroup() as group:
        following = group.create_task(made.follow())
        await _settled()
        yield made
        following.cancel()


async def _settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def _seen(view: View) -> tuple[object, ...]:
    return (
        view.slot_map, view.preferred, view.declared, view.capacity, view.live, view.held,
        view.held_down, view.policy, view.open_operations, view.detours,
    )  # fmt: skip


@pytest.mark.parametrize("garbage", ["", "{", "7", '"x"', "[]", "{}", "null"])
@pytest.mark.parametrize("key", sorted(set(GOOD) - {FAILOVER_POLICY_KEY, DETOURS_PREFIX + "a"}))
async def test_what_cannot_be_read_stays_as_it_was(
    store: MemoryStore, view: View, key: str, garbage: str
) -> None:
    before = _seen(view)
    assert all(before), "everything was read"
    await store.commit(expect={}, puts={key: garbage})
    await _settled()
    assert _seen(view) == before
    # And the next good value counts again.
    await store.commit(expect={}, puts={LIVE_CELLS_PREFIX + "b": json.dumps(LIVE)})
    await _settled()
    assert set(view.live) == {"a", "b"}


async def test_a_cell_of_a_newer_version_says_more_and_is_understood(
    store: MemoryStore, view: View
) -> None:
    more = {**LIVE, "zone": "n1"}
    await store.commit(expect={}, puts={LIVE_CELLS_PREFIX + "c": json.dumps(more)})
    figures = {
        "ok": 5,
        "failed": 1,
        "buckets": [6],
        "newcomers": {"ok": 2, "failed": 1, "buckets": [3]},
    }
    older = {"ok": 9, "failed": 0, "buckets": [9]}
    await store.commit(
        expect={},
        puts={
            f"{CELL_HEALTH_PREFIX}a/1": json.dumps(figures),
            f"{CELL_HEALTH_PREFIX}b/1": json.dumps(older),
            f"{CELL_HEALTH_PREFIX}b/2": "garbage",
        },
    )
    await _settled()
    assert view.live["c"] == LiveCell("north", ["127.0.0.1:1"], "x")
    assert view.figures_of("a") == Figures(5, 1, (6,))
    assert view.newcomers_of("a") == Figures(2, 1, (3,))
    assert view.figures_of("b") == Figures(9, 0, (9,))
    assert view.recent_of("b") == Figures(9, 0, (9,))
