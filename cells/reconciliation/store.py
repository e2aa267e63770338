"""Runs, breaks and cases in the database. Every change of a day compares and sets its run's version
in the same transaction: of two reconcilers one gets on, and the other looks again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from cells.database import Driver, changed_rows, commit, transaction
from cells.reconciliation.merging import Changes
from cells.reconciliation.model import (
    BREAK_TRANSITIONS,
    RUN_TRANSITIONS,
    Break,
    BreakEvent,
    BreakState,
    CaseState,
    Run,
    RunEvent,
    RunState,
    after,
)

_ROWS_A_STATEMENT_MAX = 5_000
_RUN_FIELDS = ", ".join(Run._fields)
_NAMES = ["class" if name == "break_class" else name for name in Break._fields]
_BREAK_FIELDS = ", ".join(_NAMES)
_TYPES = {"amount": "bigint", "waits": "boolean"}
_ARRAYS = ", ".join(
    f"CAST(${number} AS {_TYPES.get(name, 'text')}[])" for number, name in enumerate(_NAMES, 1)
)
_INSERT_BREAKS = (
    f"INSERT INTO reconciliation_breaks ({_BREAK_FIELDS})"
    f" SELECT {', '.join(f'u.{name}' for name in _NAMES)} FROM unnest({_ARRAYS})"
    f" AS u({_BREAK_FIELDS})"
)
_KEY = ("channel", "clearing_date", "break_id")
_UPDATE_BREAKS = (
    "UPDATE reconciliation_breaks AS b SET "
    + ", ".join(f"{name} = u.{name}" for name in _NAMES if name not in _KEY)
    + f", touched_at = now() FROM unnest({_ARRAYS}, CAST(${len(_NAMES) + 1} AS text[]))"
    f" AS u({_BREAK_FIELDS}, before) WHERE "
    + " AND ".join(f"b.{name} = u.{name}" for name in _KEY)
    + " AND b.state = u.before"
)
_OPEN_CASES = (
    "INSERT INTO reconciliation_cases (channel, clearing_date, break_id, version, state, proposal,"
    " maker, maker_reason, maker_audit_id, checker, checker_reason, checker_audit_id)"
    f" SELECT u.channel, u.clearing_date, u.break_id, 1, '{CaseState.OPENED}', '', '', '', '', '',"
    " '', '' FROM unnest(CAST($1 AS text[]), CAST($2 AS text[]), CAST($3 AS text[]))"
    " AS u(channel, clearing_date, break_id) ON CONFLICT DO NOTHING"
)
_CHANGE_CASES = (
    "UPDATE reconciliation_cases AS c SET {}, version = c.version + 1, touched_at = now()"
    " FROM unnest(CAST($1 AS text[]), CAST($2 AS text[]), CAST($3 AS text[]))"
    " AS u(channel, clearing_date, break_id) WHERE c.channel = u.channel"
    " AND c.clearing_date = u.clearing_date AND c.break_id = u.break_id"
    f" AND c.state <> '{CaseState.APPROVED}'"
)
_END_CASES = _CHANGE_CASES.format(f"state = '{CaseState.MOOT}'")
_REOPEN_CASES = _CHANGE_CASES.format(
    f"state = '{CaseState.OPENED}', proposal = '', maker = '', maker_reason = ''"
)
_MOVE_RUN = (
    "UPDATE reconciliation_runs SET state = $4, reason = $5, version = version + 1,"
    " touched_at = now() WHERE channel = $1 AND clearing_date = $2 AND version = $3"
)
_MATCH_RUN = (
    "UPDATE reconciliation_runs SET state = $4, reason = '', statement_sha256 = $5, lines = $6,"
    " sums = $7, guesses = $8, version = version + 1, touched_at = now()"
    " WHERE channel = $1 AND clearing_date = $2 AND version = $3"
)
_BEGIN_RUN = (
    "INSERT INTO reconciliation_runs"
    f" ({_RUN_FIELDS}) VALUES ($1, $2, 1, '{RunState.WAITING}', '', '', 0, '[]', '[]', $3)"
    " ON CONFLICT DO NOTHING"
)
_POSTED = (
    f"UPDATE reconciliation_breaks SET state = '{BreakState.ADJUSTED}', adjustment_id = $4,"
    " touched_at = now() WHERE channel = $1 AND clearing_date = $2 AND break_id = $3"
    f" AND state = '{BreakState.ADJUSTING}'"
)
STATEMENTS = (
    _INSERT_BREAKS, _UPDATE_BREAKS, _OPEN_CASES, _END_CASES, _REOPEN_CASES, _MOVE_RUN,
    _MATCH_RUN, _BEGIN_RUN, _POSTED,
)  # fmt: skip


class RunConflict(Exception):
    """Another reconciler or an operator was first; nothing was changed."""


class RunStore:
    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    async def begin(self, channel: str, day: str, requested_by: str) -> None:
        """A run that is there stays as it is."""
        async with transaction(self.engine) as driver:
            await driver.execute(_BEGIN_RUN, channel, day, requested_by)
            await commit(driver)

    async def runs(self, channel: str = "") -> list[Run]:
        """In the order of their days."""
        rows = await self._fetch(
            f"SELECT {_RUN_FIELDS} FROM reconciliation_runs"
            " WHERE channel = :channel OR :channel = '' ORDER BY channel, clearing_date",
            channel=channel,
        )
        return [Run(*row) for row in rows]

    async def run(self, channel: str, day: str) -> Run | None:
        rows = await self._fetch(
            f"SELECT {_RUN_FIELDS} FROM reconciliation_runs"
            " WHERE channel = :channel AND clearing_date = :day",
            channel=channel, day=day,
        )  # fmt: skip
        return Run(*rows[0]) if rows else None

    async def breaks_of(self, channel: str, day: str) -> list[Break]:
        rows = await self._fetch(
            f"SELECT {_BREAK_FIELDS} FROM reconciliation_breaks"
            " WHERE channel = :channel AND clearing_date = :day ORDER BY break_id",
            channel=channel, day=day,
        )  # fmt: skip
        return [Break(*row) for row in rows]

    async def carried(self, channel: str, day: str) -> list[Break]:
        """Of earlier days: what is unresolved, and what the day's run resolved if it ran before."""
        rows = await self._fetch(
            f"SELECT {_BREAK_FIELDS} FROM reconciliation_breaks WHERE channel = :channel"
            " AND clearing_date < :day AND (state IN ('open', 'case')"
            " OR (state = 'matched_later' AND resolved_on = :day)) ORDER BY break_id",
            channel=channel, day=day,
        )  # fmt: skip
        return [Break(*row) for row in rows]

    async def settled(self, channel: str, since: str, day: str) -> list[str]:
        """Attempts whose difference was posted or closed on days before: no day expects them."""
        rows = await self._fetch(
            "SELECT DISTINCT attempt_id FROM reconciliation_breaks WHERE channel = :channel"
            " AND clearing_date >= :since AND clearing_date < :day AND attempt_id <> ''"
            " AND state IN ('adjusting', 'adjusted', 'closed') AND class IN ('short', 'status')",
            channel=channel, since=since, day=day,
        )  # fmt: skip
        return [row[0] for row in rows]

    async def to_post(self, channel: str) -> list[Break]:
        rows = await self._fetch(
            f"SELECT {_BREAK_FIELDS} FROM reconciliation_breaks WHERE channel = :channel"
            " AND state = 'adjusting' ORDER BY clearing_date, break_id",
            channel=channel,
        )
        return [Break(*row) for row in rows]

    async def unresolved(self, channel: str, until: str) -> list[Break]:
        rows = await self._fetch(
            f"SELECT {_BREAK_FIELDS} FROM reconciliation_breaks WHERE channel = :channel"
            " AND clearing_date <= :until AND state IN ('open', 'case', 'adjusting')"
            " ORDER BY clearing_date, break_id",
            channel=channel, until=until,
        )  # fmt: skip
        return [Break(*row) for row in rows]

    async def move(self, run: Run, event: RunEvent, reason: str = "") -> Run:
        """Raises RunConflict."""
        state = after(RUN_TRANSITIONS, RunState(run.state), event)
        async with transaction(self.engine) as driver:
            _first(
                await driver.execute(
                    _MOVE_RUN, run.channel, run.clearing_date, run.version, state, reason
                ),
                run,
            )
            await commit(driver)
        return run._replace(state=state, reason=reason, version=run.version + 1)

    async def apply(self, run: Run, matched: Run, changes: Changes) -> Run:
        """All that a day's matching makes of the tables, or nothing. `matched`: what was learnt.
        Raises RunConflict."""
        state = after(RUN_TRANSITIONS, RunState(run.state), RunEvent.MATCH)
        async with transaction(self.engine) as driver:
            status = await driver.execute(
                _MATCH_RUN, run.channel, run.clearing_date, run.version, state,
                matched.statement_sha256, matched.lines, matched.sums, matched.guesses,
            )  # fmt: skip
            _first(status, run)
            for rows in _parts(changes.fresh):
                await driver.execute(_INSERT_BREAKS, *_columns(rows))
            for part in _parts(changes.changed):
                status = await driver.execute(
                    _UPDATE_BREAKS,
                    *_columns([item.row for item in part]),
                    [item.before for item in part],
                )
                # A person decided a case meanwhile: judge anew.
                if changed_rows(status) != len(part):
                    raise RunConflict(f"breaks of {run.channel} changed meanwhile")
            await _cases(driver, _OPEN_CASES, changes.to_people)
            await _cases(driver, _END_CASES, changes.moot)
            await _cases(driver, _REOPEN_CASES, changes.reopened)
            await commit(driver)
        return matched._replace(state=state, version=run.version + 1)

    async def posted(self, row: Break, adjustment_id: str) -> None:
        """Saying it twice is saying it once."""
        after(BREAK_TRANSITIONS, BreakState(row.state), BreakEvent.POSTED)
        async with transaction(self.engine) as driver:
            await driver.execute(
                _POSTED, row.channel, row.clearing_date, row.break_id, adjustment_id
            )
            await commit(driver)

    async def _fetch(self, sql: str, **arguments: Any) -> Sequence[Any]:
        async with self.engine.connect() as connection:
            return (await connection.execute(text(sql), arguments)).all()


def _first(status: str, run: Run) -> None:
    if changed_rows(status) != 1:
        raise RunConflict(f"{run.channel} {run.clearing_date} is no more at version {run.version}")


async def _cases(driver: Driver, statement: str, rows: Iterable[Break]) -> None:
    for part in _parts(list(rows)):
        await driver.execute(
            statement,
            [row.channel for row in part],
            [row.clearing_date for row in part],
            [row.break_id for row in part],
        )


def _parts(rows: Sequence[Any]) -> Iterator[list[Any]]:
    waiting = iter(rows)
    while part := list(islice(waiting, _ROWS_A_STATEMENT_MAX)):
        yield part


def _columns(rows: Sequence[Break]) -> list[list[Any]]:
    """StrEnums go as plain strings."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    return [
        [str(value) if isinstance(value, str) else value for value in column] for column in columns
    ]
