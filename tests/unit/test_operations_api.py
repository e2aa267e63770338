"""What operators ask of operations and cells, and how each wrong use is answered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from cellpay.control.v1 import control_pb2 as pb
from cellpay.control.v1 import operations_pb2 as ops_pb
from google.protobuf.field_mask_pb2 import FieldMask

from control.audit import list_audit
from control.operations.api import OperationsService
from control.operations.model import Operation, Step
from control.operations.runner import Runner
from control.service import ControlService
from control.view import LiveCell, View
from control.xds.server import XdsServer
from router.errors import Refusal
from router.slotmap import Move, SlotMap
from router.slots import SlotRange
from router.store.memory import MemoryStore
from router.store.model import (
    DECLARED_CELLS_PREFIX,
    FAILOVER_HOLDS_PREFIX,
    HELD_CELLS_PREFIX,
    OPEN_OPERATIONS_PREFIX,
    OPERATIONS_PREFIX,
    PREFERRED_SLOT_MAP_KEY,
    RUNNING_OPERATION_KEY,
    SLOT_MAP_KEY,
)
from tests.unit.test_operations_steps import OPERATOR, Context

FIRST = SlotMap.even(["a", "b", "c"])


class Parts:
    """A fence and cells that do what they are asked."""

    async def assign(self, moves: Sequence[Move], operation_id: str) -> None:
        return

    async def drain(self, cell: str, ranges: Sequence[SlotRange]) -> str:
        return "drained"

    async def recover(self, cell: str, ranges: Sequence[SlotRange]) -> int | None:
        return 0


class Desk:
    """A control plane in memory: its services, its runner, its view brought up to date by hand."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.view = View(store)
        self.view.preferred, self.view.knows_live = FIRST, True
        self.view.declared = {"a": "north", "b": "north", "c": "south"}
        self.view.live = {cell: LiveCell("x", ["127.0.0.1:1"], "x") for cell in "abc"}
        self.control = ControlService(store, self.view, XdsServer())
        self.operations: OperationsService = self.control.operations()
        parts = Parts()
        self.runner = Runner(store, parts, parts, known=self.view.known)

    async def look(self) -> None:
        item = await self.store.get(SLOT_MAP_KEY)
        assert item is not None
        self.view.slot_map, self.view.revision = SlotMap.from_json(item.value), item.revision

    async def start(self, **fields: Any) -> pb.Operation:
        await self.look()
        request = pb.StartOperationRequest(reason="r", **fields)
        return await self.control.StartOperation(request, OPERATOR)

    async def run(self, operation_id: str) -> Operation:
        ended = await self.runner.run(operation_id)
        assert ended is not None
        return ended

    async def step(self, operation_id: str) -> None:
        item = await self.store.get(OPERATIONS_PREFIX + operation_id)
        assert item is not None
        await self.runner.step(Operation.from_json(item.value), item)

    async def ask(self, what: str, operation_id: str, context: Any = OPERATOR) -> pb.Operation:
        await self.look()
        request = getattr(ops_pb, f"{what}OperationRequest")
        call = getattr(self.operations, f"{what}Operation")
        answer: pb.Operation = await call(request(operation_id=operation_id, reason="r"), context)
        return answer


@pytest.fixture
async def desk() -> Desk:
    store = MemoryStore()
    text = FIRST.to_json()
    await store.commit(expect={}, puts={SLOT_MAP_KEY: text, PREFERRED_SLOT_MAP_KEY: text})
    return Desk(store)


async def refused(work: Any) -> tuple[str, str]:
    with pytest.raises(Refusal) as caught:
        await work
    return caught.value.code.name, caught.value.reason


GRADUAL: dict[str, Any] = {
    "kind": pb.Operation.KIND_MOVE, "first": 0, "last": 99, "target": "b",
    "percents": [10, 100], "gate": pb.Gate(soak_ms=1),
}  # fmt: skip


async def test_a_pause_before_the_first_wave_stops_it_at_once_and_sets_the_way_free(
    desk: Desk,
) -> None:
    operation = await desk.start(**GRADUAL)
    paused = await desk.ask("Pause", operation.operation_id)
    assert paused.step == pb.Operation.STEP_PAUSED
    assert await desk.store.get(RUNNING_OPERATION_KEY) is None
    assert await refused(desk.ask("Pause", operation.operation_id)) == (
        "FAILED_PRECONDITION", "WRONG_STEP",
    )  # fmt: skip
    assert (await desk.run(operation.operation_id)).step == Step.PAUSED
    other = await desk.start(kind=pb.Operation.KIND_DRAIN, cell="c")
    assert (await desk.run(other.operation_id)).step == Step.DONE
    resumed = await desk.ask("Resume", operation.operation_id)
    assert resumed.step == pb.Operation.STEP_WAITING
    ended = await desk.run(operation.operation_id)
    assert (ended.step, ended.wave) == (Step.DONE, 2)
    assert not (await desk.store.list(OPEN_OPERATIONS_PREFIX)).items


