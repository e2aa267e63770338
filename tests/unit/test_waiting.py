"""A wait for an event ends by the event or by time, and a cancellation always gets through."""

from __future__ import annotations

import asyncio

from router.waiting import heard


async def test_what_is_set_is_heard_and_what_is_not_is_not() -> None:
    event = asyncio.Event()
    assert not await heard(event, 0.001)
    event.set()
    assert await heard(event, 60)


async def test_a_cancellation_that_comes_with_the_event_is_not_lost() -> None:
    event = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(heard(event, 60))
        await asyncio.sleep(0)
        event.set()
        task.cancel()
    assert task.cancelled()


async def test_a_wait_without_time_ends_at_once() -> None:
    assert not await heard(asyncio.Event(), 0)
