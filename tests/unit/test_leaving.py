"""Who is seen out, who is given slots back."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cells.leaving import Signals, until_quiet
from cells.workers import EMPTY_SIGNAL
from control.leaving import Duty, Living, duties
from control.operations.waves import Known
from router.metrics import Calls
from router.slotmap import SlotMap

FIRST = SlotMap.even(["a", "b"])
ALL_AT_B = SlotMap.even(["b"])
OLD, NEW = Living("old", 100.0), Living("new", 100.0)


def known(slot_map: SlotMap) -> Known:
    return Known(slot_map, FIRST, frozenset("ab"), frozenset("ab"))


def due(slot_map: SlotMap, a: Living | None, **given: Any) -> list[tuple[str, Duty]]:
    living = {"b": Living("b", 100.0), **({"a": a} if a else {})}
    leaving, away = given.get("leaving", {}), given.get("away", {})
    return duties(known(slot_map), living, leaving, away, given.get("held", ()), 5.0)


def test_who_asks_is_relieved_of_its_slots_and_only_while_it_has_any() -> None:
    assert due(FIRST, OLD, leaving={"a": "old"}) == [("a", Duty.MOVE_AWAY)]
    assert due(ALL_AT_B, OLD, leaving={"a": "old"}) == []


def test_when_all_leave_nobody_is_given_what_he_could_not_keep() -> None:
    assert due(FIRST, OLD, leaving={"a": "old", "b": "b"}) == []


def test_what_an_earlier_life_asked_for_is_not_done_to_the_next() -> None:
    assert due(FIRST, NEW, leaving={"a": "old"}) == []
    assert due(FIRST, None, leaving={"a": "old"}) == []


def test_who_comes_again_and_lives_gets_its_slots_back() -> None:
    assert due(ALL_AT_B, None, away={"a": "old"}) == []
    assert due(ALL_AT_B, OLD, away={"a": "old"}) == []
    assert due(ALL_AT_B, Living("new", 4.0), away={"a": "old"}) == []
    assert due(ALL_AT_B, NEW, away={"a": "old"}) == [("a", Duty.GIVE_BACK)]


def test_who_failed_meanwhile_or_has_its_slots_is_forgotten() -> None:
    assert due(ALL_AT_B, NEW, away={"a": "old"}, held=("a",)) == [("a", Duty.FORGET)]
    assert due(FIRST, NEW, away={"a": "old"}) == [("a", Duty.FORGET)]


def test_who_leaves_again_is_not_given_back_to() -> None:
    assert due(ALL_AT_B, NEW, away={"a": "old"}, leaving={"a": "new"}) == []


async def test_quiet_is_when_nothing_is_under_way_nor_has_come() -> None:
    calls = Calls()
    calls.under_way = 1
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(until_quiet(calls, 0.1))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        calls.under_way = 0
        calls.note("m", "OK", 0.1)


@pytest.fixture
async def signals() -> AsyncIterator[Signals]:
    yield Signals()
    for number in (signal.SIGTERM, signal.SIGINT, EMPTY_SIGNAL):
        asyncio.get_running_loop().remove_signal_handler(number)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_the_patience(signals: Signals, second: signal.Signals) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    await signals.asked()
    assert not signals.empty_first
    asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), second)
    await signals.within(60, asyncio.Event().wait())  # type: ignore[arg-type]


async def test_a_worker_that_is_to_empty_itself_is_told_so(signals: Signals) -> None:
    os.kill(os.getpid(), EMPTY_SIGNAL)
    await signals.asked()
    assert signals.empty_first


async def test_what_is_waited_for_may_come_in_time(signals: Signals) -> None:
    done = []

    async def work() -> None:
        done.append(1)

    await signals.within(60, work(), work())
    assert done == [1, 1]
