"""Who leads: also when etcd does not answer what it has done."""

from __future__ import annotations

import asyncio
from typing import Any

from control.leader import Leadership
from router.store.memory import MemoryStore
from router.store.model import LEADER_KEY, StoreUnavailable


class Forgetful(MemoryStore):
    """Applies the first commit and loses its answer."""

    lost = 0

    async def commit(self, **changes: Any) -> Any:
        done = await super().commit(**changes)
        if not self.lost:
            self.lost += 1
            raise StoreUnavailable("the answer was lost")
        return done


async def test_a_lost_answer_leaves_no_key_that_nobody_stands_for() -> None:
    store = Forgetful()
    leadership = Leadership(store, "controller-1", ttl_s=1)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(leadership.run())
        async with asyncio.timeout(20):
            while not leadership.leads:
                await asyncio.sleep(0.01)
        running.cancel()
    assert store.lost == 1
    item = await store.get(LEADER_KEY)
    assert item is not None
    assert item.value == "controller-1"
