"""The gate, with a service behind it that commits as ours do: approvals used with their action."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest
from cellpay.control.v1 import control_pb2 as pb
from structlog.testing import capture_logs

from control.access.gate import Gate
from control.access.headers import APPROVAL_HEADER, BREAK_GLASS_HEADER
from control.access.rules import Role
from control.access.store import Access, approval_policy_put, binding_put
from control.approvals import store as approvals
from control.approvals.model import Approval, Event
from control.approvals.rules import decide
from control.audit import audit_put, audit_record, list_audit
from control.chain.store import ChainedStore, verify_audit_log
from router.errors import Refusal
from router.identity import spiffe_id
from router.store.memory import MemoryStore
from router.store.model import StoreUnavailable

CONTROL = "cellpay.control.v1.ControlService"
ANN, BOB = spiffe_id("operator", "ann"), spiffe_id("operator", "bob")
ASKED = pb.SetFailoverPolicyRequest(reason="night", policy=pb.FailoverPolicy(automatic=True))
EFFECT = "/test/policy"


class Context:
    """As much of a call as the gate looks at."""

    def __init__(self, caller: str | None, **headers: str) -> None:
        self._caller = caller
        self._headers = headers

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"peer_spiffe_id": [self._caller.encode()]} if self._caller else {}

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple((name.replace("_", "-"), value) for name, value in self._headers.items())


class World:
    """A store, a gate before a service of one method, and two persons."""

    def __init__(self, ttl_s: int = 60) -> None:
        self.memory = MemoryStore()
        self.store = ChainedStore(self.memory)
        self.access = Access(self.store)
        self.gate = Gate(self.store, self.access, approval_ttl_s=ttl_s)

    async def call(
        self,
        who: str | None,
        request: Any = ASKED,
        method: str = "SetFailoverPolicy",
        **headers: str,
    ) -> Any:
        async def set_policy(request: Any, context: Any) -> str:
            puts = audit_put(audit_record(who or "", "policy.failover", "", request.reason))
            assert await self.store.commit(expect={}, puts={EFFECT: "set", **puts})
            return "done"

        context = Context(who, **headers)
        return await self.gate.pass_through(CONTROL, method, set_policy, request, context)

    async def asked(self, who: str = ANN, request: Any = ASKED) -> str:
        """An approval that waits; its ID."""
        with pytest.raises(Refusal) as caught:
            await self.call(who, request)
        assert caught.value.reason == "APPROVAL_REQUIRED"
        assert caught.value.code == grpc.StatusCode.FAILED_PRECONDITION
        return caught.value.metadata["approval_id"]

    async def decide(self, approval_id: str, who: str = BOB, event: Event = Event.APPROVE) -> None:
        found = await approvals.find(self.store, approval_id)
        after = decide(found.approval, who, event, alive=found.alive, now_ms=1, note="")
        assert isinstance(after, Approval)
        assert await approvals.decided(self.store, found, after, f"approval.{event}", "seen")

    async def refused(self, who: str = ANN, request: Any = ASKED, **headers: str) -> str:
        with pytest.raises(Refusal) as caught:
            await self.call(who, request, **headers)
        return caught.value.reason

    async def verdicts(self) -> list[str]:
        assert (await verify_audit_log(self.store)).broken is None
        return [record.verdict for record in await list_audit(self.store)]


def approval(identifier: str) -> dict[str, str]:
    return {APPROVAL_HEADER.replace("-", "_"): identifier}


BREAK_GLASS = {BREAK_GLASS_HEADER.replace("-", "_"): "yes"}


async def test_what_was_approved_by_another_goes_once_and_says_who_approved() -> None:
    world = World()
    identifier = await world.asked()
    assert await world.memory.get(EFFECT) is None, "it was held"
    await world.decide(identifier)
    assert await world.call(ANN, **approval(identifier)) == "done"
    assert f"allowed: {identifier} by {BOB}" in await world.verdicts()
    assert await world.refused(**approval(identifier)) == "APPROVAL_USED"


async def test_an_approval_is_for_nothing_and_nobody_else() -> None:
    world = World()
    identifier = await world.asked()
    assert await world.refused(**approval(identifier)) == "APPROVAL_PENDING"
    await world.decide(identifier)
    other = pb.SetFailoverPolicyRequest(reason="night")
    assert await world.refused(request=other, **approval(identifier)) == "APPROVAL_MISMATCH"
    assert await world.refused(BOB, **approval(identifier)) == "APPROVAL_OF_ANOTHER"
    assert await world.refused(**approval("appr-none")) == "APPROVAL_NOT_FOUND"
    rejected = await world.asked()
    await world.decide(rejected, event=Event.REJECT)
    assert await world.refused(**approval(rejected)) == "APPROVAL_REJECTED"
    assert await world.memory.get(EFFECT) is None


async def test_an_approval_runs_out_by_the_stores_clock() -> None:
    world = World(ttl_s=0)
    identifier = await world.asked()
    await asyncio.sleep(0.01)
    assert await world.refused(**approval(identifier)) == "APPROVAL_EXPIRED"


async def test_one_approval_is_not_used_twice_by_two_calls_at_once() -> None:
    world = World()
    identifier = await world.asked()
    await world.decide(identifier)
    calls = (world.call(ANN, **approval(identifier)) for _ in range(5))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert answers.count("done") == 1
    reasons = {answer.reason for answer in answers if isinstance(answer, Refusal)}
    assert reasons <= {"APPROVAL_CHANGED", "APPROVAL_USED"}
    assert len([item for item in await world.verdicts() if identifier in item]) == 1


async def test_broken_glass_goes_through_and_shouts() -> None:
    world = World()
    with capture_logs() as logs:
        assert await world.call(ANN, **BREAK_GLASS) == "done"
    assert await world.verdicts() == ["BREAK GLASS"]
    (shout,) = [entry for entry in logs if entry["event"] == "BREAK GLASS"]
    assert shout["log_level"] == "critical"
    assert shout["caller"] == ANN


async def test_broken_glass_gives_nobody_a_role() -> None:
    world = World()
    await world.memory.commit(expect={}, puts=binding_put(ANN, [Role.VIEWER]))
    assert await world.refused(**BREAK_GLASS) == "CALLER_NOT_ALLOWED"
    assert await world.refused(spiffe_id("cell", "a"), **BREAK_GLASS) == "CALLER_NOT_ALLOWED"


async def test_with_approvals_off_one_person_is_enough() -> None:
    world = World()
    await world.memory.commit(expect={}, puts=approval_policy_put(False))
    assert await world.call(ANN) == "done"
    assert await world.verdicts() == ["allowed"]


@pytest.mark.parametrize("who", [None, "spiffe://elsewhere/operator/ann", spiffe_id("edge", "e")])
async def test_who_has_no_role_is_refused_and_audited(who: str | None) -> None:
    world = World()
    with pytest.raises(Refusal) as caught:
        await world.call(who)
    assert caught.value.code == grpc.StatusCode.PERMISSION_DENIED
    (record,) = await list_audit(world.store)
    assert record.action == "ControlService.SetFailoverPolicy"
    assert record.verdict.startswith("denied")
    assert record.reason == "night"
    assert json.loads(record.detail)["policy"] == {"automatic": True}


async def test_a_method_that_nobody_named_is_nobodys() -> None:
    with pytest.raises(Refusal) as caught:
        await World().call(ANN, method="DropEverything")
    assert caught.value.reason == "CALLER_NOT_ALLOWED"


async def test_a_role_that_was_taken_away_is_gone_at_the_next_write() -> None:
    world = World()
    await world.memory.commit(expect={}, puts=approval_policy_put(False))
    assert await world.call(ANN) == "done"
    await world.memory.commit(expect={}, puts=binding_put(ANN, [Role.VIEWER]))
    assert await world.refused() == "CALLER_NOT_ALLOWED"


async def test_reads_go_on_while_the_store_is_away_and_writes_do_not() -> None:
    world = World()
    world.memory.available = False
    read = pb.GetSlotMapRequest()

    async def answer(request: Any, context: Any) -> str:
        return "map"

    assert await world.gate.pass_through(CONTROL, "GetSlotMap", answer, read, Context(ANN)) == "map"
    with pytest.raises(StoreUnavailable):
        await world.call(ANN)
