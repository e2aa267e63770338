"""Operations: the table of steps, what comes next, and which plans are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from control.operations.model import (
    ACTIVE,
    ENDED,
    RESTING,
    TRANSITIONS,
    IllegalStep,
    Operation,
    OperationKind,
    Step,
)
from control.operations.steps import (
    Action,
    NoPlan,
    Plan,
    PlanReason,
    Wish,
    dead_cells,
    next_action,
    plan,
)
from control.operations.waves import Known
from router.slotmap import Move, SlotMap
from router.slots import SlotRange

FIRST = SlotMap.even(["a", "b", "c"])
ARCHITECTURE = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"


def known(slot_map: SlotMap = FIRST, live: str = "abc") -> Known:
    return Known(slot_map, FIRST, frozenset("abc"), frozenset(live))


def operation(step: Step = Step.PLANNED) -> Operation:
    moves = (Move(0, 9, "a", "b", 2),)
    return Operation("op-1", OperationKind.MOVE, "", moves, "me", "why", step, ())


def test_every_step_that_is_under_way_has_one_action() -> None:
    actions = [next_action(operation(step)) for step in Step if step in ACTIVE]
    assert Action.NOTHING not in actions
    assert len(set(actions)) == len(actions)
    assert next_action(operation(Step.WAITING)) == Action.GO_ON
    for step in ENDED | {Step.PAUSED}:
        assert next_action(operation(step)) == Action.NOTHING


def test_every_step_is_under_way_or_rests_or_has_ended() -> None:
    assert set(Step) == ACTIVE | RESTING | ENDED
    assert not ACTIVE & RESTING
    assert not (ACTIVE | RESTING) & ENDED
    assert {step for step in Step if not TRANSITIONS[step]} == ENDED


def test_after_the_fence_a_wave_has_no_way_back() -> None:
    assert TRANSITIONS[Step.DRAINED] == {Step.FENCED, Step.FAILED}
    assert TRANSITIONS[Step.FENCED] == {Step.PUBLISHED}
    assert TRANSITIONS[Step.PUBLISHED] == {Step.RECOVERED}


@pytest.mark.parametrize("step", list(Step))
def test_an_end_can_be_reached_from_every_step(step: Step) -> None:
    seen, todo = set(), [step]
    while todo:
        now = todo.pop()
        seen.add(now)
        todo += TRANSITIONS[now] - seen
    assert seen & ENDED


@pytest.mark.parametrize("step", list(Step))
def test_a_step_out_of_order_is_refused(step: Step) -> None:
    for other in Step:
        if other in TRANSITIONS[step]:
            assert operation(step).at(other, time_ms=1).step == other
        else:
            with pytest.raises(IllegalStep):
                operation(step).at(other, time_ms=1)


def test_an_operation_survives_its_own_json() -> None:
    stepped = operation().at(Step.DRAINED, time_ms=5, note="a drained")
    assert Operation.from_json(stepped.to_json()) == stepped


def test_the_architecture_page_shows_the_table_as_it_is() -> None:
    lines = [
        f"{step} → {' | '.join(sorted(TRANSITIONS[step]))}" if TRANSITIONS[step] else str(step)
        for step in Step
    ]
    assert "\n".join(lines) in ARCHITECTURE.read_text(encoding="utf-8")


def test_a_failover_spreads_the_slots_over_the_living() -> None:
    made = plan(Wish(OperationKind.FAILOVER, "b"), known(live="ac"))
    assert isinstance(made, Plan)
    moves = made.moves
    after = FIRST.apply(moves)
    assert after.slots_of("b") == frozenset()
    assert abs(len(after.slots_of("a")) - len(after.slots_of("c"))) <= 1
    assert {move.epoch for move in moves} == {2}


def test_restore_brings_back_what_was_its_own_at_the_start() -> None:
    moved = FIRST.apply([Move(0, 100, "a", "c", 2)])
    made = plan(Wish(OperationKind.RESTORE, "a"), known(moved))
    assert isinstance(made, Plan)
    assert made.moves == (Move(0, 100, "c", "a", 3),)


@pytest.mark.parametrize(
    ("wish", "live", "reason"),
    [
        (Wish(OperationKind.FAILOVER, "x"), "abc", PlanReason.UNKNOWN_CELL),
        (Wish(OperationKind.FAILOVER, "a", "x"), "abc", PlanReason.UNKNOWN_CELL),
        (Wish(OperationKind.FAILOVER, "a", "b"), "ac", PlanReason.TARGET_DEAD),
        (Wish(OperationKind.FAILOVER, "a", "a"), "abc", PlanReason.NO_TARGET),
        (Wish(OperationKind.FAILOVER, "a"), "a", PlanReason.NO_TARGET),
        (Wish(OperationKind.DRAIN, "a"), "bc", PlanReason.CELL_DEAD),
        (Wish(OperationKind.RESTORE, "a"), "bc", PlanReason.CELL_DEAD),
        (Wish(OperationKind.RESTORE, "a"), "abc", PlanReason.NOTHING_TO_MOVE),
        (Wish(OperationKind.MOVE, "", "a", SlotRange(0, 9)), "abc", PlanReason.NOTHING_TO_MOVE),
        (Wish(OperationKind.MOVE, "", "b", SlotRange(0, 9)), "ac", PlanReason.TARGET_DEAD),
    ],
)
def test_a_wish_that_cannot_be_fulfilled_says_why(
    wish: Wish, live: str, reason: PlanReason
) -> None:
    refused = plan(wish, known(live=live))
    assert isinstance(refused, NoPlan)
    assert refused.reason == reason


@pytest.mark.parametrize(
    ("live", "seen", "grace_over", "dead"),
    [
        ("abc", "abc", True, ""),
        ("ac", "abc", False, "b"),
        ("ac", "ac", False, ""),
        ("ac", "ac", True, "b"),
        ("", "abc", True, ""),
        ("a", "abc", True, "bc"),
    ],
)
def test_a_dead_cell_is_one_that_lived_and_owns_slots_while_another_lives(
    live: str, seen: str, grace_over: bool, dead: str
) -> None:
    assert dead_cells(known(live=live), frozenset(seen), grace_over=grace_over) == list(dead)
    empty = FIRST.apply([Move(342, 682, "b", "a", 2)])
    assert "b" not in dead_cells(known(empty, live), frozenset(seen), grace_over=grace_over)


def test_a_dead_cell_whose_failover_waits_is_not_failed_over_again() -> None:
    waits = replace(known(live="ac"), waiting=frozenset("b"))
    assert dead_cells(waits, frozenset("abc"), grace_over=True) == []
