"""Injected errors are found, all of them, and none is invented.

A truth is made up; our attempts and the bank's lines are derived from it by code that shares
nothing with the matching, a multiset of errors is injected, and two days are reconciled.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cells.reconciliation.judge import judge
from cells.reconciliation.matching import (
    OURS_COLUMNS,
    THEIRS_COLUMNS,
    Matching,
    Sources,
    engine,
    fee_sql,
)
from cells.reconciliation.model import BreakClass, Implausible, Ours, Outcome, Theirs
from cells.reconciliation.rows import to_parquet, write_csv
from cells.reconciliation.rules import fee_of
from cells.reconciliation.settings import EngineSettings, FeeTier, Limits
from tests.property.bank_day import ERRORS, NOON, POLICY, World, numbered

LIMITS = Limits(implausible_min=10_000)


def reconcile(ours: Iterable[Ours], theirs: Iterable[Theirs], limits: Limits = LIMITS) -> Outcome:
    folder = Path(tempfile.mkdtemp())
    try:
        with engine(folder, EngineSettings(memory_limit_mb=200, threads=1)) as connection:
            sources = []
            for name, columns, rows in (
                ("ours", OURS_COLUMNS, ours),
                ("theirs", THEIRS_COLUMNS, theirs),
            ):
                write_csv(folder / f"{name}.csv", rows)
                target = folder / f"{name}.parquet"
                to_parquet(connection, [folder / f"{name}.csv"], columns, target)
                sources.append(target)
            matching = Matching(connection, Sources(sources[0], None, sources[1]), POLICY, limits)
            pool, sums = matching.run()
            return judge(pool, sums, POLICY, lines=matching.lines, seconds=matching.seconds)
    finally:
        shutil.rmtree(folder)


@settings(
    max_examples=20, deadline=None,
    # An example is a database: to shrink one takes minutes, and the seed is enough to see why.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(
    seed=st.integers(0, 2**16),
    good=st.integers(0, 60),
    errors=st.lists(st.sampled_from(ERRORS), max_size=25),
)
def test_exactly_what_was_injected_is_found(seed: int, good: int, errors: list[str]) -> None:
    world = World(seed)
    for _ in range(good):
        world.good()
    for error in errors:
        world.inject(error)
    world.random.shuffle(world.ours)
    world.random.shuffle(world.theirs)
    outcome = reconcile(world.ours, numbered(world.theirs))
    found = Counter((item.break_class, item.attempt_id, item.amount) for item in outcome.found)
    assert found == world.expected
    assert {guess.attempt_id for guess in outcome.guesses} == world.guessed
    assert len({(item.break_class, item.identity) for item in outcome.found}) == len(outcome.found)
    assert not outcome.resolved
    assert not outcome.unexplained
    _check_the_next_day(world, outcome)


def _check_the_next_day(world: World, outcome: Outcome) -> None:
    """What was shifted is explained by the next statement; the rest stays what it was."""
    mine, yours = [], []
    for number, item in enumerate(outcome.found):
        if not item.may_resolve:
            continue
        carried: dict[str, Any] = {"carried": f"b{number}", "carried_class": item.break_class}
        if item.ours is not None:
            mine.append(item.ours._replace(**carried))
        if item.theirs is not None:
            yours.append(item.theirs._replace(**carried))
    after = reconcile(mine, [*yours, *numbered(world.tomorrow)])
    resolved = {outcome.found[int(item.break_id[1:])].attempt_id for item in after.resolved}
    assert resolved == world.expected_tomorrow
    assert not after.found
    assert not after.unexplained


def test_a_line_that_came_a_day_early_finds_its_attempt_the_day_after() -> None:
    world = World(1)
    ours = world.attempt()
    line = world.line_of(ours)._replace(line_no=1)
    (early,) = reconcile([], [line]).found
    assert early.break_class == BreakClass.LONG
    carried = line._replace(carried="b1", carried_class=early.break_class)
    after = reconcile([ours], [carried])
    assert [(item.break_id, item.how) for item in after.resolved] == [("b1", "reference")]
    assert not after.found


def test_a_recovered_outcome_explains_yesterdays_unknown() -> None:
    world = World(2)
    ours = world.attempt(expect="unknown", state="unknown")
    line = world.line_of(ours)._replace(line_no=1)
    (unknown,) = reconcile([ours], [line]).found
    assert (unknown.break_class, unknown.amount) == (BreakClass.STATUS, ours.amount)
    carried: dict[str, Any] = {"carried": "b1", "carried_class": unknown.break_class}
    approved = ours._replace(expect="line", state="approved", **carried)
    after = reconcile([approved], [line._replace(**carried)])
    assert [item.break_id for item in after.resolved] == ["b1"]
    assert not after.found
    declined = ours._replace(expect="nothing", state="declined", **carried)
    assert [item.break_id for item in reconcile([declined], []).resolved] == ["b1"]


def test_two_attempts_of_one_amount_and_time_are_not_guessed_at() -> None:
    world = World(3)
    twins = [world.attempt(kind="purchase", amount=500, bank_reference="") for _ in range(2)]
    twins = [twin._replace(happened_at=NOON) for twin in twins]
    line = world.line_of(twins[0])._replace(reference="", short_reference="", line_no=1)
    outcome = reconcile(twins, [line])
    assert not outcome.guesses
    kinds = sorted(item.break_class for item in outcome.found)
    assert kinds == [BreakClass.LONG, BreakClass.SHORT, BreakClass.SHORT]


def test_two_lines_of_one_amount_and_time_are_not_guessed_at() -> None:
    world = World(3)
    ours = world.attempt(kind="purchase", amount=500, bank_reference="")
    bare = world.line_of(ours)._replace(reference="", short_reference="")
    lines = [bare._replace(line_no=number, bank_reference=f"Z{number}") for number in (1, 2)]
    outcome = reconcile([ours], lines)
    assert not outcome.guesses
    kinds = sorted(item.break_class for item in outcome.found)
    assert kinds == [BreakClass.LONG, BreakClass.LONG, BreakClass.SHORT]


def test_a_guess_beyond_its_limit_is_left_to_people() -> None:
    world = World(4)
    ours = world.attempt(kind="purchase", amount=LIMITS.guess_amount_max + 1, bank_reference="")
    line = world.line_of(ours)._replace(reference="", short_reference="", line_no=1)
    outcome = reconcile([ours], [line])
    assert not outcome.guesses
    assert len(outcome.found) == 2


def test_a_statement_that_lacks_half_a_day_is_not_believed() -> None:
    world = World(5)
    for _ in range(40):
        world.good()
    limits = Limits(implausible_min=10)
    with pytest.raises(Implausible):
        reconcile(world.ours, numbered(world.theirs[:20]), limits)


def test_sums_add_up_and_guesses_are_shown_apart() -> None:
    world = World(6)
    for _ in range(30):
        world.good()
    for error in ("no_reference", "merged", "missing", "amount", "duplicate"):
        world.inject(error)
    (sums,) = reconcile(world.ours, numbered(world.theirs)).sums
    assert sums.ours == len(world.ours)
    assert sums.ours_amount == sum(row.amount for row in world.ours)
    assert sums.theirs_amount == sum(row.amount for row in world.theirs)
    matched = (sums.matched_exactly, sums.matched_heuristically, sums.matched_in_batches)
    # Missing and amount are what is left.
    assert matched == (31, 1, 4)
    assert sums.fees_charged == sum(row.fee for row in world.theirs)


@given(
    amount=st.integers(-(10**12), 10**12),
    kind=st.sampled_from(["purchase", "refund"]),
    tiers=st.lists(
        st.builds(
            FeeTier, kinds=st.sampled_from([("purchase",), ("purchase", "refund")]),
            up_to=st.none() | st.integers(0, 10**6), basis_points=st.integers(0, 10_000),
            fixed=st.integers(0, 500), at_least=st.integers(0, 500),
            at_most=st.none() | st.integers(500, 10**6),
        ), max_size=3,
    ),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_fees_are_the_same_in_sql_and_in_python(
    amount: int, kind: str, tiers: list[FeeTier]
) -> None:
    import duckdb

    sql = f"SELECT {fee_sql(tiers)} FROM (SELECT CAST(? AS BIGINT) AS amount, ? AS kind)"
    row = duckdb.execute(sql, [amount, kind]).fetchone()
    assert row == (fee_of(amount, kind, tiers),)
