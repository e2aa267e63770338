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
