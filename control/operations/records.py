"""How an operation lies in the store: its record, and whose turn it is. Pure.

    operations/<id>             the record
    operation-running           the ID of the one that is under way
    operations-open/<id>        of each that waits or is paused: its step and cells

Each change of an operation writes all of them in one compare-and-set, so that the keys agree.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from control.operations.model import ACTIVE, RESTING, Operation, OperationKind, Step
from router.store.model import (
    OPEN_OPERATIONS_PREFIX,
    OPERATIONS_PREFIX,
    RUNNING_OPERATION_KEY,
)


@dataclass(slots=True)
class Change:
    """What one commit expects and writes."""

    expect: dict[str, int] = field(default_factory=dict)
    puts: dict[str, str] = field(default_factory=dict)
    deletes: list[str] = field(default_factory=list)


def begun(operation: Operation) -> Change:
    """A new operation. Under way only when no other one is."""
    change = Change()
    _write(change, operation, was_active=False, was_resting=False)
    return change


def changed(before: Operation, after: Operation, revision: int) -> Change:
    """`revision`: of the record that `before` was read from."""
    change = Change(expect={OPERATIONS_PREFIX + before.operation_id: revision})
    _write(change, after, was_active=before.step in ACTIVE, was_resting=before.step in RESTING)
    return change


def handed_over(before: Operation, after: Operation, revision: int, back: Operation) -> Change:
    """`before` ends as `after`, and `back` has its turn, or waits for one, in the same moment."""
    change = changed(before, after, revision)
    was_active = before.step in ACTIVE
    _write(change, back, was_active=was_active, was_resting=False)
    if back.step in ACTIVE:
        change.puts[RUNNING_OPERATION_KEY] = back.operation_id
        change.deletes = [key for key in change.deletes if key != RUNNING_OPERATION_KEY]
    return change


def _write(change: Change, operation: Operation, *, was_active: bool, was_resting: bool) -> None:
    operation_id = operation.operation_id
    change.puts[OPERATIONS_PREFIX + operation_id] = operation.to_json()
    if operation.step in ACTIVE:
        if not was_active:
            change.expect[RUNNING_OPERATION_KEY] = 0
            change.puts[RUNNING_OPERATION_KEY] = operation_id
    elif was_active:
        change.deletes.append(RUNNING_OPERATION_KEY)
    key = OPEN_OPERATIONS_PREFIX + operation_id
    if operation.step in RESTING:
        change.puts[key] = json.dumps(
            {"kind": operation.kind, "step": operation.step, "cells": operation.all_cells()}
        )
    elif was_resting:
        change.deletes.append(key)


@dataclass(frozen=True, slots=True)
class Open:
    """An operation that rests."""

    kind: OperationKind
    step: Step
    cells: tuple[str, ...]

    @staticmethod
    def from_json(text: str) -> Open:
        document = json.loads(text)
        return Open(
            OperationKind(document["kind"]), Step(document["step"]), tuple(document["cells"])
        )
