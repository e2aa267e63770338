"""The guard: whose slot is it, where do requests wait, what do callers hear."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator

import grpc
import pytest

from router.errors import Refusal
from router.guard import SlotsHere, _Answering
from router.metrics import Calls
from router.slotmap import Move, SlotMap
from router.slots import SlotRange
from router.tracing import Tracer, TracingSettings

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


class _Context:
    """Of a call that sends nothing along."""

    def invocation_metadata(self) -> tuple[()]:
        return ()

    async def abort(self, *_: object, **__: object) -> None:
        raise grpc.aio.AbortError


async def _refused() -> weakref.ref[Refusal]:
    """A call that is refused by a guard with traces; the refusal."""
    seen: list[weakref.ref[Refusal]] = []

    def refusal() -> Refusal:
        made = Refusal(grpc.StatusCode.NOT_FOUND, "ORDER_NOT_FOUND", "there is no such order")
        seen.append(weakref.ref(made))
        return made

    async def behaviour(request: object, context: object) -> None:
        raise refusal()

    class Nowhere:
        waiting = lost = 0

        def put(self, trace_id: str, lines: object) -> None:
            pass

    tracer = Tracer(TracingSettings(endpoint="http://x"), Nowhere())
    answer = _Answering("s/M", None, {}, Calls(), tracer).wrap(behaviour)
    with contextlib.suppress(grpc.aio.AbortError):
        await answer(object(), _Context())
    assert tracer.kept["failed"] == 1
    return seen[0]


async def test_a_refusal_dies_with_its_call() -> None:
    """A name that held it in the frame that its traceback holds was a cycle: under a storm of
    refusals they lived until cycles were looked for, which cells do seldom."""
    gc.collect()
    gc.disable()
    try:
        assert (await _refused())() is None
    finally:
        gc.enable()
