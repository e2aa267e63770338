"""What may be done about a break, and how a day's report is kept from being turned against us."""

from __future__ import annotations

import itertools
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from cells.reconciliation.attempts import CARRIED, DAY, NAMED, day_of, window_of
from cells.reconciliation.internal import STATEMENTS as INTERNAL
from cells.reconciliation.merging import merge
from cells.reconciliation.model import (
    BREAK_TRANSITIONS,
    RUN_TRANSITIONS,
    Break,
    BreakClass,
    BreakState,
    Found,
    IllegalEvent,
    Outcome,
    Reason,
    Resolved,
    Run,
    RunEvent,
    RunState,
    Sums,
    after,
)
from cells.reconciliation.report import amount_text, csv_cell, csv_text, page
from cells.reconciliation.rules import Side, Verdict, break_id, decide, posting_of
from cells.reconciliation.settings import ChannelPolicy, ClassRule, Limits, read_settings
from cells.reconciliation.store import STATEMENTS as STORED
from cells.reconciliation.worker import due_days, next_run
from control.reconciliation.model import TRANSITIONS as CASES
from control.reconciliation.model import Break as SeenBreak
from control.reconciliation.model import Case, CaseEvent, CaseState, Proposal
from control.reconciliation.rules import decide as decide_case
from control.reconciliation.rules import propose
from control.reconciliation.store import STATEMENTS as DECIDED

TODAY = date(2026, 11, 23)
LIMITS = Limits(rules=dict.fromkeys(BreakClass, ClassRule(adjust_max=100, carry_days=1)))


def verdict(amount: int, *, age: int = 0, waits: bool = False, used: int = 0) -> Verdict:
    return decide(
        BreakClass.AMOUNT, amount, may_resolve=waits, by_rule=True, age_days=age,
        adjusted_today=used, limits=LIMITS,
    )  # fmt: skip


def test_only_small_breaks_within_the_days_limit_are_adjusted_without_a_person() -> None:
    assert verdict(100) == verdict(-100) == Verdict.ADJUST
    assert verdict(101) == verdict(-101) == Verdict.CASE
    assert verdict(0) == Verdict.CASE
    assert verdict(50, used=LIMITS.adjust_day_max - 50) == Verdict.ADJUST
    assert verdict(50, used=LIMITS.adjust_day_max - 49) == Verdict.CASE


def test_what_a_later_day_may_explain_is_carried_for_its_days_and_no_longer() -> None:
    assert verdict(100, waits=True) == Verdict.CARRY
    assert verdict(100, waits=True, age=1) == Verdict.ADJUST
    assert verdict(101, waits=True, age=1) == Verdict.CASE


def found(amount: int, kind: BreakClass = BreakClass.DUPLICATE, name: str = "1") -> Found:
    return Found(kind, Reason.LISTED_TWICE, name, "", amount, "CNY", None, None, may_resolve=False)


def outcome(*items: Found, fees: int = 0, resolved: tuple[Resolved, ...] = ()) -> Outcome:
    return Outcome(tuple(items), resolved, (), (Sums("CNY", fees_charged=fees),), {})


def merged(what: Outcome, rows: list[Break], earlier: list[Break] | None = None) -> list[Break]:
    """The table after the run."""
    changes = merge("north", TODAY, what, rows, earlier or [], LIMITS)
    now = {row.break_id: row for row in (*rows, *(earlier or []))}
    for change in changes.changed:
        assert now[change.row.break_id].state == change.before
        now[change.row.break_id] = change.row
    return [*now.values(), *changes.fresh]


def test_a_day_merged_twice_is_merged_once() -> None:
    what = outcome(found(50), found(5_000, name="2"), fees=70)
    once = merged(what, [])
    assert sorted(row.state for row in once) == ["adjusting", "adjusting", "case"]
    assert merged(what, once) == once
    posted = [row._replace(state="adjusted") if row.state == "adjusting" else row for row in once]
    assert merged(what, posted) == posted


def test_the_days_limit_is_used_up_by_the_same_breaks_at_every_repetition() -> None:
    limits = LIMITS.adjust_day_max // 100
    what = outcome(*(found(100, name=str(number)) for number in range(limits + 3)))
    once = merged(what, [])
    assert sum(row.state == "case" for row in once) == 3
    assert merged(what, once) == once


def test_a_corrected_fee_posts_only_the_difference() -> None:
    once = [row._replace(state="adjusted") for row in merged(outcome(fees=70), [])]
    twice = merged(outcome(fees=90), once)
    assert sorted(row.amount for row in twice) == [-70, -20]


def test_a_break_that_its_run_explained_and_explains_no_more_is_open_again() -> None:
    row = Break(
        "north", "2026-11-22", "brk_old", "short", "NOT_IN_STATEMENT", "open", "", -5_000, "CNY",
        True, "", "", "",
    )  # fmt: skip
    explained = merged(outcome(resolved=(Resolved("brk_old", "reference"),)), [], [row])
    assert [item.state for item in explained] == ["matched_later"]
    assert [item.state for item in merged(outcome(), [], explained)] == ["case"]


def test_a_break_has_one_id_in_the_slot_of_its_attempt() -> None:
    assert break_id(found(5), "north", TODAY) == break_id(found(7), "north", TODAY)
    assert break_id(found(5), "north", TODAY) != break_id(found(5, name="2"), "north", TODAY)
    mine = found(5)._replace(attempt_id="att_07" + "0" * 26)
    assert break_id(mine, "north", TODAY)[4:6] == "07"


