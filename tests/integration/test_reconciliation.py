"""Reconciliation on a real database: day after day, twice, corrected, killed in the middle."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from pydantic import TypeAdapter
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

import cells.schema
from cells.adjustments.model import Side
from cells.adjustments.rules import Adjust
from cells.ledger.model import Accepted
from cells.ledger.store import commit_group
from cells.reconciliation.internal import CHECKS, internal, positions
from cells.reconciliation.model import Break, BreakClass, Reported, Run, RunState
from cells.reconciliation.posting import PostingWaits
from cells.reconciliation.rules import Posting
from cells.reconciliation.run import Reconciler
from cells.reconciliation.settings import (
    EngineSettings,
    Limits,
    ReconciliationSettings,
)
from cells.reconciliation.store import RunConflict, RunStore
from cells.statements.layouts import CsvLayout
from tests.bench.reconcile import run as run_bench
from tests.integration.bank_side import write_attempts, write_statement
from tests.integration.books import new_database
from tests.property.bank_day import POLICY, World

DAY = date(2026, 11, 23)
NEXT = DAY + timedelta(days=1)


class Bank(NamedTuple):
    """A world, and a reconciler that looks at it."""

    engine: AsyncEngine
    settings: ReconciliationSettings
    store: RunStore
    folder: Path

    def give(self, day: date, world: World, *, tomorrow: bool = False) -> None:
        rows = world.tomorrow if tomorrow else world.theirs
        write_statement(self.folder / f"north-{day}.csv", "north", day, rows)

    async def run(self, day: date) -> Run:
        run = await self.store.run("north", day.isoformat())
        assert run is not None
        return run

    async def breaks(self, day: date) -> list[Break]:
        rows = await self.store.breaks_of("north", day.isoformat())
        return [row for row in rows if row.reason != "AGREED_FEES"]

    async def finish(self, day: date, poster: Ledger) -> Run:
        await self.store.begin("north", day.isoformat(), "test")
        reconciler = Reconciler(self.settings, self.store, poster)
        run = await reconciler.step(await self.run(day))
        return await reconciler.step(run)


class Ledger:
    """What a slot's home does with adjustments: each break once. May die after the effect."""

    def __init__(self) -> None:
        self.posted: dict[str, Posting] = {}
        self.reported: set[str] = set()
        self.calls = 0
        self.dies_at = 0

    async def report(self, outcome: Reported) -> None:
        self.reported.add(outcome.attempt_id)

    async def post(self, posting: Posting) -> str:
        self.calls += 1
        known = self.posted.setdefault(posting.break_id, posting)
        assert known == posting, "one break, one adjustment"
        if self.calls == self.dies_at:
            raise PostingWaits("it died before it could answer")
        return f"adj-of-{posting.break_id}"


@pytest.fixture
async def bank(server_url: URL, tmp_path: Path) -> AsyncIterator[Bank]:
    async with new_database(server_url) as engine:
        async with engine.begin() as connection:
            await connection.run_sync(cells.schema.metadata.create_all)
        policy = replace(POLICY, inbox=str(tmp_path / "{channel}-{day}.csv"), layout=CsvLayout())
        settings = ReconciliationSettings(
            name="reconciler-1",
            database_url=engine.url.render_as_string(hide_password=False),
            work=str(tmp_path / "work"),
            channels=(policy,),
            statements=str(tmp_path / "statements"),
            limits=Limits(implausible_min=50),
            engine=EngineSettings(memory_limit_mb=200, threads=1),
            poll_interval_s=0.2,
        )
        yield Bank(engine, settings, RunStore(engine), tmp_path)


def a_day(*errors: str, seed: int = 11, good: int = 40) -> World:
    world = World(seed)
    for _ in range(good):
        world.good()
    for error in errors:
        world.inject(error)
    return world


ALL = (
    "missing", "extra", "amount", "rejected", "refused_by_us", "unknown", "duplicate", "shifted",
    "fee", "merged_wrong", "no_reference", "void_by_original",
)  # fmt: skip


