"""The protocol of operations and fence, explored to the last state, on the real code.

Each world is small (two slots, two cells, two controllers) and complete: every order of events,
with crashes, lost and late messages, paused cells and operators at any moment. Proved there: no two
cells commit for one slot at once, epochs only grow, the map never tells of an owner that the
database refuses, nothing is given up half way, one operation is under way at a time, and from every
state an end can be reached. Bugs are planted to see that each of these can fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import structlog

import control.operations.model as model
import control.operations.runner
import control.operations.steps as steps
from control.operations.model import (
    GRANTED,
    TRANSITIONS,
    Gate,
    Operation,
    OperationKind,
    Piece,
    Request,
    Step,
)
from router.slotmap import Move
from tests.property.explorer import Explorer, Judged
from tests.property.protocol_state import Fenced, Violation, database

WHOLE = Operation(
    "op-1", OperationKind.MOVE, "", (Move(0, 1, "a", "b", 2),), "", "", Step.PLANNED, (),
    rest=(Piece(0, 1, "a", "b"),),
)  # fmt: skip
GRADUAL = replace(WHOLE, moves=(Move(0, 0, "a", "b", 2),), percents=(50, 100), gate=Gate(soak_ms=1))
SHORT = replace(
    WHOLE, kind=OperationKind.FAILOVER, moves=(Move(0, 0, "a", "b", 2),),
    rest=(Piece(0, 1, "a"),),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(50))
    monkeypatch.setattr(control.operations.runner, "log", silent)


def told(explorer: Explorer, ends: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(
            f"\n  {explorer.states} states, {explorer.transitions} transitions; "
            f"ends: {', '.join(sorted(ends))}"
        )


def test_cells_that_write_while_controllers_crash(capsys: pytest.CaptureFixture[str]) -> None:
    """Paused cells included: one may hear of the map at any later time, and writes until then."""
    explorer = Explorer(faults=2, writing=True)
    ends = explorer.explore(WHOLE)
    told(explorer, ends, capsys)
    assert ends == {Step.DONE}


@pytest.mark.parametrize(
    ("explorer", "wanted"),
    [
        (
            Explorer(faults=0, asks=1, requests=("pause", "resume", "rollback"), may_go_bad=True),
            {Step.DONE, Step.ROLLED_BACK},
        ),
        (
            Explorer(
                controllers=1, faults=1, asks=2, requests=("pause", "resume", "abort", "rollback")
            ),
            {Step.DONE, Step.ABORTED, Step.ROLLED_BACK},
        ),
    ],
    ids=["two controllers", "one that crashes"],
)
def test_operators_at_any_moment_of_a_gradual_move(
    explorer: Explorer, wanted: set[Step], capsys: pytest.CaptureFixture[str]
) -> None:
    ends = explorer.explore(GRADUAL)
    told(explorer, ends, capsys)
    assert ends == wanted


def test_a_failover_with_short_head_room(capsys: pytest.CaptureFixture[str]) -> None:
    """What waits goes on when there is head-room, whoever looks, and may be aborted until then."""
    explorer = Explorer(faults=1, asks=1, requests=("abort",), room=1)
    with mock.patch("control.operations.runner._WAVE_PAUSE_S", 0):
        ends = explorer.explore(SHORT)
    told(explorer, ends, capsys)
    assert ends == {Step.DONE, Step.ABORTED}


class Hasty(Judged):
    """Publishes before it fences."""

    async def _fence_slots(self, operation: Operation) -> None:
        pass


class Careless(Judged):
    """Writes without looking whether somebody else was first."""

    async def _commit(self, change: Any) -> None:
        change.expect.clear()
        await super()._commit(change)


def unlocked(owners: Fenced, moves: Sequence[Move], locks: Any) -> Fenced:
    """A fence that does not wait for the writers in flight."""
    return database(owners, moves, frozenset())


def unordered(owners: Fenced, moves: Sequence[Move], locks: Any) -> Fenced:
    """A fence that does not look at epochs."""
    after = list(owners)
    for move in moves:
        for slot in range(move.first, move.last + 1):
            after[slot] = (move.target, move.epoch)
    return tuple(after)


@pytest.mark.parametrize(
    ("explorer", "operation", "found"),
    [
        (Explorer(runner=Hasty), WHOLE, "the map tells of b@2, the database of a@1"),
        (Explorer(runner=Careless), WHOLE, "went from"),
        (Explorer(database=unlocked, writing=True), WHOLE, "for one slot at once|commits at epoch"),
        (
            Explorer(database=unordered, asks=1, requests=("rollback",)),
            replace(WHOLE, percents=(100,), gate=Gate(soak_ms=1)),
            "slot 0 went from",
        ),
    ],
    ids=["published before the fence", "no compare-and-set", "no lock", "no epoch"],
)
def test_a_planted_bug_is_found(explorer: Explorer, operation: Operation, found: str) -> None:
    with pytest.raises(Violation, match=found):
        explorer.explore(operation)


def test_an_abort_when_the_fence_may_have_been_touched_is_found() -> None:
    granted = {**GRANTED, Request.ABORT: {**GRANTED[Request.ABORT], Step.DRAINED: Step.ABORTED}}
    allowed = {**TRANSITIONS, Step.DRAINED: TRANSITIONS[Step.DRAINED] | {Step.ABORTED}}
    explorer = Explorer(asks=1, requests=("abort",))
    with (
        mock.patch.object(steps, "GRANTED", granted),
        mock.patch.object(model, "TRANSITIONS", allowed),
        mock.patch("tests.property.protocol_state.TRANSITIONS", allowed),
        pytest.raises(Violation, match="given up half way"),
    ):
        explorer.explore(WHOLE)


def test_a_pause_without_a_way_on_is_found() -> None:
    explorer = Explorer(asks=1, requests=("pause",))
    with pytest.raises(Violation, match="no end can be reached"):
        explorer.explore(GRADUAL)
