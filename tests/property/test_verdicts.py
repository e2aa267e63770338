"""Automatic failover: who is grey, who may be failed over now, who is held out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.operations.waves import Figures, Known
from control.verdicts import (
    FailoverPolicy,
    Held,
    Obstacle,
    Pulse,
    barred,
    beat,
    grey_cell,
    hold_down_s,
    obstacle,
    still_out,
)
from router.slotmap import Move, SlotMap

CELLS = ("a", "b", "c")
FIRST = SlotMap.even(CELLS)
KNOWN = Known(FIRST, FIRST, CELLS, CELLS, regions={"a": "north", "b": "north", "c": "south"})
EMPTY_B = FIRST.apply([Move(342, 682, "b", "a", 2)])
POLICY = FailoverPolicy()

windows = st.builds(Figures, st.integers(0, 60), st.integers(0, 60))


def after(stream: list[Figures], policy: FailoverPolicy = POLICY) -> Pulse:
    pulse = Pulse()
    for window in stream:
        pulse = beat(pulse, window, policy)
    return pulse


@given(st.lists(windows, max_size=40))
def test_a_cell_is_grey_only_after_enough_bad_payments_in_a_row(stream: list[Figures]) -> None:
    pulse = after(stream)
    assert not (pulse.bad and pulse.well)
    if pulse.bad:
        tail = stream[-10 * pulse.bad - pulse.merged :]
        seen = sum(window.failed for window in tail)
        assert seen >= pulse.bad * POLICY.samples_min * POLICY.failure_percent / 100


@given(st.lists(windows, max_size=20), st.integers(20, 60))
def test_one_good_window_clears_the_record(stream: list[Figures], ok: int) -> None:
    before = after(stream)
    good = before.pending.failed + ok + 1
    assert beat(before, Figures(good, 0), POLICY) == Pulse(well=True)


@given(st.integers(1, 9), st.integers(1, 100), st.integers(1, 50))
def test_so_many_bad_windows_and_no_fewer_make_a_cell_grey(
    windows: int, percent: int, samples: int
) -> None:
    policy = FailoverPolicy(windows=windows, failure_percent=percent, samples_min=samples)
    pulses = {"a": Pulse(well=True), "c": Pulse(well=True)}
    for count in range(1, windows + 1):
        pulses["b"] = after([Figures(0, samples)] * count, policy)
        found = grey_cell(pulses, KNOWN, policy).cell
        assert found == ("b" if count == windows else None)


def test_few_payments_are_added_up_and_old_evidence_is_forgotten() -> None:
    assert after([Figures(0, 7)] * 3).bad == 1
    assert after([Figures(0, 1)] * 9).pending == Figures(0, 9)
    assert after([Figures(0, 1)] * 10) == Pulse()
    assert after([Figures(30, 0), *[Figures(1, 0)] * 10]).well
    assert not after([Figures(30, 0), *[Figures(0, 0)] * 10]).well


BAD = Pulse(bad=3)
WELL = Pulse(well=True)


@pytest.mark.parametrize(
    ("a", "b", "c", "grey"),
    [
        (WELL, BAD, WELL, "b"),
        (WELL, Pulse(bad=2), WELL, None),
        (BAD, Pulse(bad=5), WELL, None),
        (WELL, BAD, BAD, None),
        (BAD, BAD, BAD, None),
        (Pulse(), BAD, Pulse(), None),
        (WELL, BAD, Pulse(), "b"),
    ],
)
def test_a_cell_is_grey_while_others_prove_that_payments_can_succeed(
    a: Pulse, b: Pulse, c: Pulse, grey: str | None
) -> None:
    judged = grey_cell({"a": a, "b": b, "c": c}, KNOWN, POLICY)
    assert judged.cell == grey
    if grey is None and b.bad >= POLICY.windows:
        assert judged.pulses["b"] == Pulse(), "the last one to come back is not taken for grey"
        assert "no cell's own fault" in judged.note


def test_a_cell_without_slots_or_lease_or_with_a_failover_that_waits_is_not_grey() -> None:
    pulses = {"a": WELL, "b": BAD, "c": WELL}
    for known in (
        replace(KNOWN, slot_map=EMPTY_B),
        replace(KNOWN, live=("a", "c")),
        replace(KNOWN, waiting=("b",)),
    ):
        assert grey_cell(pulses, known, POLICY).cell is None


OUT_A = {"a": Held(1, True)}
OUT_B = {"b": Held(1, True)}
B_IS_OUT = replace(KNOWN, slot_map=EMPTY_B)


@pytest.mark.parametrize(
    ("cell", "held", "policy", "leads", "settled", "grey", "why"),
    [
        ("c", {}, POLICY, True, True, False, None),
        ("c", {}, POLICY, False, True, False, Obstacle.NOT_LEADER),
        ("c", {}, POLICY, True, False, False, Obstacle.UNSETTLED),
        ("c", {}, FailoverPolicy(automatic=False), True, True, True, Obstacle.SWITCHED_OFF),
        ("c", {}, FailoverPolicy(real_traffic=False), True, True, True, Obstacle.LEASES_ONLY),
        ("c", {}, FailoverPolicy(real_traffic=False), True, True, False, None),
        ("c", OUT_B, POLICY, True, True, False, Obstacle.ANOTHER_REGION),
        ("a", OUT_B, POLICY, True, True, False, None),
        ("b", OUT_B, POLICY, True, True, False, None),
        # It owns slots and lives: it is back, however it came.
        ("c", OUT_A, POLICY, True, True, False, None),
        ("c", {"b": Held(3, False)}, POLICY, True, True, False, None),
        ("c", {"gone": Held(1, True)}, POLICY, True, True, False, None),
    ],
)
def test_no_failover_starts_by_itself_while_something_forbids_it(
    cell: str,
    held: dict[str, Held],
    policy: FailoverPolicy,
    leads: bool,
    settled: bool,
    grey: bool,
    why: Obstacle | None,
) -> None:
    found = obstacle(cell, B_IS_OUT, held, policy, leads=leads, settled=settled, grey=grey)
    assert found == why


@given(
    st.dictionaries(st.sampled_from(CELLS), st.builds(Held, st.integers(0, 5), st.booleans())),
    st.sets(st.sampled_from(CELLS)),
)
def test_never_two_regions_are_out_by_themselves(held: dict[str, Held], live: set[str]) -> None:
    known = replace(B_IS_OUT, live=live)
    for cell in CELLS:
        allowed = obstacle(cell, known, held, POLICY, leads=True, settled=True, grey=False)
        if allowed is None:
            out = still_out(held, known) | {cell}
            assert len({known.regions[each] for each in out}) == 1


@given(st.integers(0, 50))
def test_the_hold_down_forgives_once_and_doubles_to_an_hour(flaps: int) -> None:
    wait = hold_down_s(flaps, POLICY)
    assert wait == (0 if flaps <= 1 else min(30 * 2 ** (flaps - 2), 3600))


def test_a_flapping_cell_is_barred_until_it_has_lived_for_long() -> None:
    held = {"a": Held(1, True), "b": Held(2, True, "lost its lease"), "c": Held(9, False)}
    assert set(barred(held, {"b": 29.0}, POLICY)) == {"b"}
    assert set(barred(held, {}, POLICY)) == {"b"}
    assert "lost its lease" in barred(held, {}, POLICY)["b"]
    assert not barred(held, {"b": 30.0}, POLICY)


def test_policies_of_other_versions_are_understood() -> None:
    assert FailoverPolicy.from_json('{"automatic": false}') == FailoverPolicy(automatic=False)
    assert FailoverPolicy.from_json('{"automatic": true, "mood": 3}') == FailoverPolicy()
    assert FailoverPolicy.from_json(POLICY.to_json()) == POLICY
    assert Held.from_json(Held.again(Held(2, False), "why").to_json()) == Held(3, True, "why")
