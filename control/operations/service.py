"""Starting operations: step 2 of a failover's walk. Plan, then store plan and audit as one."""

from __future__ import annotations

import time

import grpc

from control.audit import audit_put, audit_record, new_id
from control.operations.model import Operation, OperationKind, Step, StepRecord
from control.operations.steps import Known, NoPlan, PlanReason, Wish, plan
from router.errors import Refusal
from router.slotmap import Move
from router.store.model import (
    OPERATIONS_PREFIX,
    RUNNING_OPERATION_KEY,
    SLOT_MAP_KEY,
    Store,
)

_STATUS = {
    PlanReason.UNKNOWN_CELL: grpc.StatusCode.NOT_FOUND,
    PlanReason.CELL_DEAD: grpc.StatusCode.FAILED_PRECONDITION,
    PlanReason.TARGET_DEAD: grpc.StatusCode.FAILED_PRECONDITION,
    PlanReason.NO_TARGET: grpc.StatusCode.FAILED_PRECONDITION,
    PlanReason.NOTHING_TO_MOVE: grpc.StatusCode.FAILED_PRECONDITION,
}


async def start_operation(
    store: Store, known: Known, revision: int, wish: Wish, actor: str, reason: str
) -> Operation:
    """Stores a planned operation; whichever controller leads then runs it.

    `revision` is the slot map's that `known` shows: a plan from an older map is not stored.
    Raises Refusal.
    """
    moves = plan(wish, known)
    if isinstance(moves, NoPlan):
        raise Refusal(_STATUS[moves.reason], moves.reason, moves.message)
    now_ms = time.time_ns() // 1_000_000
    operation = Operation(
        new_id("op"), wish.kind, wish.cell, moves, actor, reason, Step.PLANNED,
        (StepRecord(Step.PLANNED, now_ms, f"{_count(moves)} slots"),),
    )  # fmt: skip
    record = audit_record(actor, f"operation.{wish.kind}", _detail(operation, wish), reason)
    stored = await store.commit(
        expect={RUNNING_OPERATION_KEY: 0, SLOT_MAP_KEY: revision},
        puts={
            RUNNING_OPERATION_KEY: operation.operation_id,
            OPERATIONS_PREFIX + operation.operation_id: operation.to_json(),
            **audit_put(record),
        },
    )
    if stored is None:
        running = await store.get(RUNNING_OPERATION_KEY)
        raise Refusal(
            grpc.StatusCode.FAILED_PRECONDITION if running else grpc.StatusCode.ABORTED,
            "OPERATION_IN_PROGRESS" if running else "MAP_CHANGED",
            f"operation {running.value} is running; wait for its end"
            if running
            else "the slot map changed meanwhile; try again",
            metadata={"operation_id": running.value} if running else {},
        )
    return operation


def _count(moves: tuple[Move, ...]) -> int:
    return sum(move.last - move.first + 1 for move in moves)


def _detail(operation: Operation, wish: Wish) -> str:
    what = f"slots {wish.slots}" if wish.kind == OperationKind.MOVE else f"cell {wish.cell}"
    to = f" to {wish.target}" if wish.target else ""
    return f"{operation.operation_id}: {what}{to}, {_count(operation.moves)} slots"
