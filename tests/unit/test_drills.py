"""Drills' rules: what may be asked for, when the steady state holds, how a drill ends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from control.drills import rules
from control.drills.model import (
    ENDED,
    TRANSITIONS,
    Check,
    Drill,
    Event,
    Fault,
    Hypothesis,
    IllegalEvent,
    Remedy,
    Spec,
    State,
    Undo,
    plan,
)
from control.drills.report import Deed, as_json, as_markdown, document
from control.drills.rules import Audited, Sample
from control.drills.store import EndRequest, Journal, journals

CELLS = {"a": "east", "b": "west", "c": "west"}
BOUND = Hypothesis()
UNDO = (Undo(Remedy.START, "cell-b"),)


def drill(state: State = State.PLANNED, **fields: object) -> Drill:
    made = plan(Spec("loss", Fault.CELL_LOSS, cell="b"), 1, "ann", "a test", time_ms=1_000)
    return replace(made, state=state, **fields)  # type: ignore[arg-type]


def samples(count: int, paid: int, took_ms: int = 20, cell: str = "a") -> list[Sample]:
    return [
        Sample(cell, number * 100, number * 100 + took_ms, number < paid) for number in range(count)
    ]


def fields_of(spec: Spec) -> set[str]:
    return {violation.field for violation in rules.violations_of(spec, CELLS)}


def test_every_fault_with_its_target_is_accepted() -> None:
    targets = {
        Fault.REGION_LOSS: {"region": "west"},
        Fault.PARTITION: {"cell": "a", "other_cell": "b"},
    }
    for fault in Fault:
        needs = fault in {Fault.CELL_LOSS, Fault.PAUSE, Fault.LATENCY, Fault.CLOCK_JUMP}
        target = targets.get(fault, {"cell": "b"} if needs else {})
        assert not rules.violations_of(Spec("drill-1", fault, **target), CELLS), fault  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (Spec("Name", Fault.NATS_LOSS), "spec.name"),
        (Spec("", Fault.NATS_LOSS), "spec.name"),
        (Spec("../x", Fault.NATS_LOSS), "spec.name"),
        (Spec("ümlaut", Fault.NATS_LOSS), "spec.name"),
        (Spec("x" * 49, Fault.NATS_LOSS), "spec.name"),
        (Spec("x", Fault.CELL_LOSS), "spec.cell"),
        (Spec("x", Fault.CELL_LOSS, cell="z"), "spec.cell"),
        (Spec("x", Fault.NATS_LOSS, cell="a"), "spec.cell"),
        (Spec("x", Fault.PARTITION, cell="a"), "spec.other_cell"),
        (Spec("x", Fault.PARTITION, cell="a", other_cell="a"), "spec.other_cell"),
        (Spec("x", Fault.PAUSE, cell="a", other_cell="b"), "spec.other_cell"),
        (Spec("x", Fault.REGION_LOSS), "spec.region"),
        (Spec("x", Fault.REGION_LOSS, region="north"), "spec.region"),
        (Spec("x", Fault.PAUSE, cell="a", region="east"), "spec.region"),
        (Spec("x", Fault.NATS_LOSS, lease_s=4), "spec.lease_s"),
        (Spec("x", Fault.NATS_LOSS, lease_s=3_601), "spec.lease_s"),
        (Spec("x", Fault.NATS_LOSS, lease_s=10, observe_s=11), "spec.observe_s"),
        (Spec("x", Fault.OVERLOAD, times=-1), "spec.times"),
        (Spec("x", Fault.LATENCY, cell="a", loss_ratio=0.6), "spec.loss_ratio"),
        (
            Spec("x", Fault.NATS_LOSS, hypothesis=Hypothesis(success_min=1.1)),
            "spec.hypothesis.success_min",
        ),
    ],
)
def test_what_is_wrong_with_a_drill_is_named_by_its_field(spec: Spec, field: str) -> None:
    assert field in fields_of(spec)


def test_a_steady_state_that_nothing_disturbed_does_not_count_as_held() -> None:
    made = rules.judge("during", samples(50, 50), Audited(rules.BOOKS_OK), BOUND)
    assert made.holds
    idle = rules.unproven(made, "0 connections were cut")
    assert (idle.holds, idle.why) == (False, "the fault was not in force: 0 connections were cut")
    after = rules.judge("after", samples(50, 50), Audited(rules.BOOKS_OK), BOUND)
    ended = drill(State.CHECKED_AFTER, checks=(made, idle, after))
    assert rules.conclusion(ended) == (Event.COMPLETED, "broken")


def test_the_timeline_tells_what_the_mesh_did_between_the_drills_own_steps() -> None:
    made = drill().after(Event.STEADY, time_ms=2_000).after(Event.INJECTED, time_ms=3_000)
    deeds = [Deed(3_500, "failover b done", "341 slots moved"), Deed(2_500, "move b done", "")]
    content = document(made, {}, deeds)
    assert [item["state"] for item in content["timeline"]] == [
        "planned", "checked_before", "move b done", "injected", "failover b done",
    ]  # fmt: skip
    assert "| failover b done | 341 slots moved |" in as_markdown(content)


def test_the_only_region_cannot_be_lost() -> None:
    spec = Spec("x", Fault.REGION_LOSS, region="east")
    assert rules.violations_of(spec, {"a": "east", "b": "east"})


def test_a_region_touches_all_its_cells_and_nats_none() -> None:
    assert rules.touched_cells(Spec("x", Fault.REGION_LOSS, region="west"), CELLS) == {"b", "c"}
    assert rules.touched_cells(Spec("x", Fault.NATS_LOSS), CELLS) == frozenset()


def test_every_state_has_a_way_to_an_end() -> None:
    reach = dict.fromkeys(ENDED, True)
    for _ in TRANSITIONS:
        for state, onward in TRANSITIONS.items():
            reach[state] = reach.get(state, False) or any(reach.get(to) for to in onward.values())
    assert all(reach[state] for state in State)


def test_after_an_injection_nothing_ends_without_healing_or_failing() -> None:
    for state in (State.INJECTED, State.CHECKED_DURING):
        ends = set(TRANSITIONS[state].values()) & ENDED
        assert ends == {State.FAILED}
        assert Event.HEALED in TRANSITIONS[state]


def test_what_the_table_does_not_know_is_refused() -> None:
    with pytest.raises(IllegalEvent):
        drill().after(Event.HEALED, time_ms=2)
    with pytest.raises(IllegalEvent):
        drill(State.REPORTED).after(Event.STEADY, time_ms=2)


def test_a_drill_survives_its_journal() -> None:
    there = drill(undo=UNDO).after(Event.STEADY, time_ms=2, note="fine")
    assert Drill.from_json(there.to_json()) == there


def test_the_lease_begins_with_the_injection() -> None:
    before = drill(State.CHECKED_BEFORE)
    assert before.lease_until_ms is None
    assert before.after(Event.INJECTED, time_ms=5_000).lease_until_ms == 65_000


def test_the_steady_state_is_successes_latency_and_books() -> None:
    assert rules.judge("before", samples(100, 100), Audited("ok"), BOUND).holds
    assert "made" in rules.judge("before", samples(100, 98), Audited("ok"), BOUND).why
    assert "p99" in rules.judge("before", samples(100, 100, 2_001), Audited("ok"), BOUND).why
    broken = Audited("broken", ("floor", "sum"))
    assert "broken (floor, sum)" in rules.judge("before", samples(100, 100), broken, BOUND).why
    assert "no payment" in rules.judge("before", [], Audited("ok"), BOUND).why


def test_books_out_of_reach_are_forgiven_only_while_the_fault_lasts() -> None:
    assert rules.judge("during", samples(100, 95), Audited("unreachable"), BOUND).holds
    assert not rules.judge("during", samples(100, 95), Audited("broken"), BOUND).holds
    assert not rules.judge("after", samples(100, 100), Audited("unreachable"), BOUND).holds


def test_a_drill_is_aborted_when_hardly_any_payment_is_made_lately() -> None:
    assert not rules.breaks_badly(samples(100, 100), 10_000, BOUND)
    # A hundred good ones long ago do not excuse it.
    bad = [Sample("a", 20_000, 20_000 + number, False) for number in range(30)]
    assert rules.breaks_badly([*samples(100, 100), *bad], 20_030, BOUND)
    assert not rules.breaks_badly(bad[:10], 20_030, BOUND), "too few to say"


def test_an_outage_is_the_longest_silence_of_one_cells_users() -> None:
    steady = samples(100, 100, cell="a")
    stalled = [Sample("b", at, max(at, 5_000) + 20, True) for at in range(0, 10_000, 100)]
    found = rules.outage_ms([*steady, *stalled], 0, 10_000)
    assert found["a"] < 200
    assert 4_800 <= found["b"] <= 5_100


def test_late_payments_burn_budget_too() -> None:
    late = rules.budget_burnt(samples(100, 100, 3_000), 60_000, 2_000)
    lost = rules.budget_burnt(samples(100, 0), 60_000, 2_000)
    assert late == lost == pytest.approx(60_000 / (30 * 86_400_000 * 0.001))
    assert rules.budget_burnt(samples(100, 100), 60_000, 2_000) == 0


def check(phase: str, holds: bool = True, books: str = "ok") -> Check:
    return Check(phase, 60, 1.0, 20, books, holds, "")


def test_how_a_drill_ends() -> None:
    good = (check("before"), check("during"), check("after"))
    there = drill(State.CHECKED_AFTER, checks=good)
    assert rules.conclusion(there) == (Event.COMPLETED, "held")
    worse = (check("before"), check("during", holds=False), check("after"))
    assert rules.conclusion(replace(there, checks=worse)) == (Event.COMPLETED, "broken")
    assert rules.conclusion(replace(there, cut_short="why")) == (Event.CUT_SHORT, "broken")
    wrong = (*good[:2], check("after", holds=False, books="broken"))
    assert rules.conclusion(replace(there, checks=wrong)) == (Event.BOOKS_BROKEN, "broken")


@pytest.mark.parametrize("state", list(State))
def test_whoever_takes_a_drill_up_heals_whatever_may_have_been_done(state: State) -> None:
    resumed = rules.resumption(drill(state, undo=UNDO))
    waits = {State.PLANNED, State.CHECKED_BEFORE, State.INJECTED, State.CHECKED_DURING}
    assert resumed.heal == (state in waits - {State.PLANNED})
    if state in {State.PLANNED, State.CHECKED_BEFORE}:
        assert rules.resumption(drill(state)).refuse


def test_the_report_says_the_same_to_people_and_to_programs() -> None:
    ended = drill(
        State.REPORTED, checks=(check("before"),), outage_ms=3_200, verdict="held", undo=UNDO
    )
    content = document(ended, {"b": 3_200})
    assert json.loads(as_json(content))["outage_ms"] == 3_200
    text = as_markdown(content)
    for expected in ("loss", "held", "3200 ms", "| before |", "## Timeline", "a test"):
        assert expected in text


def test_the_states_in_the_documentation_are_the_tables() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/drills.md").read_text(encoding="utf-8")
    block = page.split("<!-- drill-states -->\n```\n")[1].split("\n```")[0]
    lines = []
    for state, onward in TRANSITIONS.items():
        to = " | ".join(sorted(set(onward.values())))
        lines.append(f"{state} → {to}" if to else str(state))
    assert block == "\n".join(lines)


def test_every_fault_has_a_terraform_drill() -> None:
    folder = Path(__file__).resolve().parents[2] / "terraform" / "drills"
    texts = [path.read_text(encoding="utf-8") for path in folder.glob("*/main.tf")]
    for fault in Fault:
        assert any(f'"{fault}"' in text for text in texts), fault


def test_a_drill_has_one_owner_and_who_asks_does_not_keep_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "loss")
    assert not journal.has_owner()
    with journal.owned() as ours:
        assert ours
        assert journal.has_owner()
        with journal.owned() as again:
            assert not again
    assert not journal.has_owner()


def test_an_end_belongs_to_one_run(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "loss")
    assert journal.load() is None
    journal.save(drill())
    journal.ask_to_end(EndRequest(1, "ann", "enough", audited=True))
    assert journal.end_request(1) is not None
    assert journal.end_request(2) is None
    assert [item.name for item in journals(tmp_path)] == ["loss"]
