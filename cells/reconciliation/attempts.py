"""Our side of a day, read from the database as a stream, as of one moment.

A day's attempts are those to which the bank gave that clearing date, and those to which it gave
none and that were made on that day of the channel's own calendar (pitfall 27). COPY writes them to
disk as they come, so memory does not grow with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from cells.database import Driver, transaction
from cells.reconciliation.model import Break
from cells.reconciliation.rules import EXPECTATIONS, MOVES, Elsewhere
from cells.reconciliation.settings import ChannelPolicy
from router.ids import slot_of_id

_KINDS = " ".join(f"WHEN '{name}' THEN '{kind}'" for name, (kind, _) in MOVES.items())
_OUTWARD = ", ".join(f"'{name}'" for name, (_, sign) in MOVES.items() if sign < 0)
_EXPECTED = " ".join(f"WHEN '{state}' THEN '{what}'" for state, what in EXPECTATIONS.items())
# What undoes a payout brings money back.
_SIGNED = (
    "CASE WHEN a.operation = 'void' AND p.operation IN ('payout', 'refund') THEN a.amount"
    f" WHEN a.operation IN ({_OUTWARD}) THEN -a.amount ELSE a.amount END"
)
_FIELDS = (
    "a.attempt_id, a.owner_id, a.original_id, a.short_reference, a.bank_reference,"
    f" CASE a.operation {_KINDS} END, {_SIGNED}, a.currency, CASE a.state {_EXPECTED} END, a.state,"
    " CAST(a.created_at AT TIME ZONE 'UTC' AS text)"
)
_ORIGINAL = (
    " LEFT JOIN attempts AS p ON a.operation = 'void' AND p.slot = a.slot"
    " AND p.attempt_id = a.original_id"
)
DAY = (
    f"SELECT {_FIELDS}, '', '' FROM attempts AS a{_ORIGINAL}"
    " WHERE a.channel = $1 AND a.created_at >= $2 AND a.created_at < $3 AND a.operation <> 'query'"
    " AND (a.clearing_date = $4"
    " OR (a.clearing_date = '' AND a.created_at >= $5 AND a.created_at < $6))"
)
CARRIED = (
    f"SELECT {_FIELDS}, u.carried, u.carried_class FROM unnest(CAST($1 AS smallint[]),"
    " CAST($2 AS text[]), CAST($3 AS text[]), CAST($4 AS text[]))"
    " AS u(slot, id, carried, carried_class)"
    f" JOIN attempts AS a ON a.slot = u.slot AND a.attempt_id = u.id{_ORIGINAL}"
)
NAMED = (
    "SELECT a.attempt_id, a.channel, a.clearing_date, a.created_at, EXISTS ("
    " SELECT 1 FROM reconciliation_breaks AS b WHERE b.attempt_id = a.attempt_id"
    " AND b.channel = a.channel AND b.clearing_date < $3"
    " AND b.state IN ('adjusting', 'adjusted', 'closed') AND b.class IN ('short', 'status'))"
    " FROM unnest(CAST($1 AS smallint[]), CAST($2 AS text[])) AS u(slot, id)"
    " JOIN attempts AS a ON a.slot = u.slot AND a.attempt_id = u.id"
)
_TIMEOUT = "SET LOCAL statement_timeout = '1800s'"


class Window(NamedTuple):
    """A channel's day, in UTC."""

    start: datetime
    end: datetime


def window_of(day: date, policy: ChannelPolicy) -> Window:
    zone = ZoneInfo(policy.time_zone)
    shift = timedelta(minutes=policy.cut_off_minutes)
    edges = (datetime.combine(each, time(), zone) for each in (day, day + timedelta(days=1)))
    start, end = (edge.astimezone(UTC) + shift for edge in edges)
    return Window(start, end)


def day_of(clearing_date: str, created_at: datetime, policy: ChannelPolicy) -> date:
    if clearing_date:
        return date.fromisoformat(clearing_date)
    shifted = created_at - timedelta(minutes=policy.cut_off_minutes)
    return shifted.astimezone(ZoneInfo(policy.time_zone)).date()


async def export(
    engine: AsyncEngine,
    policy: ChannelPolicy,
    day: date,
    carried: Sequence[Break],
    lag_days: int,
    day_file: Path,
    carried_file: Path,
) -> None:
    """Writes the day's attempts, and those that earlier breaks keep in view, as CSV without a head
    (matching.OURS_COLUMNS), all of one snapshot."""
    window, lag = window_of(day, policy), timedelta(days=lag_days)
    keys = [(slot_of_id(row.attempt_id), row) for row in carried if row.attempt_id and row.ours]
    async with transaction(engine) as driver:
        await _one_snapshot(driver, engine.dialect.name)
        await driver.copy_from_query(
            DAY, policy.name, window.start - lag, window.end + lag, day.isoformat(),
            window.start, window.end, output=str(day_file), format="csv",
        )  # fmt: skip
        await driver.copy_from_query(
            CARRIED,
            [slot for slot, _ in keys],
            [row.attempt_id for _, row in keys],
            [row.break_id for _, row in keys],
            [row.break_class for _, row in keys],
            output=str(carried_file), format="csv",
        )  # fmt: skip


async def _one_snapshot(driver: Driver, dialect: str) -> None:
    # CockroachDB's own level is the stronger one. First in its transaction either way.
    if dialect != "cockroachdb":
        await driver.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    await driver.execute(_TIMEOUT)


async def look_up(
    engine: AsyncEngine, references: Sequence[str], policy: ChannelPolicy, day: date
) -> Mapping[str, Elsewhere]:
    """Attempts of any day that lines name; what is no ID of ours is not there."""
    keys = []
    for reference in references:
        try:
            keys.append((slot_of_id(reference), reference))
        except ValueError:
            continue
    if not keys:
        return {}
    async with transaction(engine) as driver:
        rows = await driver.fetch(
            NAMED, [slot for slot, _ in keys], [name for _, name in keys], day.isoformat()
        )
    return {
        attempt_id: Elsewhere(
            attempt_id, channel, day_of(clearing_date, created_at, policy), adjusted
        )
        for attempt_id, channel, clearing_date, created_at, adjusted in rows
    }


async def database_time(engine: AsyncEngine) -> datetime:
    """Whether a day has ended is asked of one clock (pitfall 16)."""
    async with engine.connect() as connection:
        now: datetime = (await connection.execute(text("SELECT now()"))).scalar_one()
        return now
