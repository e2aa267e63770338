"""Who follows policies hears that there are none: until then nobody can say so."""

from __future__ import annotations

import asyncio

from router.policies.follow import Follower
from router.policies.rules import PolicySet
from router.store.memory import MemoryStore
from tests.integration.behind import going_on


async def test_the_first_set_is_heard_of_though_it_is_empty_and_the_same_again_is_not() -> None:
    store, heard = MemoryStore(), list[PolicySet]()
    async with going_on(Follower(store, heard.append).run):
        async with asyncio.timeout(10):
            while not heard:
                await asyncio.sleep(0.01)
        await store.commit(expect={}, puts={"/cellpay/policies/failover": "{}"})
        await store.commit(expect={}, puts={"/cellpay/policies/limits/x": '{"document": {}}'})
        async with asyncio.timeout(10):
            while len(heard) < 2:
                await asyncio.sleep(0.01)
    assert [len(policies.policies) for policies in heard] == [0, 1]


async def test_who_waits_for_the_first_set_goes_on_when_it_is_in_force() -> None:
    store, heard = MemoryStore(), list[PolicySet]()
    await store.commit(expect={}, puts={"/cellpay/policies/limits/x": '{"document": {}}'})
    follower = Follower(store, heard.append)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(follower.known())
        await asyncio.sleep(0.01)
        assert not waiting.done(), "nothing is known yet"
        async with going_on(follower.run), asyncio.timeout(10):
            await waiting
            assert len(heard) == 1
    await follower.known()
