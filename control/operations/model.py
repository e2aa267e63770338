"""What an operation is: its plan, its step, its history. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from pydantic import TypeAdapter

from router.slotmap import Move


class OperationKind(StrEnum):
    FAILOVER = "failover"
    DRAIN = "drain"
    RESTORE = "restore"
    MOVE = "move"


class Step(StrEnum):
    """What has been done. The names say what is true now."""

    PLANNED = "planned"
    # Sources that answer have stopped taking requests for the slots.
    DRAINED = "drained"
    # The database refuses the sources and accepts the targets.
    FENCED = "fenced"
    # Everybody is told.
    PUBLISHED = "published"
    # The targets have driven what was in doubt.
    RECOVERED = "recovered"
    DONE = "done"
    # Given up before anything was fenced: nothing has changed.
    FAILED = "failed"


# Anything absent is refused. After the fence there is no way but forward.
TRANSITIONS: Mapping[Step, frozenset[Step]] = {
    Step.PLANNED: frozenset({Step.DRAINED, Step.FAILED}),
    Step.DRAINED: frozenset({Step.FENCED, Step.FAILED}),
    Step.FENCED: frozenset({Step.PUBLISHED}),
    Step.PUBLISHED: frozenset({Step.RECOVERED}),
    Step.RECOVERED: frozenset({Step.DONE}),
    Step.DONE: frozenset(),
    Step.FAILED: frozenset(),
}
ENDED = frozenset({Step.DONE, Step.FAILED})


class IllegalStep(Exception):
    """A step that the table does not know."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    step: Step
    # Unix ms of the controller that did it: for people, never compared.
    time_ms: int
    note: str


@dataclass(frozen=True, slots=True)
class Operation:
    operation_id: str
    kind: OperationKind
    # The cell it is about; empty for a move.
    cell: str
    moves: tuple[Move, ...]
    actor: str
    reason: str
    step: Step
    history: tuple[StepRecord, ...]

    def at(self, step: Step, *, time_ms: int, note: str = "") -> Operation:
        """The operation one step on. Raises IllegalStep."""
        if step not in TRANSITIONS[self.step]:
            raise IllegalStep(f"{self.operation_id}: no way from {self.step} to {step}")
        record = StepRecord(step, time_ms, note)
        return replace(self, step=step, history=(*self.history, record))

    def to_json(self) -> str:
        return _ADAPTER.dump_json(self).decode()

    @staticmethod
    def from_json(text: str) -> Operation:
        return _ADAPTER.validate_json(text)


_ADAPTER = TypeAdapter(Operation)
