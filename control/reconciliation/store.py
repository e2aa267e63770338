"""Runs, breaks and cases, read and decided by SQL: the tables are cells/reconciliation's.

A decision changes the case and its break in one transaction, each compared with what was read. Its
audit record is in etcd, in another store: it is written first, and the row names it, so no effect
is without its record; a record without effect is followed by one that says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control.reconciliation.model import Break, Case, CaseState, Proposal, Run
from control.reconciliation.rules import AFTER_APPROVAL

_BREAK_FIELDS = ", ".join(
    f"b.{'class' if name == 'break_class' else name}" for name in Break._fields
)
_WIDTH = len(Break._fields)
_CASE_FIELDS = (
    "c.version, c.state, c.proposal, c.maker, c.maker_reason, c.checker, c.checker_reason"
)
_JOINED = (
    f"SELECT {_BREAK_FIELDS}, {_CASE_FIELDS} FROM reconciliation_cases AS c"
    " JOIN reconciliation_breaks AS b ON b.channel = c.channel"
    " AND b.clearing_date = c.clearing_date AND b.break_id = c.break_id"
)
_COUNTED = ", ".join(
    f"count(CASE WHEN b.state {test} THEN 1 END)"
    for test in ("= 'open'", "= 'case'", "IN ('adjusting', 'adjusted')", "= 'matched_later'")
)
_RUNS = (
    "SELECT r.channel, r.clearing_date, r.version, r.state, r.reason, r.lines, r.requested_by,"
    f" r.touched_at, {_COUNTED} FROM reconciliation_runs AS r"
    " LEFT JOIN reconciliation_breaks AS b ON b.channel = r.channel"
    " AND b.clearing_date = r.clearing_date AND b.reason <> 'AGREED_FEES'"
    " WHERE (r.channel = :channel OR :channel = '') AND (r.clearing_date = :day OR :day = '')"
    " GROUP BY r.channel, r.clearing_date, r.version, r.state, r.reason, r.lines, r.requested_by,"
    " r.touched_at ORDER BY r.clearing_date DESC, r.channel DESC"
)
_BREAKS = (
    f"SELECT {_BREAK_FIELDS} FROM reconciliation_breaks AS b"
    " WHERE b.reason <> 'AGREED_FEES' AND (b.channel = :channel OR :channel = '')"
    " AND (b.clearing_date = :day OR :day = '') AND (b.state = :state OR :state = '')"
    " AND (b.clearing_date, b.break_id) > (:after_day, :after_id)"
    " ORDER BY b.clearing_date, b.break_id LIMIT :most"
)
_CASES = (
    f"{_JOINED} WHERE (c.channel = :channel OR :channel = '')"
    " AND (:decided OR c.state IN ('opened', 'proposed', 'rejected'))"
    " AND (c.clearing_date, c.break_id) > (:after_day, :after_id)"
    " ORDER BY c.clearing_date, c.break_id LIMIT :most"
)
_CASE = f"{_JOINED} WHERE c.break_id = :break_id"
_BEGIN = (
    "INSERT INTO reconciliation_runs (channel, clearing_date, version, state, reason,"
    " statement_sha256, lines, sums, guesses, requested_by)"
    " VALUES (:channel, :day, 1, 'waiting', '', '', 0, '[]', '[]', :actor) ON CONFLICT DO NOTHING"
)
# A run that is being posted goes on; what waits is asked for already.
_REOPEN = (
    "UPDATE reconciliation_runs SET state = 'waiting', reason = '', requested_by = :actor,"
    " version = version + 1, touched_at = now() WHERE channel = :channel AND clearing_date = :day"
    " AND state IN ('quarantined', 'done')"
)
_PROPOSE = (
    f"UPDATE reconciliation_cases SET state = '{CaseState.PROPOSED}', proposal = :proposal,"
    " maker = :actor, maker_reason = :reason, maker_audit_id = :audit_id, checker = '',"
    " checker_reason = '', checker_audit_id = '', version = version + 1, touched_at = now()"
    " WHERE channel = :channel AND clearing_date = :day AND break_id = :break_id"
    " AND version = :version"
)
_DECIDE = (
    "UPDATE reconciliation_cases SET state = :state, checker = :actor, checker_reason = :reason,"
    " checker_audit_id = :audit_id, version = version + 1, touched_at = now()"
    " WHERE channel = :channel AND clearing_date = :day AND break_id = :break_id"
    " AND version = :version"
)
_RESOLVE = (
    "UPDATE reconciliation_breaks SET state = :state, resolution = :actor, resolved_on ="
    " clearing_date, touched_at = now() WHERE channel = :channel AND clearing_date = :day"
    " AND break_id = :break_id AND state = 'case'"
)
STATEMENTS = (_RUNS, _BREAKS, _CASES, _CASE, _BEGIN, _REOPEN, _PROPOSE, _DECIDE, _RESOLVE)


class CaseStore:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def runs(self, channel: str = "", day: str = "") -> list[Run]:
        return [Run(*row) for row in await self._fetch(_RUNS, channel=channel, day=day)]

    async def breaks(
        self, channel: str, day: str, state: str, after: tuple[str, str], most: int
    ) -> list[Break]:
        rows = await self._fetch(
            _BREAKS, channel=channel, day=day, state=state, after_day=after[0], after_id=after[1],
            most=most,
        )  # fmt: skip
        return [Break(*row) for row in rows]

    async def cases(
        self, channel: str, decided: bool, after: tuple[str, str], most: int
    ) -> list[Case]:
        rows = await self._fetch(
            _CASES, channel=channel, decided=decided, after_day=after[0], after_id=after[1],
            most=most,
        )  # fmt: skip
        return [_case(row) for row in rows]

    async def case(self, break_id: str) -> Case | None:
        rows = await self._fetch(_CASE, break_id=break_id)
        return _case(rows[0]) if rows else None

    async def request(self, channel: str, day: str, actor: str) -> Run:
        """The run as it is then."""
        arguments = {"channel": channel, "day": day, "actor": actor}
        async with self._engine.begin() as connection:
            await connection.execute(text(_BEGIN), arguments)
            await connection.execute(text(_REOPEN), arguments)
        (run,) = await self.runs(channel, day)
        return run

    async def propose(
        self, case: Case, proposal: Proposal, actor: str, reason: str, audit_id: str
    ) -> bool:
        """False when the case is another by now."""
        async with self._engine.begin() as connection:
            return await _changed(
                connection, _PROPOSE,
                {**_key(case), "version": case.version, "proposal": proposal.value,
                 "actor": actor, "reason": reason, "audit_id": audit_id},
            )  # fmt: skip

    async def decide(
        self, case: Case, actor: str, reason: str, audit_id: str, *, approve: bool
    ) -> bool:
        """Case and break together; False when either is another by now."""
        state = CaseState.APPROVED if approve else CaseState.REJECTED
        async with self._engine.connect() as connection:
            done = await _changed(
                connection, _DECIDE,
                {**_key(case), "version": case.version, "state": state.value, "actor": actor,
                 "reason": reason, "audit_id": audit_id},
            )  # fmt: skip
            if done and approve:
                after = AFTER_APPROVAL[Proposal(case.proposal)]
                resolve = {**_key(case), "state": after, "actor": actor}
                done = await _changed(connection, _RESOLVE, resolve)
            await (connection.commit() if done else connection.rollback())
            return done

    async def close(self) -> None:
        await self._engine.dispose()

    async def _fetch(self, sql: str, **arguments: Any) -> Sequence[Any]:
        async with self._engine.connect() as connection:
            return (await connection.execute(text(sql), arguments)).all()


def _case(row: Sequence[Any]) -> Case:
    return Case(Break(*row[:_WIDTH]), *row[_WIDTH:])


def _key(case: Case) -> dict[str, str]:
    of = case.of
    return {"channel": of.channel, "day": of.clearing_date, "break_id": of.break_id}


async def _changed(connection: AsyncConnection, sql: str, arguments: Mapping[str, object]) -> bool:
    result: Any = await connection.execute(text(sql), arguments)
    return bool(result.rowcount == 1)
