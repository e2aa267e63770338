"""Plans and waves: nobody is overloaded, nothing is lost, what is done is undone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from control.operations.model import Gate, Operation, OperationKind, Step, slot_count
from control.operations.steps import NoPlan, Plan, PlanReason, Wish, plan, undo
from control.operations.watching import Traffic, WaveWatch
from control.operations.waves import (
    Figures,
    Known,
    Verdict,
    assign,
    by_weights,
    judge,
    onward,
    still_to_move,
    wave_limit,
)
from router.slotmap import Move, Owned, SlotMap
from router.slots import SLOT_COUNT, SlotRange

CELLS = ("a", "b", "c", "d")
FIRST = SlotMap.even(CELLS)
REGIONS = {"a": "north", "b": "north", "c": "south", "d": "south"}

limits = st.dictionaries(st.sampled_from(CELLS), st.integers(1, SLOT_COUNT))
worlds = st.builds(
    lambda live, capacity, surge, held, barred: Known(
        FIRST, FIRST, CELLS, live, regions=REGIONS, capacity=capacity, surge=surge,
        held=held, barred=dict.fromkeys(barred, "it flaps"),
    ),
    st.sets(st.sampled_from(CELLS)),
    limits,
    limits,
    st.sets(st.sampled_from(CELLS)),
    st.sets(st.sampled_from(CELLS)),
)  # fmt: skip
cells = st.lists(st.sampled_from(CELLS), min_size=1, max_size=3, unique=True).map(tuple)
wishes = st.one_of(
    st.builds(
        lambda kind, cells, target, force: Wish(kind, cells=cells, target=target, force=force),
        st.sampled_from(
            [OperationKind.FAILOVER, OperationKind.DRAIN, OperationKind.REMOVE,
             OperationKind.RESTORE]
        ),
        cells,
        st.sampled_from(["", *CELLS]),
        st.booleans(),
    ),
    st.builds(
        lambda first, size, target, percents: Wish(
            OperationKind.MOVE, "", target, SlotRange(first, min(first + size, SLOT_COUNT - 1)),
            percents=tuple(sorted(percents)),
        ),
        st.integers(0, SLOT_COUNT - 1),
        st.integers(0, 400),
        st.sampled_from(CELLS),
        st.sets(st.integers(1, 100), max_size=4),
    ),
    st.builds(
        lambda weights: Wish(OperationKind.REBALANCE, weights=weights),
        st.dictionaries(st.sampled_from(CELLS), st.integers(0, 9)),
    ),
)  # fmt: skip


def operation_of(wish: Wish, made: Plan) -> Operation:
    step = Step.RECOVERED if made.moves else Step.WAITING
    return Operation(
        "op-1", wish.kind, wish.cell, made.moves, "", "", step, (), cells=wish.cells,
        rest=made.pieces, percents=wish.percents, force=wish.force,
    )  # fmt: skip


def published(operation: Operation, known: Known) -> tuple[Operation, Known]:
    """What publishing its wave does to both."""
    at = replace(operation, step=Step.FENCED).published(time_ms=0)
    after = known.slot_map.apply(operation.moves)
    return replace(at, step=Step.RECOVERED), replace(known, slot_map=after)


# Many wishes have no plan; another test looks at their refusals.
@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(worlds, wishes)
def test_no_wave_overloads_anybody_and_waves_come_to_an_end(known: Known, wish: Wish) -> None:
    made = plan(wish, known)
    assume(isinstance(made, Plan))
    assert isinstance(made, Plan)
    operation = operation_of(wish, made)
    before = known.slot_map
    for _ in range(SLOT_COUNT):
        if operation.moves:
            for cell in {move.target for move in operation.moves}:
                came = slot_count(tuple(move for move in operation.moves if move.target == cell))
                assert cell in known.live
                if wish.kind == OperationKind.FAILOVER:
                    assert cell not in wish.cells, "what is failed over is given nothing back"
                assert came <= known.room(cell), "more than its head-room, or than its surge"
                named = (*wish.weights, wish.target)
                assert wish.force or cell not in known.barred or cell not in named
            operation, known = published(operation, known)
        following = onward(operation, known)
        if following.step in (Step.DONE, Step.WAITING):
            break
        operation = operation.onward(
            following.step, following.moves, time_ms=0, note=following.note
        )
        operation = replace(operation, step=Step.RECOVERED)
    assert following.step in (Step.DONE, Step.WAITING)
    moved = slot_count(operation.moved) + slot_count(operation.moves)
    assert moved == sum(
        before.at(slot)[2:] != known.slot_map.at(slot)[2:] for slot in range(SLOT_COUNT)
    )
    if following.step == Step.WAITING:
        assert wish.kind == OperationKind.FAILOVER, "a planned move would have been refused"
        assert still_to_move(operation.rest, known.slot_map) == made.waiting
    elif not wish.percents:
        assert still_to_move(operation.rest, known.slot_map) == 0
    else:
        assert moved == -(-slot_count(made.pieces) * wish.percents[-1] // 100)


# In many worlds there is nothing to move.
@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(worlds, wishes)
def test_what_an_operation_moved_goes_back_where_it_was(known: Known, wish: Wish) -> None:
    known = replace(known, capacity={}, surge={})
    made = plan(wish, known)
    assume(isinstance(made, Plan))
    assert isinstance(made, Plan)
    operation, after = published(operation_of(wish, made), known)
    way = undo(operation, replace(after, live=CELLS))
    assert isinstance(way, Plan)
    back = after.slot_map.apply(way.moves)
    for slot in range(SLOT_COUNT):
        assert back.at(slot).cell == known.slot_map.at(slot).cell
        assert back.at(slot).epoch >= after.slot_map.at(slot).epoch


@given(st.dictionaries(st.sampled_from(CELLS), st.integers(0, 9)), worlds)
def test_a_rebalance_moves_the_fewest_slots_to_the_wanted_shares(
    weights: dict[str, int], known: Known
) -> None:
    known = replace(known, barred={})
    names = sorted(known.live)
    total = sum(weights.get(name, 1) for name in names)
    assume(total)
    pieces = by_weights(known, weights)
    moved = known.slot_map.apply(assign(pieces, replace(known, capacity={}, surge={})))
    count = sum(len(known.slot_map.slots_of(name)) for name in names)
    for name in names:
        share = count * weights.get(name, 1) / total
        assert abs(len(moved.slots_of(name)) - share) < 1
    gained = sum(
        max(0, len(moved.slots_of(name)) - len(known.slot_map.slots_of(name))) for name in names
    )
    assert slot_count(pieces) == gained


@given(st.integers(1, SLOT_COUNT), st.sets(st.integers(1, 100), min_size=1))
def test_waves_reach_each_percentage_in_turn(total: int, percents: set[int]) -> None:
    ordered = sorted(percents)
    moved, waves = 0, []
    while limit := wave_limit(total, moved, ordered):
        moved += limit
        waves.append(moved)
    assert waves == sorted(set(waves))
    assert moved == -(-total * ordered[-1] // 100)
    assert set(waves) == {-(-total * percent // 100) for percent in ordered}


FIGURES = st.builds(
    Figures, st.integers(0, 200), st.integers(0, 200),
    st.lists(st.integers(0, 50), max_size=16).map(tuple),
)  # fmt: skip


@given(FIGURES, st.lists(FIGURES, max_size=3), st.booleans())
def test_a_gate_never_passes_what_it_has_seen_rise(
    seen: Figures, usual: list[Figures], soaked: bool
) -> None:
    gate = Gate()
    verdict = judge(gate, seen, usual, soaked=soaked)
    known = [item for item in usual if item.samples >= gate.samples_min]
    enough = seen.samples >= gate.samples_min
    if enough and all(
        seen.failure_percent > item.failure_percent + gate.failure_percent_max
        for item in [Figures(), *known]
    ):
        assert verdict == Verdict.FAILED_PAYMENTS
    elif enough and seen.p99_ms > max([gate.p99_ms_max, *(2 * item.p99_ms for item in known)]):
        slow = sum(count for n, count in enumerate(seen.buckets) if 1 << n >= seen.p99_ms)
        assert verdict == Verdict.SLOW_PAYMENTS or slow < 3
    else:
        assert verdict == (Verdict.PASS if soaked else Verdict.LOOK)


@pytest.mark.parametrize(
    ("seen", "usual", "verdict"),
    [
        # As many fail where the slots came from: it is not the move.
        (Figures(80, 20), [Figures(82, 18)], Verdict.LOOK),
        (Figures(80, 20), [Figures(100, 0)], Verdict.FAILED_PAYMENTS),
        # Nobody has paid there: only the absolute bound is left.
        (Figures(80, 20), [Figures(3, 0)], Verdict.FAILED_PAYMENTS),
        # A mesh that is slow all over.
        (Figures(100, 0, (0,) * 10 + (100,)), [Figures(100, 0, (0,) * 9 + (100,))], Verdict.LOOK),
        (
            Figures(100, 0, (0,) * 10 + (100,)),
            [Figures(100, 0, (0,) * 5 + (100,))],
            Verdict.SLOW_PAYMENTS,
        ),
        # Six times slower, and nobody would notice.
        (Figures(100, 0, (0,) * 8 + (100,)), [Figures(100, 0, (0,) * 5 + (100,))], Verdict.LOOK),
        # Of twenty payments one was slow.
        (Figures(20, 0, (19,) + (0,) * 11 + (1,)), [Figures(100, 0, (100,))], Verdict.LOOK),
    ],
)
def test_only_what_rises_where_the_slots_went_is_the_moves_fault(
    seen: Figures, usual: list[Figures], verdict: Verdict
) -> None:
    assert judge(Gate(), seen, usual, soaked=False) == verdict


def test_a_wave_is_judged_by_its_slots_its_targets_and_what_they_left() -> None:
    slots = SlotMap((Owned(0, 511, "a", 1), Owned(512, 1023, "b", 1)))
    known = Known(slots, slots, "ab", "ab")
    move = Move(0, 9, "a", "b", 2)
    wave = Operation(
        "op", OperationKind.MOVE, "a", (move,), "me", "why", Step.RECOVERED, (), gate=Gate()
    )
    whole = {"a": Figures(1000, 0, (1000,)), "b": Figures(500, 0, (500,))}
    new = {"b": Figures(40, 0, (40,))}
    now = 0.0
    watch = WaveWatch(
        Traffic(whole.__getitem__, new.__getitem__, lambda cell: Figures()), lambda: now
    )
    assert watch.verdict(wave, known) == Verdict.LOOK
    # Half of what moved fails, and is lost in what the target does well.
    whole["b"], new["b"] = Figures(1500, 20, (1500,)), Figures(60, 20, (60,))
    assert watch.verdict(wave, known) == Verdict.FAILED_PAYMENTS
    # The same where the slots were: common, and left alone.
    whole["a"] = Figures(1020, 20, (1020,))
    assert watch.verdict(wave, known) == Verdict.LOOK
    now = 3.0
    assert watch.verdict(wave, known) == Verdict.PASS
    assert watch.verdict(wave, replace(known, live="a")) == Verdict.TARGET_DIED
    # The next wave begins anew.
    assert watch.verdict(replace(wave, wave=2), known) == Verdict.LOOK


def test_figures_of_a_process_that_began_anew_count_from_nothing() -> None:
    assert Figures(3, 1, (2, 2)).minus(Figures(10, 0, (9, 0))) == Figures(0, 1, (0, 2))
    assert Figures(3, 1, (2, 2)).plus(Figures(1, 1, (0, 0, 2))) == Figures(4, 2, (2, 2, 2))
    assert Figures(buckets=(98, 0, 0, 2)).p99_ms == 8
    assert Figures(buckets=(99, 0, 0, 1)).p99_ms == 1


@given(
    st.sets(st.sampled_from(CELLS), min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(CELLS), st.integers(0, 9), min_size=1),
    st.integers(0, 400),
)
def test_what_is_given_away_is_spread_as_evenly_as_it_can_be(
    dead: set[str], weights: dict[str, int], room: int
) -> None:
    """From a map of any shares: no receiver ends above anybody who had room for one more."""
    world = Known(FIRST, FIRST, CELLS, CELLS)
    before = FIRST.apply(assign(by_weights(world, weights), world))
    assume(all(before.slots_of(cell) for cell in dead))
    living = set(CELLS) - dead
    capacity = {cell: len(before.slots_of(cell)) + room for cell in living}
    known = Known(before, before, CELLS, living, regions=REGIONS, capacity=capacity)
    made = plan(Wish(OperationKind.FAILOVER, cells=tuple(sorted(dead))), known)
    if isinstance(made, NoPlan):
        assert room == 0
        return
    loads = {cell: len(before.apply(made.moves).slots_of(cell)) for cell in living}
    received = [loads[cell] for cell in living if loads[cell] > len(before.slots_of(cell))]
    with_room = [loads[cell] for cell in living if loads[cell] < capacity[cell]]
    if received and with_room:
        assert max(received) - min(with_room) <= 1


def test_a_planned_move_that_would_overload_its_target_is_refused_whole() -> None:
    known = Known(FIRST, FIRST, CELLS, CELLS, capacity={"b": 300, "c": 300, "d": 300})
    refused = plan(Wish(OperationKind.DRAIN, "a"), known)
    assert isinstance(refused, NoPlan)
    assert refused.reason == PlanReason.NO_HEAD_ROOM
    assert "124 of 256 slots" in refused.message
    failover = plan(Wish(OperationKind.FAILOVER, "a"), known)
    assert isinstance(failover, Plan)
    assert (slot_count(failover.moves), failover.waiting) == (132, 124)


def test_a_cell_that_is_held_out_gets_nothing_while_there_are_others() -> None:
    held = Known(FIRST, FIRST, CELLS, ("b", "c"), held=("b",))
    made = plan(Wish(OperationKind.FAILOVER, "a"), held)
    assert isinstance(made, Plan)
    assert {move.target for move in made.moves} == {"c"}
    alone = plan(Wish(OperationKind.FAILOVER, "a"), replace(held, live=("b",)))
    assert isinstance(alone, Plan)
    assert {move.target for move in alone.moves} == {"b"}
