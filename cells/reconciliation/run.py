"""A day of a channel, from its statement to its report, in steps that may each be done again.

    waiting → (fetch, export, match) → matched → (post, report) → done

Whatever is known is in the database; files are made anew. A run that dies goes on from its last
state: matching is written in one transaction behind the run's version, postings are idempotent by
break.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import date, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import structlog

from cells.channels.interface import StatementMissing
from cells.reconciliation.attempts import export, look_up
from cells.reconciliation.judge import judge
from cells.reconciliation.matching import (
    OURS_COLUMNS,
    THEIRS_COLUMNS,
    Matching,
    Sources,
    engine,
)
from cells.reconciliation.merging import carried_theirs, look_elsewhere, merge, outcome_of
from cells.reconciliation.model import (
    Break,
    BreakClass,
    Implausible,
    Outcome,
    Reason,
    Run,
    RunEvent,
    RunState,
)
from cells.reconciliation.posting import Poster, PostingRefused, PostingWaits
from cells.reconciliation.report import write_report
from cells.reconciliation.rows import to_parquet, write_csv
from cells.reconciliation.rules import posting_of
from cells.reconciliation.settings import ChannelPolicy, ReconciliationSettings
from cells.reconciliation.statements import Statements
from cells.reconciliation.store import RunStore
from cells.statements.model import StatementFault

log = structlog.get_logger(__name__)

# Breaks that may have changed a day's expectations this long ago.
_SETTLED_DAYS = 60
# A posting that its home refuses is a matter for people; meanwhile it is asked for this seldom.
_REFUSED_WAIT_S = 600.0


class Reconciler:
    """`step` takes one run one state further. Two of these do no harm: one of them loses."""

    def __init__(
        self, settings: ReconciliationSettings, store: RunStore, poster: Poster | None
    ) -> None:
        self._settings = settings
        self._store = store
        self._poster = poster
        self._statements = Statements(Path(settings.statements))
        # Break → when its posting may be asked for again, by this process's clock.
        self._refused: dict[str, float] = {}
        self._policies = {policy.name: policy for policy in settings.channels}

    async def step(self, run: Run) -> Run:
        """The run as it is then. Raises RunConflict."""
        policy = self._policies[run.channel]
        day = date.fromisoformat(run.clearing_date)
        match RunState(run.state):
            case RunState.WAITING:
                return await self._match(run, policy, day)
            case RunState.MATCHED:
                told = await self._tell_outcomes(run)
                posted = await self.post(run.channel, run.clearing_date)
                if not (told and posted):
                    return run
                await self.report(run)
                return await self._store.move(run, RunEvent.END)
            case _:
                return run

    async def _match(self, run: Run, policy: ChannelPolicy, day: date) -> Run:
        try:
            believed = await self._statements.get(policy, day, run)
        except StatementMissing as missing:
            log.info("a statement is not there yet", channel=run.channel, why=str(missing))
            return run
        except StatementFault as fault:
            log.error("a statement is not believed", channel=run.channel, why=str(fault))
            return await self._store.move(run, RunEvent.REFUSE, fault.describe())
        today = await self._store.breaks_of(run.channel, run.clearing_date)
        earlier = await self._store.carried(run.channel, run.clearing_date)
        work = Path(self._settings.work)
        await asyncio.to_thread(work.mkdir, parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="run-", dir=work) as folder:
            try:
                outcome = await self._outcome(policy, day, Path(folder), believed.parquet, earlier)
            except Implausible as error:
                log.error("a statement is not plausible", channel=run.channel, why=str(error))
                return await self._store.move(run, RunEvent.REFUSE, str(error))
        if outcome.unexplained:
            # Our bug: its breaks must not be posted, and other channels go on.
            why = f"our breaks do not explain {dict(outcome.unexplained)}; report this"
            log.critical("a day does not add up", channel=run.channel, why=why)
            return await self._store.move(run, RunEvent.REFUSE, why)
        changes = merge(run.channel, day, outcome, today, earlier, self._settings.limits)
        matched = run._replace(
            statement_sha256=believed.sha256,
            reason="",
            lines=believed.lines,
            sums=json.dumps([asdict(item) for item in outcome.sums]),
            guesses=json.dumps([item._asdict() for item in outcome.guesses]),
        )
        log.info(
            "a day is matched", channel=run.channel, day=run.clearing_date, lines=believed.lines,
            found=len(outcome.found), explained=len(outcome.resolved), steps=outcome.seconds,
        )  # fmt: skip
        return await self._store.apply(run, matched, changes)

    async def _outcome(
        self,
        policy: ChannelPolicy,
        day: date,
        folder: Path,
        statement: Path,
        earlier: list[Break],
    ) -> Outcome:
        began = time.perf_counter()
        # Only what a later day may explain: the rest is for people.
        waiting = [row for row in earlier if row.waits]
        day_file, carried_file = folder / "day.csv", folder / "carried.csv"
        await export(
            self._store.engine, policy, day, waiting, self._settings.clearing_lag_days, day_file,
            carried_file,
        )  # fmt: skip
        since = day - timedelta(days=_SETTLED_DAYS)
        settled = await self._store.settled(policy.name, since.isoformat(), day.isoformat())
        excluded = {*settled, *(row.attempt_id for row in waiting if row.ours)}
        exported = time.perf_counter() - began
        outcome = await asyncio.to_thread(
            self._matched, policy, folder, statement, [day_file, carried_file], excluded, waiting
        )
        outcome = _timed(outcome, "export", exported)
        references = [
            item.theirs.reference
            for item in outcome.found
            if item.break_class == BreakClass.LONG and item.theirs and item.theirs.reference
        ]
        known = await look_up(self._store.engine, references, policy, day)
        return look_elsewhere(outcome, known, policy.name, day)

    def _matched(
        self,
        policy: ChannelPolicy,
        folder: Path,
        statement: Path,
        files: list[Path],
        excluded: Iterable[str],
        waiting: Iterable[Break],
    ) -> Outcome:
        with engine(folder, self._settings.engine) as connection:
            connection.execute("CREATE TEMP TABLE excluded (attempt_id VARCHAR)")
            write_csv(folder / "excluded.csv", ((name,) for name in sorted(excluded)))
            connection.execute(
                f"COPY excluded FROM '{folder / 'excluded.csv'}' (FORMAT csv, HEADER false)"
            )
            ours = folder / "ours.parquet"
            to_parquet(
                connection, files, OURS_COLUMNS, ours,
                "carried <> '' OR attempt_id NOT IN (SELECT attempt_id FROM excluded)",
            )  # fmt: skip
            lines = (line for row in waiting if (line := carried_theirs(row)))
            write_csv(folder / "lines.csv", lines)
            carried = folder / "lines.parquet"
            to_parquet(connection, [folder / "lines.csv"], THEIRS_COLUMNS, carried)
            matching = Matching(
                connection, Sources(ours, statement, carried), policy, self._settings.limits,
                self._settings.engine,
            )  # fmt: skip
            pool, sums = matching.run()
            return judge(pool, sums, policy, lines=matching.lines, seconds=matching.seconds)

    async def _tell_outcomes(self, run: Run) -> bool:
        """What a statement says of an attempt whose outcome we do not know is the bank's answer, as
        a callback would be: its owner hears it, and the next run finds it known."""
        rows = await self._store.breaks_of(run.channel, run.clearing_date)
        told = True
        for row in rows:
            outcome = outcome_of(row)
            if outcome is None or self._poster is None:
                continue
            try:
                await self._poster.report(outcome)
            except PostingRefused as error:
                log.error("an outcome is not taken", attempt_id=row.attempt_id, why=str(error))
            except PostingWaits as error:
                log.warning("an outcome waits", attempt_id=row.attempt_id, why=str(error))
                told = False
        return told

    async def post(self, channel: str, day: str = "") -> bool:
        """Posts what waits to be posted (of one day); whether nothing is left that may yet be."""
        rows = [
            row for row in await self._store.to_post(channel) if row.resolved_on == day or not day
        ]
        if rows and self._poster is None:
            log.warning("postings wait: no way to the mesh is configured", count=len(rows))
            return False
        done = True
        for row in rows:
            assert self._poster is not None, "looked at above"
            posting = posting_of(
                row.break_id, BreakClass(row.break_class), row.channel, row.amount, row.currency,
                row.attempt_id, f"reconciliation {row.clearing_date}: {row.reason}",
                row.resolution,
            )  # fmt: skip
            try:
                adjustment_id = await self._poster.post(posting)
            except PostingRefused as error:
                log.error("a posting is refused", break_id=row.break_id, why=str(error))
                self._refused[row.break_id] = time.monotonic() + _REFUSED_WAIT_S
            except PostingWaits as error:
                log.warning("a posting waits", break_id=row.break_id, why=str(error))
                done = False
            else:
                await self._store.posted(row, adjustment_id)
        return done

    async def report(self, run: Run) -> Path:
        """Writes the day's report anew, and tells of what is too old."""
        limits = self._settings.limits
        day = date.fromisoformat(run.clearing_date)
        today = await self._store.breaks_of(run.channel, run.clearing_date)
        unresolved = await self._store.unresolved(run.channel, run.clearing_date)
        for row in unresolved:
            age_days = (day - date.fromisoformat(row.clearing_date)).days
            if age_days >= limits.alarm_days and row.reason != Reason.AGREED_FEES:
                log.error(
                    "a break is old", break_id=row.break_id, break_class=row.break_class,
                    amount=row.amount, currency=row.currency, age_days=age_days,
                )  # fmt: skip
        folder = Path(self._settings.work) / "reports" / run.channel / run.clearing_date
        await asyncio.to_thread(write_report, folder, run, today, unresolved, limits.alarm_days)
        return folder


def _timed(outcome: Outcome, step: str, seconds: float) -> Outcome:
    return replace(outcome, seconds={step: round(seconds, 3), **outcome.seconds})