@pytest.mark.parametrize(("request_", "step"), [("Pause", Step.PAUSED), ("Abort", Step.ABORTED)])
async def test_in_the_middle_of_a_wave_a_request_is_noted_and_granted_after_it(
    desk: Desk, request_: str, step: Step
) -> None:
    operation = await desk.start(**GRADUAL)
    await desk.step(operation.operation_id)
    noted = await desk.ask(request_, operation.operation_id)
    assert noted.step == pb.Operation.STEP_DRAINED
    assert noted.request != pb.Operation.REQUEST_UNSPECIFIED
    ended = await desk.run(operation.operation_id)
    assert ended.step == step
    assert ended.moved == (Move(0, 9, "a", "b", 2),)
    assert await desk.store.get(RUNNING_OPERATION_KEY) is None
    back = await desk.ask("RollBack", operation.operation_id)
    assert (back.undoes, back.kind) == (operation.operation_id, pb.Operation.KIND_ROLLBACK)
    assert (await desk.run(back.operation_id)).step == Step.DONE
    await desk.look()
    assert desk.view.slot_map is not None
    assert desk.view.slot_map.at(0)[2:] == ("a", 3)
    again = desk.ask("RollBack", operation.operation_id)
    assert await refused(again) == ("FAILED_PRECONDITION", "WRONG_STEP")


async def test_a_pause_that_is_taken_back_in_time_is_as_if_it_had_never_been(desk: Desk) -> None:
    operation = await desk.start(**GRADUAL)
    await desk.step(operation.operation_id)
    await desk.ask("Pause", operation.operation_id)
    resumed = await desk.ask("Resume", operation.operation_id)
    assert resumed.request == pb.Operation.REQUEST_UNSPECIFIED
    assert (await desk.run(operation.operation_id)).step == Step.DONE


@pytest.mark.parametrize("what", ["Pause", "Resume", "Abort"])
async def test_an_operation_that_has_ended_takes_no_requests(desk: Desk, what: str) -> None:
    operation = await desk.start(kind=pb.Operation.KIND_DRAIN, cell="c")
    await desk.run(operation.operation_id)
    wrong = desk.ask(what, operation.operation_id)
    assert await refused(wrong) == ("FAILED_PRECONDITION", "WRONG_STEP")
    assert await refused(desk.ask(what, "op-x")) == ("NOT_FOUND", "OPERATION_NOT_FOUND")
    verdicts = {record.verdict for record in await list_audit(desk.store)}
    assert {"denied: WRONG_STEP", "denied: OPERATION_NOT_FOUND"} <= verdicts


async def test_a_rollback_in_the_middle_of_a_wave_or_of_nothing_is_refused(desk: Desk) -> None:
    operation = await desk.start(**GRADUAL)
    await desk.step(operation.operation_id)
    wrong = desk.ask("RollBack", operation.operation_id)
    assert await refused(wrong) == ("FAILED_PRECONDITION", "WRONG_STEP")
    await desk.run(operation.operation_id)
    aborted = await desk.start(**{**GRADUAL, "first": 500, "last": 599, "target": "c"})
    await desk.ask("Abort", aborted.operation_id)
    nothing = desk.ask("RollBack", aborted.operation_id)
    assert await refused(nothing) == ("FAILED_PRECONDITION", "NOTHING_TO_MOVE")


async def test_a_rollback_leaves_alone_what_others_have_moved_since(desk: Desk) -> None:
    first = await desk.start(kind=pb.Operation.KIND_MOVE, first=0, last=9, target="b")
    await desk.run(first.operation_id)
    second = await desk.start(kind=pb.Operation.KIND_MOVE, first=0, last=3, target="c")
    await desk.run(second.operation_id)
    back = await desk.ask("RollBack", first.operation_id)
    assert [(move.first, move.last, move.target) for move in back.moves] == [(4, 9, "a")]


