"""The guard: whose slot is it, where do requests wait, what do callers hear."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import pytest

from router.errors import Refusal
from router.guard import SlotsHere
from router.slotmap import Move, SlotMap
from router.slots import SlotRange

FIRST = SlotMap.even(["a", "b"])


def guard_of(cell: str) -> SlotsHere:
    here = SlotsHere(cell)
    here.publish(FIRST)
    return here


@contextlib.asynccontextmanager
async def held(here: SlotsHere, slot: int) -> AsyncIterator[None]:
    await here.enter(slot)
    try:
        yield
    finally:
        here.leave(slot)


async def refusal_of(here: SlotsHere, slot: int) -> Refusal:
    with pytest.raises(Refusal) as caught:
        async with held(here, slot):
            raise AssertionError("the request was let in")
    return caught.value


async def test_a_request_for_an_owned_slot_is_let_in() -> None:
    async with held(guard_of("a"), 0):
        pass


async def test_a_request_for_a_slot_that_was_never_here_is_a_wrong_map() -> None:
    refusal = await refusal_of(guard_of("a"), 1023)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_HOME")
    assert refusal.metadata == {"slot": "1023", "owner": "b", "epoch": "1"}


async def test_a_slot_that_left_lately_is_worth_another_try() -> None:
    here = guard_of("a")
    here.publish(FIRST.apply([Move(0, 9, "a", "b", 2)]))
    refusal = await refusal_of(here, 5)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "SLOT_MOVED")
    assert refusal.metadata["owner"] == "b"
    assert refusal.metadata["epoch"] == "2"


async def test_without_a_map_or_a_lease_nothing_is_let_in() -> None:
    assert (await refusal_of(SlotsHere("a"), 0)).reason == "CELL_NOT_READY"
    here = guard_of("a")
    here.set_alive(False)
    assert (await refusal_of(here, 0)).reason == "CELL_NOT_READY"
    here.set_alive(True)
    async with held(here, 0):
        pass


async def test_publishing_a_map_names_the_gained_slots_only() -> None:
    here = guard_of("a")
    assert here.publish(FIRST.apply([Move(1000, 1023, "b", "a", 2)])) == frozenset(
        range(1000, 1024)
    )
    assert here.publish(FIRST.apply([Move(1000, 1023, "b", "a", 2)])) == frozenset()


async def test_draining_waits_for_requests_under_way_and_parks_new_ones() -> None:
    here = guard_of("a")
    order: list[str] = []
    leave = asyncio.Event()

    async def under_way() -> None:
        async with held(here, 3):
            order.append("under way")
            await leave.wait()
            order.append("ended")

    async def parked() -> str:
        try:
            async with held(here, 3):
                return "let in"
        except Refusal as refusal:
            return refusal.reason

    async with asyncio.TaskGroup() as group:
        group.create_task(under_way())
        await asyncio.sleep(0)
        draining = group.create_task(here.drain([SlotRange(0, 9)], hold_s=30))
        await asyncio.sleep(0)
        late = group.create_task(parked())
        await asyncio.sleep(0.01)
        assert not draining.done()
        assert not late.done()
        leave.set()
        assert await draining == 1
        assert not late.done()
        here.publish(FIRST.apply([Move(0, 9, "a", "b", 2)]))
        assert await late == "SLOT_MOVED"
    assert order == ["under way", "ended"]


async def test_a_drain_that_nobody_finishes_lets_requests_in_again() -> None:
    here = guard_of("a")
    await here.drain([SlotRange(0, 9)], hold_s=0.02)
    async with held(here, 3):
        pass
