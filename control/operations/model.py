"""What an operation is: what is to be moved, the wave under way, its step, its history. Pure.

An operation is a sequence of waves. Each wave is planned from the map of its moment and goes
planned → drained → fenced → published → recovered; what no target has head-room for waits. One
operation is under way at a time; one that waits or is paused has nothing under way and holds
nobody up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from pydantic import TypeAdapter

from router.slotmap import Move
from router.slots import ranges_of


class OperationKind(StrEnum):
    FAILOVER = "failover"
    DRAIN = "drain"
    RESTORE = "restore"
    MOVE = "move"
    REBALANCE = "rebalance"
    REMOVE = "remove"
    ROLLBACK = "rollback"


class Step(StrEnum):
    """What has been done. The names say what is true now."""

    # The wave's moves are decided.
    PLANNED = "planned"
    # Sources that answer are made to stop taking requests for the slots. Recorded before that and
    # before the fence is touched: the wave can no longer be given up.
    DRAINED = "drained"
    # The database refuses the sources and accepts the targets. Recorded together with what follows.
    FENCED = "fenced"
    # Everybody is told.
    PUBLISHED = "published"
    # The targets have driven what was in doubt; a gradual move is being watched.
    RECOVERED = "recovered"
    # What is left has no head-room to go to.
    WAITING = "waiting"
    # By an operator's wish, between two waves.
    PAUSED = "paused"
    DONE = "done"
    # The database contradicted the wave's plan. What earlier waves moved stays moved.
    FAILED = "failed"
    # By an operator's wish. What earlier waves moved stays moved.
    ABORTED = "aborted"
    # Given up, and the operation that takes its moves back has begun.
    ROLLED_BACK = "rolled_back"


# Anything absent is refused. From drained to recovered there is no way but forward.
TRANSITIONS: Mapping[Step, frozenset[Step]] = {
    Step.PLANNED: frozenset({Step.DRAINED, Step.PAUSED, Step.ABORTED, Step.ROLLED_BACK}),
    Step.DRAINED: frozenset({Step.FENCED, Step.FAILED}),
    Step.FENCED: frozenset({Step.PUBLISHED}),
    Step.PUBLISHED: frozenset({Step.RECOVERED}),
    Step.RECOVERED: frozenset(
        {Step.PLANNED, Step.WAITING, Step.PAUSED, Step.ABORTED, Step.ROLLED_BACK, Step.DONE}
    ),
    Step.WAITING: frozenset({Step.PLANNED, Step.PAUSED, Step.ABORTED, Step.ROLLED_BACK, Step.DONE}),
    Step.PAUSED: frozenset({Step.WAITING, Step.ABORTED, Step.ROLLED_BACK}),
    Step.DONE: frozenset(),
    Step.FAILED: frozenset(),
    Step.ABORTED: frozenset(),
    Step.ROLLED_BACK: frozenset(),
}
ENDED = frozenset({Step.DONE, Step.FAILED, Step.ABORTED, Step.ROLLED_BACK})
# Something is under way: no other operation may be.
ACTIVE = frozenset({Step.PLANNED, Step.DRAINED, Step.FENCED, Step.PUBLISHED, Step.RECOVERED})
# Neither: it keeps its place and holds nobody up.
RESTING = frozenset({Step.WAITING, Step.PAUSED})


class IllegalStep(Exception):
    """A step that the table does not know."""


class Request(StrEnum):
    """What an operator asks of a running operation."""

    NONE = "none"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"


# Where a request leads at once. Absent but under way: it is noted, and granted after this wave.
GRANTED: Mapping[Request, Mapping[Step, Step]] = {
    Request.PAUSE: {
        Step.PLANNED: Step.PAUSED,
        Step.RECOVERED: Step.PAUSED,
        Step.WAITING: Step.PAUSED,
    },
    Request.RESUME: {Step.PAUSED: Step.WAITING},
    Request.ABORT: {
        Step.PLANNED: Step.ABORTED,
        Step.RECOVERED: Step.ABORTED,
        Step.WAITING: Step.ABORTED,
        Step.PAUSED: Step.ABORTED,
    },
}


class Piece(NamedTuple):
    """Slots that are still to leave `source`; for whoever has head-room when there is no target."""

    first: int
    last: int
    source: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class Gate:
    """What a gradual move must show after each wave before it goes on.

    The moved slots and their new cells are held against the cells that the slots left: only what
    has risen there is the move's fault.
    """

    # They are watched for so long.
    soak_ms: int = 3000
    # So many percentage points of failed payments more than there, and the move is rolled back.
    failure_percent_max: int = 5
    # A p99 below this is good whatever it was; above, it may be twice what it is there.
    p99_ms_max: int = 256
    # Fewer payments prove nothing against the move.
    samples_min: int = 20


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
    # The cell it is about; empty for a move and for several.
    cell: str
    # Of the wave under way; a failed operation's last, which was not carried out.
    moves: tuple[Move, ...]
    actor: str
    reason: str
    step: Step
    history: tuple[StepRecord, ...]
    # All that it is about, when they are several.
    cells: tuple[str, ...] = ()
    # Not published yet: this wave's, and what follows it.
    rest: tuple[Piece, ...] = ()
    # Published by earlier waves.
    moved: tuple[Move, ...] = ()
    # How much of the whole each wave reaches, growing; empty: as much as head-room allows.
    percents: tuple[int, ...] = ()
    # Of a gradual move.
    gate: Gate | None = None
    wave: int = 1
    # Noted, until the wave under way has ended.
    request: Request = Request.NONE
    # May go to cells that are held out.
    force: bool = False
    undoes: str = ""
    undone_by: str = ""

    def at(self, step: Step, *, time_ms: int, note: str = "") -> Operation:
        """The operation one step on. Raises IllegalStep."""
        if step not in TRANSITIONS[self.step]:
            raise IllegalStep(f"{self.operation_id}: no way from {self.step} to {step}")
        record = StepRecord(step, time_ms, note)
        return replace(self, step=step, history=(*self.history, record))

    def published(self, *, time_ms: int) -> Operation:
        """Everybody is told: the wave's slots are no longer to be moved."""
        gone = {slot for move in self.moves for slot in range(move.first, move.last + 1)}
        return replace(self.at(Step.PUBLISHED, time_ms=time_ms), rest=without(self.rest, gone))

    def onward(self, step: Step, moves: tuple[Move, ...], *, time_ms: int, note: str) -> Operation:
        """Out of a wave, or out of a rest, and into what follows.

        A wave that was recovered counts as moved; one that was only planned is forgotten.
        """
        moved = (*self.moved, *self.moves) if self.step == Step.RECOVERED else self.moved
        following = self.at(step, time_ms=time_ms, note=note)
        return replace(
            following,
            moves=moves,
            moved=moved,
            wave=self.wave + (self.step == Step.RECOVERED and step not in ENDED),
            request=Request.NONE,
        )

    def asking(self, request: Request) -> Operation:
        """With a request noted."""
        return replace(self, request=request)

    def all_cells(self) -> tuple[str, ...]:
        return self.cells or ((self.cell,) if self.cell else ())

    def to_json(self) -> str:
        return _ADAPTER.dump_json(self).decode()

    @staticmethod
    def from_json(text: str) -> Operation:
        return _ADAPTER.validate_json(text)


def without(pieces: tuple[Piece, ...], gone: set[int]) -> tuple[Piece, ...]:
    """The pieces less these slots."""
    return tuple(
        Piece(part.first, part.last, piece.source, piece.target)
        for piece in pieces
        for part in ranges_of(set(range(piece.first, piece.last + 1)) - gone)
    )


def slot_count(pieces: tuple[Piece, ...] | tuple[Move, ...]) -> int:
    return sum(piece.last - piece.first + 1 for piece in pieces)


_ADAPTER = TypeAdapter(Operation)