@pytest.mark.parametrize("what", ["Pause", "Resume", "Abort", "RollBack"])
async def test_only_operators_ask(desk: Desk, what: str) -> None:
    service = Context("spiffe://cellpay.local/service/shop")
    denied = desk.ask(what, "op-1", service)
    assert await refused(denied) == ("PERMISSION_DENIED", "CALLER_NOT_ALLOWED")


async def test_a_dry_run_shows_loads_and_changes_nothing(desk: Desk) -> None:
    await desk.look()
    desk.view.capacity = {"a": 400, "c": 400}
    before = dict((await desk.store.list("")).items)
    asked = pb.StartOperationRequest(kind=pb.Operation.KIND_FAILOVER, cell="b")
    plan = await desk.operations.PlanOperation(
        ops_pb.PlanOperationRequest(operation=asked), OPERATOR
    )
    loads = {load.cell: (load.slots_now, load.slots_then, load.capacity) for load in plan.loads}
    assert loads == {"a": (342, 400, 400), "b": (341, 224, 0), "c": (341, 400, 400)}
    assert plan.waiting == 224
    assert dict((await desk.store.list("")).items) == before
    asked.kind = pb.Operation.KIND_DRAIN
    planned = desk.operations.PlanOperation(ops_pb.PlanOperationRequest(operation=asked), OPERATOR)
    assert await refused(planned) == ("RESOURCE_EXHAUSTED", "NO_HEAD_ROOM")


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"kind": pb.Operation.KIND_DRAIN}, "cell"),
        ({"kind": pb.Operation.KIND_DRAIN, "cells": ["a", "a"]}, "cells"),
        ({"kind": pb.Operation.KIND_DRAIN, "cell": "a", "region": "north"}, "region"),
        ({"kind": pb.Operation.KIND_FAILOVER, "region": "west"}, "region"),
        ({"kind": pb.Operation.KIND_FAILOVER, "cell": "a", "percents": [5]}, "percents"),
        ({**GRADUAL, "percents": [50, 10]}, "percents"),
        ({**GRADUAL, "percents": [0]}, "percents"),
        ({**GRADUAL, "percents": [101]}, "percents"),
        ({**GRADUAL, "target": ""}, "target"),
        ({**GRADUAL, "last": 1024}, "first"),
        ({**GRADUAL, "gate": pb.Gate(soak_ms=-1)}, "gate.soak_ms"),
        ({**GRADUAL, "gate": pb.Gate(failure_percent_max=101)}, "gate.failure_percent_max"),
        ({"kind": pb.Operation.KIND_REBALANCE, "cell": "a"}, "weights"),
        ({"kind": pb.Operation.KIND_REBALANCE, "weights": {"a": -1}}, "weights[a]"),
        ({"kind": pb.Operation.KIND_DRAIN, "cell": "a", "weights": {"a": 1}}, "weights"),
        ({"kind": pb.Operation.KIND_ROLLBACK}, "kind"),
    ],
)  # fmt: skip
async def test_a_wrong_wish_names_its_wrong_field(
    desk: Desk, fields: dict[str, Any], wrong: str
) -> None:
    with pytest.raises(Refusal) as caught:
        await desk.start(**fields)
    assert caught.value.code.name == "INVALID_ARGUMENT"
    assert wrong in [violation.field for violation in caught.value.violations]


async def declare(desk: Desk, **fields: Any) -> pb.Cell:
    request = ops_pb.DeclareCellRequest(reason="r", **fields)
    return await desk.operations.DeclareCell(request, OPERATOR)


async def test_cells_are_added_changed_removed_and_added_again(desk: Desk) -> None:
    key = DECLARED_CELLS_PREFIX + "c"
    assert (await declare(desk, cell="c", region="south", capacity=500)).capacity == 500
    assert (await declare(desk, cell="c", surge=9)).region == "south"
    item = await desk.store.get(key)
    assert item is not None
    assert json.loads(item.value) == {"region": "south", "surge": 9}
    assert await refused(declare(desk, cell="c", region="north")) == (
        "INVALID_ARGUMENT", "INVALID_REQUEST",
    )  # fmt: skip
    operation = await desk.start(kind=pb.Operation.KIND_REMOVE, cell="c")
    assert (await desk.run(operation.operation_id)).step == Step.DONE
    removed = await desk.store.get(key)
    assert removed is not None
    assert json.loads(removed.value)["removed"]
    assert (await declare(desk, cell="c", region="west")).region == "west"


