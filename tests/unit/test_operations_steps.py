"""Operations step by step: what a runner bounds, and what the API refuses and writes down.

The table of steps is in test_operations.py, crashes are in tests/property/test_operations.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from cellpay.control.v1 import control_pb2 as pb

import control.operations.runner
from control.audit import list_audit
from control.operations.model import Operation, OperationKind, Step
from control.operations.runner import Runner
from control.service import ControlService
from control.view import LiveCell, View
from control.xds.server import XdsServer
from router.errors import Refusal
from router.slotmap import Move, SlotMap
from router.slots import SlotRange
from router.store.memory import MemoryStore
from router.store.model import (
    FAILOVER_POLICY_KEY,
    OPERATIONS_PREFIX,
    PREFERRED_SLOT_MAP_KEY,
    RUNNING_OPERATION_KEY,
    SLOT_MAP_KEY,
)

FIRST = SlotMap.even(["a", "b"])
KEY = OPERATIONS_PREFIX + "op-1"


class Fence:
    async def assign(self, moves: Sequence[Move], operation_id: str) -> None:
        return


class Calls:
    """Answers of RecoverSlots in turn, the last one for ever; a hang where it says "hangs"."""

    def __init__(self, *answers: int | str | None) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def drain(self, cell: str, ranges: Sequence[SlotRange]) -> str:
        return "drained"

    async def recover(self, cell: str, ranges: Sequence[SlotRange]) -> int | None:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, str):
            await asyncio.sleep(3600)
            return None
        return answer


async def stored(step: Step, slot_map: SlotMap = FIRST) -> MemoryStore:
    store = MemoryStore()
    moves = (Move(0, 9, "a", "b", 2),)
    operation = Operation("op-1", OperationKind.MOVE, "", moves, "me", "why", step, ())
    puts = {KEY: operation.to_json(), RUNNING_OPERATION_KEY: "op-1"}
    await store.commit(expect={}, puts={**puts, SLOT_MAP_KEY: slot_map.to_json()})
    return store


@pytest.mark.parametrize(
    ("answers", "asked", "note"),
    [
        ((0,), 1, "nothing in doubt"),
        ((3, 1, 0), 3, "nothing in doubt"),
        ((None, None, 0), 3, "nothing in doubt"),
        ((None,), 3, "left to the cells' own recovery: {'b': None}"),
        ((2,), 20, "left to the cells' own recovery: {'b': 2}"),
        (("hangs",), 1, "left to the cells' own recovery: {'b': None}"),
    ],
)
async def test_recovery_is_asked_for_a_bounded_time_and_the_operation_ends(
    monkeypatch: pytest.MonkeyPatch, answers: tuple[Any, ...], asked: int, note: str
) -> None:
    """A target that dies too must not hold up the failover that would replace it."""
    monkeypatch.setattr(control.operations.runner, "_RECOVER_WAIT_S", 0.001)
    monkeypatch.setattr(control.operations.runner, "_RECOVER_BUDGET_S", 0.5)
    store = await stored(Step.PUBLISHED)
    calls = Calls(*answers)
    ended = await Runner(store, Fence(), calls).run("op-1")
    assert ended is not None
    assert ended.step == Step.DONE
    assert calls.asked == asked
    assert ended.history[0].note == note


async def test_a_map_that_contradicts_the_fence_stops_the_operation_and_not_the_controller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(control.operations.runner, "_STUCK_RETRY_S", 0.01)
    store = await stored(Step.FENCED, FIRST.apply([Move(5, 5, "a", "c", 7)]))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(Runner(store, Fence(), Calls(0)).run("op-1"))
        await asyncio.sleep(0.05)
        assert not running.done()
        await store.commit(expect={}, puts={SLOT_MAP_KEY: FIRST.to_json()})
    ended = running.result()
    assert ended is not None
    assert ended.step == Step.DONE


class Context:
    """As much of a call's context as ControlService looks at."""

    def __init__(self, spiffe_id: str) -> None:
        self._spiffe_id = spiffe_id

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"peer_spiffe_id": [self._spiffe_id.encode()]}


