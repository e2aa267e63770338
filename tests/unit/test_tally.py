"""What counts as a failed payment, and what does not."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from router.errors import Refusal
from router.tally import Tally


class Context:
    def __init__(self, left: float | None = 9.0) -> None:
        self._left = left

    def time_remaining(self) -> float | None:
        return self._left


def refusal(code: str, reason: str = "R") -> Refusal:
    return Refusal(grpc.StatusCode[code], reason, "why")


@pytest.mark.parametrize(
    ("error", "ok", "failed"),
    [
        (None, 1, 0),
        (refusal("FAILED_PRECONDITION", "INSUFFICIENT_FUNDS"), 1, 0),
        (refusal("RESOURCE_EXHAUSTED"), 1, 0),
        (refusal("UNAVAILABLE", "DATABASE_UNAVAILABLE"), 0, 1),
        (refusal("DEADLINE_EXCEEDED"), 0, 1),
        (refusal("UNAVAILABLE", "SLOT_MOVED"), 0, 0),
        (refusal("FAILED_PRECONDITION", "NOT_HOME"), 0, 0),
        (ZeroDivisionError(), 0, 1),
    ],
)
async def test_only_the_servers_own_faults_count_as_failed(
    error: Exception | None, ok: int, failed: int
) -> None:
    tally = Tally()

    async def behaviour(request: Any, context: Any) -> str:
        if error is not None:
            raise error
        return "paid"

    try:
        assert await tally.watch(behaviour)(None, Context()) == "paid"
    except (Refusal, ZeroDivisionError) as caught:
        assert caught is error
    assert (tally.ok, tally.failed, sum(tally.buckets)) == (ok, failed, ok + failed)


@pytest.mark.parametrize(("left", "failed"), [(0.0, 1), (-0.1, 1), (3.0, 0), (None, 0)])
async def test_a_deadline_that_passed_is_our_fault_and_a_change_of_mind_is_not(
    left: float | None, failed: int
) -> None:
    tally = Tally()

    async def behaviour(request: Any, context: Any) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await tally.watch(behaviour)(None, Context(left))
    assert (tally.ok, tally.failed) == (0, failed)


async def test_calls_that_stand_while_none_ends_count_as_failed_at_every_look() -> None:
    tally = Tally()
    free = asyncio.Event()

    async def behaviour(request: Any, context: Any) -> None:
        await free.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(tally.watch(behaviour)(None, Context()))
        await asyncio.sleep(0)
        assert tally.look()[:2] == (0, 0), "they have only just begun"
        assert tally.look()[:2] == (0, 3)
        assert tally.look()[:2] == (0, 6)
        free.set()
    assert tally.look()[:2] == (3, 6)
    assert tally.look()[:2] == (3, 6)


async def test_many_in_one_call_are_counted_one_by_one() -> None:
    tally = Tally()
    outcomes: list[object] = []
    with tally.many(outcomes, [False, True, False, True]):
        outcomes += ["paid", refusal("UNAVAILABLE"), refusal("FAILED_PRECONDITION"), "paid"]
    assert (tally.ok, tally.failed, sum(tally.buckets)) == (3, 1, 4)
    new = tally.newcomers
    assert (new.ok, new.failed, sum(new.buckets)) == (1, 1, 2)


async def test_calls_to_slots_that_came_last_are_counted_by_themselves_too() -> None:
    tally = Tally()

    async def behaviour(request: Any, context: Any) -> None:
        if request == "moved, broken":
            raise refusal("UNAVAILABLE")

    watched = tally.watch(behaviour, lambda request: request.startswith("moved"))
    for request in ("old", "moved", "old"):
        await watched(request, Context())
    with pytest.raises(Refusal):
        await watched("moved, broken", Context())
    assert (tally.ok, tally.failed) == (3, 1)
    assert (tally.newcomers.ok, tally.newcomers.failed) == (1, 1)
