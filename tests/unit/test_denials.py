"""Refused calls are all in the audit log: one by one while they are few, then as a sum."""

from __future__ import annotations

import asyncio

from control.access.denials import Denials
from control.audit import audit_put, audit_record, list_audit
from control.chain.store import ChainedStore, verify_audit_log
from router.identity import spiffe_id
from router.store.memory import MemoryStore
from router.store.model import StoreUnavailable
from tests.integration.behind import going_on

MALLORY, ANN = spiffe_id("service", "mallory"), spiffe_id("operator", "ann")
_SUMMED_S = 0.02


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Away(MemoryStore):
    """etcd, when it is away for the next so many commits."""

    missing = 0

    async def commit(self, **what: object) -> int | None:
        if self.missing:
            self.missing -= 1
            raise StoreUnavailable("away")
        return await super().commit(**what)  # type: ignore[arg-type]


def world() -> tuple[Away, ChainedStore, Denials, Clock]:
    memory, clock = Away(), Clock()
    store = ChainedStore(memory)
    return memory, store, Denials(store, clock, summed_s=_SUMMED_S), clock


async def refuse(denials: Denials, actor: str, times: int) -> None:
    await asyncio.gather(
        *(
            denials.record(audit_record(actor, "Control.Start", str(number), "", "denied: no role"))
            for number in range(times)
        )
    )


async def until_summed(memory: MemoryStore, denials: Denials) -> None:
    async with going_on(denials.run):
        while not any(item.action == "calls" for item in await list_audit(memory)):
            await asyncio.sleep(_SUMMED_S)


async def test_thousands_of_refusals_are_some_records_and_their_sum() -> None:
    memory, _, denials, _ = world()
    await refuse(denials, MALLORY, 4096)
    assert len(await list_audit(memory)) == 60
    # Nobody else's are counted with them.
    await refuse(denials, ANN, 1)
    await until_summed(memory, denials)
    records = await list_audit(memory)
    assert [item.actor for item in records].count(ANN) == 1
    (summed,) = [item for item in records if item.action == "calls"]
    assert (summed.actor, summed.detail) == (MALLORY, "4036 calls")
    assert summed.verdict.startswith("denied: 4036 more")
    assert (await verify_audit_log(memory)).broken is None


async def test_an_operation_does_not_stand_behind_them() -> None:
    # The same chain: its records wait for each other.
    memory, store, denials, _ = world()
    failover = audit_put(audit_record(ANN, "failover", "", "dead"))
    async with asyncio.TaskGroup() as group:
        group.create_task(refuse(denials, MALLORY, 4096))
        await asyncio.sleep(0)
        group.create_task(store.commit(expect={}, puts=failover))
    actors = [item.actor for item in await list_audit(memory)]
    assert actors.count(ANN) == 1
    assert len(actors) <= 62


async def test_a_share_comes_back_with_time() -> None:
    memory, _, denials, clock = world()
    await refuse(denials, MALLORY, 100)
    clock.now += 10
    await refuse(denials, MALLORY, 100)
    one_by_one = [item for item in await list_audit(memory) if item.action != "calls"]
    assert len(one_by_one) == 70


async def test_a_sum_waits_for_etcd() -> None:
    memory, _, denials, _ = world()
    await refuse(denials, MALLORY, 61)
    memory.missing = 2
    await until_summed(memory, denials)
    assert [item.detail for item in await list_audit(memory)].count("1 calls") == 1
    assert memory.missing == 0