def test_the_channel_account_falls_when_the_bank_owes_more_and_fees_go_to_fees() -> None:
    name = break_id(found(5), "north", TODAY)
    more = posting_of(name, BreakClass.LONG, "north", 5, "CNY", "", "r", "rule")
    assert (more.source, more.target, more.amount) == (Side.CHANNEL, Side.SUSPENSE, 5)
    fee = posting_of(name, BreakClass.FEE, "north", -5, "CNY", "", "r", "rule")
    assert (fee.source, fee.target, fee.amount) == (Side.FEES, Side.CHANNEL, 5)


def test_tables_of_states_lead_only_where_states_are() -> None:
    for table, ends in (
        (BREAK_TRANSITIONS, {BreakState.ADJUSTED, BreakState.CLOSED}),
        (RUN_TRANSITIONS, set()),
    ):
        for state, onward in table.items():
            assert set(onward.values()) <= set(table)
            assert bool(onward) != (state in ends)
    with pytest.raises(IllegalEvent):
        after(RUN_TRANSITIONS, RunState.MATCHED, RunEvent.REOPEN)


def case_of(state: str, maker: str = "ann", amount: int = 5, break_state: str = "case") -> Case:
    of = SeenBreak(
        "north", "2026-11-23", "brk", "long", "", break_state, "", amount, "CNY", "", "", "", "",
        "", "",
    )  # fmt: skip
    return Case(of, 1, state, "adjust", maker, "", "", "")


def test_a_case_is_decided_only_when_proposed_and_never_by_its_maker() -> None:
    for state, checker, approve in itertools.product(CaseState, ("ann", "bob"), (True, False)):
        event = CaseEvent.APPROVE if approve else CaseEvent.REJECT
        allowed = event in CASES[state] and checker != "ann"
        assert (decide_case(case_of(state), checker, approve=approve) is None) == allowed
    assert decide_case(case_of("proposed", break_state="matched_later"), "bob", approve=True)
    assert propose(case_of("opened", amount=0), Proposal.ADJUST)
    assert not propose(case_of("opened", amount=0), Proposal.DISMISS)


def test_a_days_window_is_the_channels_own() -> None:
    policy = ChannelPolicy("north", time_zone="Asia/Shanghai", cut_off_minutes=-60)
    start, end = window_of(TODAY, policy)
    assert (start, end) == (
        datetime(2026, 11, 22, 15, tzinfo=UTC),
        datetime(2026, 11, 23, 15, tzinfo=UTC),
    )
    assert day_of("", start, policy) == TODAY
    assert day_of("", end, policy) > TODAY
    assert day_of("2026-11-20", start, policy) == date(2026, 11, 20)


def test_days_are_due_when_they_ended_and_none_is_left_out() -> None:
    policy = ChannelPolicy("north", grace_minutes=60)
    now = datetime(2026, 11, 24, 0, 59, tzinfo=UTC)
    assert due_days(policy, [], now, 7) == [date(2026, 11, 22)]
    assert due_days(policy, ["2026-11-20"], now, 7) == [date(2026, 11, 21), date(2026, 11, 22)]
    assert due_days(policy, ["2026-11-22"], now, 7) == []
    assert len(due_days(policy, ["2026-01-01"], now, 7)) == 8


def run_of(state: str, day: str = "2026-11-23") -> Run:
    return Run("north", day, 1, state, "", "ab", 0, "[]", "[]", "")


def test_a_day_waits_for_the_day_before_it() -> None:
    done, waits = run_of("done", "2026-11-21"), run_of("waiting")
    assert next_run([done, waits]) == waits
    assert next_run([done, run_of("quarantined", "2026-11-22"), waits]) is None
    assert next_run([done]) is None


@pytest.mark.parametrize("text", ["=1+1", "+1", "-2+3", "@SUM(A1)", "\t=1", " =cmd|' /C calc'!A0"])
def test_no_cell_is_a_formula(text: str) -> None:
    assert csv_cell(text).startswith("'")
    assert csv_text(("a",), [(text,)]).splitlines()[1].lstrip('"').startswith("'")


def test_amounts_are_exact_and_stay_numbers() -> None:
    assert csv_cell("-12.34") == "-12.34"
    assert [amount_text(-5, "CNY"), amount_text(5, "JPY"), amount_text(1234, "KWD")] == [
        "-0.05", "5", "1.234"
    ]  # fmt: skip


def test_what_a_bank_wrote_is_text_on_the_page() -> None:
    evil = '<script>alert("x")</script>'
    row = Break(
        "north", "2026-11-23", "brk", "long", "NOT_OURS", "open", evil, 5, "CNY", True, "", "",
        evil,
    )  # fmt: skip
    text = page(run_of("done"), [row], [row], 3)
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_statements_are_valid_on_both_engines() -> None:
    """What only one of the two documents does not stand in them (as in test_dialects)."""
    import re

    for statement in (*STORED, *DECIDED, *INTERNAL, DAY, CARRIED, NAMED):
        assert not re.search(r"(?i)::|\bMERGE\b|ONLY |ctid|xmin|WITH ORDINALITY|\bFILTER\b",
                             statement)  # fmt: skip


def test_the_example_of_settings_is_read() -> None:
    path = Path(__file__).resolve().parents[2] / "examples/reconciliation/settings.json"
    settings = read_settings(path)
    assert [policy.name for policy in settings.channels] == ["north", "south"]
    assert settings.limits.rules[BreakClass.AMOUNT].adjust_max == 100
    assert settings.channels[0].statement is not None
