"""Starting operations: step 2 of a failover's walk. Plan, then store plan and audit as one."""

from __future__ import annotations

import time
from dataclasses import replace

import grpc

from control.audit import audit_put, audit_record, new_id
from control.operations.holding import Hold, hold_down
from control.operations.model import (
    ENDED,
    Gate,
    Operation,
    OperationKind,
    Request,
    Step,
    StepRecord,
    slot_count,
)
from control.operations.records import Change, begun, changed, handed_over
from control.operations.runner import inverse
from control.operations.steps import NoPlan, Plan, PlanReason, Wish, ask, plan, undo
from control.operations.waves import Known
from router.errors import Refusal
from router.store.model import (
    OPERATIONS_PREFIX,
    RUNNING_OPERATION_KEY,
    SLOT_MAP_KEY,
    Item,
    Store,
)

_STATUS = {
    PlanReason.UNKNOWN_CELL: grpc.StatusCode.NOT_FOUND,
    PlanReason.CELL_DEAD: grpc.StatusCode.FAILED_PRECONDITION,
    PlanReason.TARGET_DEAD: grpc.StatusCode.FAILED_PRECONDITION,
    PlanReason.NO_TARGET: grpc.StatusCode.FAILED_PRECONDITION,
    PlanReason.CELL_HELD_OUT: grpc.StatusCode.FAILED_PRECONDITION,
    PlanReason.NOTHING_TO_MOVE: grpc.StatusCode.FAILED_PRECONDITION,
    # Nothing is wrong with the wish: with more capacity it may be asked again.
    PlanReason.NO_HEAD_ROOM: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
# Two operators, or an operator and the runner, at the same operation at the same moment.
_TRIES_MAX = 10


def planned(wish: Wish, known: Known) -> Plan:
    """Raises Refusal when there is no plan."""
    made = plan(wish, known)
    if isinstance(made, NoPlan):
        raise Refusal(_STATUS[made.reason], made.reason, made.message)
    return made


async def start_operation(
    store: Store,
    known: Known,
    revision: int,
    wish: Wish,
    actor: str,
    reason: str,
    *,
    gate: Gate | None = None,
    beside: Change | None = None,
) -> Operation:
    """Stores a planned operation; whichever controller leads then runs it.

    `revision` is the slot map's that `known` shows: a plan from an older map is not stored.
    `beside` is committed with it. Raises Refusal.
    """
    made = planned(wish, known)
    now_ms = time.time_ns() // 1_000_000
    # A cell that owns nothing is removed by a wave that moves nothing.
    step = Step.PLANNED if made.moves or not made.pieces else Step.WAITING
    operation = Operation(
        new_id("op"), wish.kind, wish.cell, made.moves, actor, reason, step,
        (StepRecord(step, now_ms, _note(made)),), cells=wish.cells, rest=made.pieces,
        percents=wish.percents, gate=gate, force=wish.force,
    )  # fmt: skip
    change = begun(operation)
    change.expect[SLOT_MAP_KEY] = revision
    if beside is not None:
        change.expect.update(beside.expect)
        change.puts.update(beside.puts)
        change.deletes += beside.deletes
    record = audit_record(actor, f"operation.{wish.kind}", _detail(operation, wish), reason)
    change.puts.update(audit_put(record))
    if await _commit(store, change) is None:
        raise await _conflict(store, operation)
    return operation


async def request_of(
    store: Store, operation_id: str, request: Request, actor: str, reason: str
) -> Operation:
    """Pauses, resumes or aborts: at once between waves, else after the wave under way.

    Raises Refusal.
    """
    for _ in range(_TRIES_MAX):
        operation, item = await read_operation(store, operation_id)
        now_ms = time.time_ns() // 1_000_000
        after = ask(operation, request, time_ms=now_ms, note=f"{request}: {reason}")
        if isinstance(after, str):
            raise _wrong_moment(operation, f"{operation_id} cannot {request}: {after}")
        change = changed(operation, after, item.revision)
        record = audit_record(actor, f"operation.{request}", operation_id, reason)
        change.puts.update(audit_put(record))
        if await _commit(store, change) is not None:
            return after
    raise _busy(operation_id)


async def abort_operation(
    store: Store, operation_id: str, actor: str, reason: str, hold_s: int
) -> Operation:
    """As `request_of`; a failover of these cells then starts by itself no sooner than `hold_s`
    later. Raises Refusal."""
    operation, _ = await read_operation(store, operation_id)
    if operation.kind != OperationKind.FAILOVER or hold_s == 0 or operation.step in ENDED:
        return await request_of(store, operation_id, Request.ABORT, actor, reason)
    lease = await hold_down(store, operation.all_cells(), Hold(actor, reason, operation_id, hold_s))
    try:
        return await request_of(store, operation_id, Request.ABORT, actor, reason)
    except Refusal:
        await lease.revoke()
        raise


async def roll_back(
    store: Store, known: Known, revision: int, operation_id: str, actor: str, reason: str
) -> Operation:
    """Starts the operation that takes another one's moves back; that one is given up, if it has
    not ended. Raises Refusal."""
    operation, item = await read_operation(store, operation_id)
    if operation.undone_by:
        raise _wrong_moment(operation, f"{operation_id} is undone by {operation.undone_by}")
    if operation.step in (Step.DRAINED, Step.FENCED, Step.PUBLISHED):
        raise _wrong_moment(
            operation, f"{operation_id} is in the middle of a wave; pause it, then roll it back"
        )
    way = undo(operation, known)
    if isinstance(way, NoPlan):
        raise Refusal(_STATUS[way.reason], way.reason, way.message)
    now_ms = time.time_ns() // 1_000_000
    back = inverse(operation, way, actor, reason, now_ms)
    after = operation
    if operation.step not in ENDED:
        after = operation.onward(Step.ROLLED_BACK, (), time_ms=now_ms, note=f"rollback: {reason}")
    change = handed_over(
        operation, replace(after, undone_by=back.operation_id), item.revision, back
    )
    change.expect[SLOT_MAP_KEY] = revision
    detail = f"{back.operation_id}: takes {operation_id} back"
    change.puts.update(audit_put(audit_record(actor, "operation.rollback", detail, reason)))
    if await _commit(store, change) is None:
        raise await _conflict(store, back)
    return back


async def read_operation(store: Store, operation_id: str) -> tuple[Operation, Item]:
    """Raises Refusal when there is none."""
    item = await store.get(OPERATIONS_PREFIX + operation_id)
    if item is None or not operation_id:
        raise Refusal(
            grpc.StatusCode.NOT_FOUND,
            "OPERATION_NOT_FOUND",
            f"there is no operation {operation_id[:64]!r}",
        )
    return Operation.from_json(item.value), item


async def _commit(store: Store, change: Change) -> int | None:
    return await store.commit(expect=change.expect, puts=change.puts, deletes=change.deletes)


async def _conflict(store: Store, operation: Operation) -> Refusal:
    running = await store.get(RUNNING_OPERATION_KEY)
    if running is not None and operation.step == Step.PLANNED:
        return Refusal(
            grpc.StatusCode.FAILED_PRECONDITION,
            "OPERATION_IN_PROGRESS",
            f"operation {running.value} is running; wait for its end",
            metadata={"operation_id": running.value},
        )
    return Refusal(
        grpc.StatusCode.ABORTED, "MAP_CHANGED", "the slot map changed meanwhile; try again"
    )


def _busy(operation_id: str) -> Refusal:
    return Refusal(
        grpc.StatusCode.ABORTED, "OPERATION_CHANGED", f"{operation_id} keeps changing; try again"
    )


def _wrong_moment(operation: Operation, message: str) -> Refusal:
    return Refusal(
        grpc.StatusCode.FAILED_PRECONDITION,
        "WRONG_STEP",
        message,
        metadata={"operation_id": operation.operation_id, "step": operation.step},
    )


def _note(made: Plan) -> str:
    """What goes at once, what follows in later waves, and what has nowhere to go."""
    now, all_ = slot_count(made.moves), slot_count(made.pieces)
    later = all_ - now - made.waiting
    parts = [f"{now} slots"]
    parts += [f"{later} in later waves"] if later else []
    parts += [f"{made.waiting} wait for head-room"] if made.waiting else []
    return ", ".join(parts)


def _detail(operation: Operation, wish: Wish) -> str:
    cells = wish.all_cells()
    if wish.kind == OperationKind.REBALANCE:
        weights = " ".join(f"{cell}={weight}" for cell, weight in sorted(wish.weights.items()))
        what = f"weights {weights or 'equal'}"
    elif wish.slots is not None:
        what = f"slots {wish.slots}"
    else:
        what = f"cell{'s' if len(cells) > 1 else ''} {' '.join(cells)}"
    to = f" to {wish.target}" if wish.target else ""
    waves = f" in waves of {','.join(map(str, wish.percents))} %" if wish.percents else ""
    force = ", by force" if wish.force else ""
    total = slot_count(operation.rest)
    return f"{operation.operation_id}: {what}{to}{waves}, {total} slots{force}"