async def test_a_day_is_matched_posted_reported_and_the_next_explains_it(bank: Bank) -> None:
    world, ledger = a_day(*ALL), Ledger()
    await write_attempts(bank.engine, "north", world.ours)
    bank.give(DAY, world)
    run = await bank.finish(DAY, ledger)
    assert run.state == RunState.DONE
    breaks = await bank.breaks(DAY)
    found = sorted((row.break_class, row.attempt_id, row.amount) for row in breaks)
    assert found == sorted(world.expected.elements())
    states = {row.break_class: row.state for row in breaks}
    assert states[BreakClass.SHORT] == "open"
    assert states[BreakClass.DUPLICATE] == "case"
    assert states[BreakClass.FEE] == states[BreakClass.AMOUNT] == "adjusted"
    await _check_what_was_posted(ledger, breaks)
    report = (bank.folder / "work/reports/north" / DAY.isoformat() / "report.html").read_text()
    assert "Reconciliation of north, 2026-11-23" in report

    bank.give(NEXT, world, tomorrow=True)
    assert (await bank.finish(NEXT, ledger)).state == RunState.DONE
    assert not await bank.breaks(NEXT)
    later = {row.attempt_id for row in await bank.breaks(DAY) if row.state == "matched_later"}
    assert later == world.expected_tomorrow
    # Three ways: what it approved and what was posted, what its statements say, what is between.
    for of in await positions(bank.engine):
        assert of.attempts + of.adjusted + of.unresolved == of.statements
    # What nothing explained in a day is for people.
    assert not [row for row in await bank.breaks(DAY) if row.state == "open"]


async def _check_what_was_posted(ledger: Ledger, breaks: list[Break]) -> None:
    """Of the bank's own view: what it owes us more, and the fees that were agreed."""
    by_rule = {row.break_id: row for row in breaks if row.state == "adjusted"}
    for name, posting in ledger.posted.items():
        if name in by_rule:
            out = posting.source == "channel"
            assert posting.amount * (1 if out else -1) == by_rule[name].amount
        else:
            assert (posting.source, posting.target) == ("fees", "channel")
    assert set(by_rule) < set(ledger.posted)


async def test_a_run_done_again_changes_nothing_and_posts_nothing_twice(bank: Bank) -> None:
    world, ledger = a_day(*ALL), Ledger()
    await write_attempts(bank.engine, "north", world.ours)
    bank.give(DAY, world)
    await bank.finish(DAY, ledger)
    before, calls = await bank.breaks(DAY), ledger.calls
    run = await bank.run(DAY)
    await _reopen(bank, DAY)
    await bank.finish(DAY, ledger)
    assert await bank.breaks(DAY) == before
    assert ledger.calls == calls
    again = await bank.run(DAY)
    assert (again.sums, again.guesses) == (run.sums, run.guesses)
    assert again.version > run.version


async def test_a_corrected_statement_explains_what_it_corrects(bank: Bank) -> None:
    world, ledger = a_day("missing", "amount", "duplicate"), Ledger()
    await write_attempts(bank.engine, "north", world.ours)
    bank.give(DAY, world)
    await bank.finish(DAY, ledger)
    (missing,) = [row for row in await bank.breaks(DAY) if row.break_class == BreakClass.SHORT]
    attempt = next(row for row in world.ours if row.attempt_id == missing.attempt_id)
    world.theirs.append(world.line_of(attempt))
    await _reopen(bank, DAY)
    # The other edition is refused until the first is taken back, which a reopened run does.
    bank.give(DAY, world)
    await bank.finish(DAY, ledger)
    now = {row.break_class: row.state for row in await bank.breaks(DAY)}
    assert now[BreakClass.SHORT] == "matched_later"
    assert now[BreakClass.DUPLICATE] == "case"
    assert now[BreakClass.AMOUNT] == "adjusted"


async def test_a_statement_tells_the_outcome_that_nobody_knew(bank: Bank) -> None:
    world, ledger = a_day("unknown", good=5), Ledger()
    unknown = world.ours[-1]
    world.theirs.append(world.line_of(unknown))
    await write_attempts(bank.engine, "north", world.ours)
    bank.give(DAY, world)
    assert (await bank.finish(DAY, ledger)).state == RunState.DONE
    assert ledger.reported == {unknown.attempt_id}
    async with bank.engine.begin() as connection:
        await connection.execute(
            text(
                "UPDATE attempts SET state = 'approved', clearing_date = :day WHERE attempt_id = :a"
            ),
            {"day": DAY.isoformat(), "a": unknown.attempt_id},
        )
    bank.give(NEXT, world, tomorrow=True)
    world.tomorrow.append(world.line_of(world.attempt()))
    bank.give(NEXT, world, tomorrow=True)
    await bank.finish(NEXT, ledger)
    assert [row.state for row in await bank.breaks(DAY)] == ["matched_later"]