def asking(kind: Any, **fields: Any) -> pb.StartOperationRequest:
    """`kind` by number: what comes by wire need not be one that we know."""
    return pb.StartOperationRequest(kind=kind, **fields)


OPERATOR = Context("spiffe://cellpay.local/operator/ann")


@pytest.fixture
async def store() -> MemoryStore:
    made = MemoryStore()
    text = FIRST.to_json()
    policy = json.dumps({"automatic": True})
    puts = {SLOT_MAP_KEY: text, PREFERRED_SLOT_MAP_KEY: text, FAILOVER_POLICY_KEY: policy}
    await made.commit(expect={}, puts=puts)
    return made


@pytest.fixture
def service(store: MemoryStore) -> ControlService:
    view = View(store)
    view.slot_map, view.preferred, view.revision, view.knows_live = FIRST, FIRST, 2, True
    view.declared = {"a": "region-a", "b": "region-b"}
    view.live = {"a": LiveCell("region-a", ["127.0.0.1:1"], "x")}
    return ControlService(store, view, XdsServer())


@pytest.mark.parametrize(
    ("request_", "status", "reason", "action"),
    [
        (asking(3, cell="a", reason="r"), "FAILED_PRECONDITION",
         "NOTHING_TO_MOVE", "operation.restore"),
        (asking(1, cell="x", reason="r"), "NOT_FOUND", "UNKNOWN_CELL",
         "operation.failover"),
        (asking(4, target="b", reason="r"), "FAILED_PRECONDITION",
         "TARGET_DEAD", "operation.move"),
        (asking(2, cell="a", reason=" "), "INVALID_ARGUMENT",
         "INVALID_REQUEST", "operation.drain"),
        (asking(0, cell="a", reason="r"), "INVALID_ARGUMENT",
         "INVALID_REQUEST", "operation.unknown"),
        (asking(99, cell="a", reason="r"), "INVALID_ARGUMENT",
         "INVALID_REQUEST", "operation.unknown"),
    ],
)  # fmt: skip
async def test_what_an_operator_is_refused_is_in_the_audit_log(
    service: ControlService,
    store: MemoryStore,
    request_: pb.StartOperationRequest,
    status: str,
    reason: str,
    action: str,
) -> None:
    with pytest.raises(Refusal) as caught:
        await service.StartOperation(request_, OPERATOR)
    assert (caught.value.code.name, caught.value.reason) == (status, reason)
    (record,) = await list_audit(store)
    assert (record.action, record.verdict) == (action, f"denied: {reason}")
    assert record.actor == "spiffe://cellpay.local/operator/ann"


async def test_what_an_operator_is_allowed_is_in_the_audit_log_once(
    service: ControlService, store: MemoryStore
) -> None:
    wanted = pb.SetFailoverPolicyRequest(policy=pb.FailoverPolicy(automatic=False), reason="quiet")
    await service.SetFailoverPolicy(wanted, OPERATOR)
    (record,) = await list_audit(store)
    assert (record.action, record.verdict) == ("policy.failover", "allowed")
    assert not (await service.GetFailoverPolicy(pb.GetFailoverPolicyRequest(), OPERATOR)).automatic


@pytest.mark.parametrize("who", ["cell/a", "service/shop", "controller/1", "operator"])
async def test_nobody_else_writes_and_the_attempt_is_in_the_audit_log(
    service: ControlService, store: MemoryStore, who: str
) -> None:
    context = Context(f"spiffe://cellpay.local/{who}")
    for attempt in (
        service.StartOperation(asking(1, cell="b"), context),
        service.SetFailoverPolicy(pb.SetFailoverPolicyRequest(), context),
    ):
        with pytest.raises(Refusal) as caught:
            await attempt
        assert caught.value.code == grpc.StatusCode.PERMISSION_DENIED
    verdicts = {record.verdict for record in await list_audit(store)}
    assert verdicts == {"denied: not an operator"}
    assert await store.get(RUNNING_OPERATION_KEY) is None