async def test_a_cell_that_owns_nothing_is_removed_all_the_same(desk: Desk) -> None:
    """One that was just added, or drained before."""
    await declare(desk, cell="d", region="south")
    desk.view.declared["d"] = "south"
    operation = await desk.start(kind=pb.Operation.KIND_REMOVE, cell="d")
    ended = await desk.run(operation.operation_id)
    assert (ended.step, ended.moved) == (Step.DONE, ())
    item = await desk.store.get(DECLARED_CELLS_PREFIX + "d")
    assert item is not None
    assert json.loads(item.value)["removed"]


async def test_a_mask_changes_one_limit_and_leaves_the_other(desk: Desk) -> None:
    await declare(desk, cell="c", region="south", capacity=500, surge=9)
    surge = FieldMask(paths=["surge"])
    changed = await declare(desk, cell="c", surge=7, update_mask=surge)
    assert (changed.capacity, changed.surge) == (500, 7)
    lifted = await declare(desk, cell="c", update_mask=FieldMask(paths=["capacity"]))
    assert (lifted.capacity, lifted.surge) == (0, 7)
    wrong = declare(desk, cell="c", update_mask=FieldMask(paths=["region"]))
    assert await refused(wrong) == ("INVALID_ARGUMENT", "INVALID_REQUEST")


async def test_an_aborted_failover_is_held_down_as_asked_and_released(desk: Desk) -> None:
    for hold, held in ((None, True), (0, False)):
        operation = await desk.start(kind=pb.Operation.KIND_FAILOVER, cell="c")
        request = ops_pb.AbortOperationRequest(
            operation_id=operation.operation_id, reason="r", hold_s=hold
        )
        await desk.operations.AbortOperation(request, OPERATOR)
        assert bool((await desk.store.list(FAILOVER_HOLDS_PREFIX)).items) == held
        release = ops_pb.ReleaseFailoverRequest(cell="c", reason="r")
        if held:
            await desk.operations.ReleaseFailover(release, OPERATOR)
    assert await refused(desk.operations.ReleaseFailover(release, OPERATOR)) == (
        "FAILED_PRECONDITION", "NOT_HELD_DOWN",
    )  # fmt: skip
    request = ops_pb.AbortOperationRequest(operation_id="op-x", reason="r", hold_s=-1)
    wrong = desk.operations.AbortOperation(request, OPERATOR)
    assert await refused(wrong) == ("INVALID_ARGUMENT", "INVALID_REQUEST")


@pytest.mark.parametrize(
    "fields",
    [
        {"cell": "", "region": "x"},
        {"cell": "Big", "region": "x"},
        {"cell": "a/b", "region": "x"},
        {"cell": "new"},
        {"cell": "new", "region": "x", "capacity": -1},
        {"cell": "new", "region": "x", "surge": 1025},
    ],
)
async def test_a_wrong_declaration_is_refused(desk: Desk, fields: dict[str, Any]) -> None:
    assert await refused(declare(desk, **fields)) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert not (await desk.store.list(DECLARED_CELLS_PREFIX)).items


async def test_a_restore_ends_the_hold_and_keeps_the_record(desk: Desk) -> None:
    move = await desk.start(kind=pb.Operation.KIND_FAILOVER, cell="b")
    await desk.run(move.operation_id)
    held = json.dumps({"flaps": 2, "out": True, "why": "lost its lease"})
    await desk.store.commit(expect={}, puts={HELD_CELLS_PREFIX + "b": held})
    restore = await desk.start(kind=pb.Operation.KIND_RESTORE, cell="b")
    assert (await desk.run(restore.operation_id)).step == Step.DONE
    item = await desk.store.get(HELD_CELLS_PREFIX + "b")
    assert item is not None
    assert json.loads(item.value) == {"flaps": 2, "out": False, "why": "lost its lease"}


async def test_a_policy_keeps_what_is_not_named_and_refuses_nonsense(desk: Desk) -> None:
    async def set_policy(**fields: Any) -> pb.FailoverPolicy:
        request = pb.SetFailoverPolicyRequest(policy=pb.FailoverPolicy(**fields), reason="r")
        return await desk.control.SetFailoverPolicy(request, OPERATOR)

    await set_policy(automatic=True, windows=7, real_traffic=False)
    got = await set_policy(automatic=False)
    assert (got.automatic, got.windows, got.real_traffic) == (False, 7, False)
    assert await refused(set_policy(failure_percent=101)) == (
        "INVALID_ARGUMENT", "INVALID_REQUEST",
    )  # fmt: skip