async def test_a_proposal_does_not_outlive_the_amount_that_it_was_made_for(bank: Bank) -> None:
    world, ledger = a_day(good=5), Ledger()
    wrong = world.attempt(kind="purchase", amount=90_000)
    line = world.line_of(wrong)
    world.ours.append(wrong)
    world.theirs.append(line._replace(amount=95_000, fee=line.fee))
    await write_attempts(bank.engine, "north", world.ours)
    bank.give(DAY, world)
    await bank.finish(DAY, ledger)
    async with bank.engine.begin() as connection:
        await connection.execute(
            text("UPDATE reconciliation_cases SET state = 'proposed', maker = 'ann'")
        )
    world.theirs[-1] = line._replace(amount=99_000, fee=line.fee)
    bank.give(DAY, world)
    await _reopen(bank, DAY)
    await bank.finish(DAY, ledger)
    (found,) = [row for row in await bank.breaks(DAY) if row.break_class == BreakClass.AMOUNT]
    assert (found.amount, found.state) == (9_000, "case")
    async with bank.engine.connect() as connection:
        cases = await connection.execute(text("SELECT state, maker FROM reconciliation_cases"))
        assert [tuple(case) for case in cases] == [("opened", "")]


class RealLedger(Ledger):
    """The command behind AdjustmentsService, decided and committed by the ledger itself."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__()
        self.engine = engine

    async def post(self, posting: Posting) -> str:
        await super().post(posting)
        (outcome,) = await commit_group(self.engine, "a", [_command(posting)])
        assert isinstance(outcome, Accepted), outcome
        return str(outcome.resource.adjustment_id)


def _command(posting: Posting) -> Adjust:
    return Adjust(
        posting.slot, posting.break_id, posting.channel, Side(posting.source),
        Side(posting.target), "", posting.amount, posting.currency, posting.subject_id,
        posting.reason, posting.approved_by,
    )  # fmt: skip


async def test_what_is_adjusted_stands_in_the_ledger_once(bank: Bank) -> None:
    world = a_day("fee", "amount", good=10)
    async with bank.engine.begin() as connection:
        await connection.execute(
            text("INSERT INTO slots SELECT n, 'a', 1 FROM generate_series(0, 1023) AS n")
        )
    await write_attempts(bank.engine, "north", world.ours)
    bank.give(DAY, world)
    ledger = RealLedger(bank.engine)
    for _ in range(2):
        assert (await bank.finish(DAY, ledger)).state == RunState.DONE
        await _reopen(bank, DAY)
    for posting in ledger.posted.values():
        (again,) = await commit_group(bank.engine, "a", [_command(posting)])
        assert isinstance(again, Accepted)
        assert again.replayed
    (position,) = await positions(bank.engine)
    assert position.ledger == position.adjusted == -sum(row.fee for row in world.theirs) + 3
    checks = {finding.check for finding in await internal(bank.engine)}
    assert not checks & {item.name for item in CHECKS}
    assert not checks & {"adjustment_has_its_posting", "posting_sums_to_zero"}


async def _reopen(bank: Bank, day: date) -> None:
    """As the control plane does it."""
    async with bank.engine.begin() as connection:
        await connection.execute(
            text("UPDATE reconciliation_runs SET state = 'waiting', version = version + 1")
        )


@pytest.mark.parametrize("spoiled", ["total", "day", "truncated", "half"])
async def test_a_statement_that_cannot_be_is_quarantined_and_nothing_is_applied(
    bank: Bank, spoiled: str
) -> None:
    world, ledger = a_day(good=120), Ledger()
    await write_attempts(bank.engine, "north", world.ours)
    if spoiled == "half":
        del world.theirs[60:]
    bank.give(DAY, world)
    path = bank.folder / f"north-{DAY}.csv"
    content = path.read_text()
    if spoiled == "total":
        content = content.replace("#total,CNY,120,", "#total,CNY,121,")
    elif spoiled == "day":
        content = content.replace(DAY.isoformat(), NEXT.isoformat(), 2)
    elif spoiled == "truncated":
        content = content[: len(content) // 2]
    path.write_text(content)
    run = await bank.finish(DAY, ledger)
    assert run.state == RunState.QUARANTINED
    assert run.reason
    assert not await bank.breaks(DAY)
    assert not ledger.posted


async def test_a_line_of_a_day_before_is_a_duplicate_and_one_of_the_day_after_waits(
    bank: Bank,
) -> None:
    world, ledger = a_day(good=5), Ledger()
    await write_attempts(bank.engine, "north", world.ours)
    bank.give(DAY, world)
    await bank.finish(DAY, ledger)
    twice = world.theirs[0]
    early = world.attempt()
    assert early.happened_at is not None
    early = early._replace(happened_at=early.happened_at + timedelta(days=2))
    await write_attempts(bank.engine, "north", [early])
    world.tomorrow += [twice, world.line_of(early)]
    bank.give(NEXT, world, tomorrow=True)
    await bank.finish(NEXT, ledger)
    found = {(row.break_class, row.reason): row.state for row in await bank.breaks(NEXT)}
    assert found == {
        ("duplicate", "LISTED_ON_AN_EARLIER_DAY"): "case",
        ("long", "OF_A_LATER_DAY"): "open",
    }


async def test_of_two_reconcilers_one_gets_on(bank: Bank) -> None:
    world, ledger = a_day("missing", "duplicate", "fee"), Ledger()
    await write_attempts(bank.engine, "north", world.ours)
    bank.give(DAY, world)
    await bank.store.begin("north", DAY.isoformat(), "test")
    run = await bank.run(DAY)
    both = [Reconciler(bank.settings, bank.store, ledger) for _ in range(2)]
    results = await asyncio.gather(*(one.step(run) for one in both), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["Run", "RunConflict"]
    assert any(isinstance(result, RunConflict) for result in results)
    assert len(await bank.breaks(DAY)) == 3


async def test_a_reconciler_that_dies_while_it_posts_posts_the_rest_later(bank: Bank) -> None:
    world, ledger = a_day("fee", "fee", "amount"), Ledger()
    await write_attempts(bank.engine, "north", world.ours)
    bank.give(DAY, world)
    ledger.dies_at = 2
    run = await bank.finish(DAY, ledger)
    assert run.state == RunState.MATCHED
    run = await Reconciler(bank.settings, bank.store, ledger).step(run)
    assert run.state == RunState.DONE
    states = {row.state for row in await bank.store.breaks_of("north", DAY.isoformat())}
    assert states == {"adjusted"}


async def test_killed_at_any_moment_it_comes_to_the_same_end(bank: Bank) -> None:
    """The process itself, on a larger day; without a mesh its postings wait, and the run with
    them."""
    world = a_day(*ALL, good=4_000)
    await write_attempts(bank.engine, "north", world.ours)
    bank.give(DAY, world)
    await bank.store.begin("north", DAY.isoformat(), "test")
    path = bank.folder / "settings.json"
    path.write_bytes(TypeAdapter(ReconciliationSettings).dump_json(bank.settings))
    chance = random.Random(5)
    for _ in range(3):
        process = await _started(path)
        await asyncio.sleep(chance.uniform(0.0, 0.25))
        process.kill()
        await process.wait()
        # What was matched already is taken back and matched anew, killed again.
        await _reopen(bank, DAY)
    process = await _started(path)
    until = time.monotonic() + 60
    while (await bank.run(DAY)).state == RunState.WAITING:
        assert process.returncode is None
        assert time.monotonic() < until
        await asyncio.sleep(0.1)
    process.terminate()
    assert await process.wait() == 0
    found = sorted((row.break_class, row.attempt_id, row.amount) for row in await bank.breaks(DAY))
    assert found == sorted(world.expected.elements())
    (sums,) = [item for item in json.loads((await bank.run(DAY)).sums) if item["ours"]]
    assert sums["ours"] == sum(row.expect in {"line", "pair"} for row in world.ours)


def test_memory_does_not_grow_with_the_rows() -> None:
    small = run_bench(50_000, memory_limit_mb=150)
    large = run_bench(500_000, memory_limit_mb=150)
    assert large["missed"] == large["invented"] == 0
    assert large["peak_rss_mib"] < small["peak_rss_mib"] + 150


async def _started(settings: Path) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cells.reconciliation", str(settings),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    async for line in process.stderr:
        if b"reconciler ready" in line:
            return process
    raise AssertionError("the reconciler did not start")
