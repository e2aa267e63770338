"""The audit: one snapshot, every check, the figures. It writes nothing and locks nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cells.settings import OutboxSettings
from cells.verification import banks, checks, risk, traces
from cells.verification.checks import Check
from cells.verification.model import CurrencyFigures, Figures, Finding, Report, Severity
from cells.verification.traces import KNOWN_METHODS
from router.slotmap import SlotMap

CHECKS = (*checks.CHECKS, *banks.CHECKS, *risk.CHECKS, *traces.CHECKS)

_SAMPLES_MAX = 5
_SAMPLE_CHARACTERS_MAX = 400
# A check of millions of entries takes longer than any statement of a cell.
_STATEMENT_TIMEOUT_S = 600
# The purge may take its "now" a moment after ours: what is about to be purged is left out.
_PURGE_MARGIN = timedelta(minutes=1)
_MAP_CHECK = "slots_match_the_map"
_MAP_AHEAD = "map_is_behind_the_slots"
_NOT_HERE = {
    "invariant 4": "what callers saw is not in the database; the chaos tests keep a record of it",
    "invariant 7": "the audit log is in etcd; here, only that every assignment names an operation",
}


async def audit(
    engine: AsyncEngine,
    slot_map: SlotMap | None = None,
    *,
    samples_max: int = _SAMPLES_MAX,
    outbox_retention_s: float = OutboxSettings().retention_s,
) -> Report:
    """Audits the books of the whole mesh as they are at one moment.

    Missing events are looked for only among what is younger than `outbox_retention_s`: an event is
    never older than what it tells of, and the outbox purges nothing younger than its retention.
    `slot_map` is to be read before the audit begins: the database is fenced before etcd publishes,
    so the map may lag behind the slots (pending) but never run ahead of them (broken).
    """
    async with engine.connect() as plain:
        # CockroachDB's own level is the stronger one, and its dialect knows no REPEATABLE READ.
        crdb = engine.dialect.name == "cockroachdb"
        connection = await plain.execution_options(
            isolation_level="SERIALIZABLE" if crdb else "REPEATABLE READ",
            postgresql_readonly=True,
        )
        await connection.execute(text(f"SET LOCAL statement_timeout = '{_STATEMENT_TIMEOUT_S}s'"))
        now: datetime = (await connection.execute(text("SELECT now()"))).scalar_one()
        arguments = {
            "samples": samples_max,
            "kept_since": now - timedelta(seconds=outbox_retention_s) + _PURGE_MARGIN,
        }
        columns = await _columns(connection)
        ran: list[str] = []
        findings: list[Finding] = []
        skipped: dict[str, str] = {}
        for check in CHECKS:
            missing = _missing(check, columns)
            if missing:
                skipped[check.name] = f"this database has no {missing}"
                continue
            ran.append(check.name)
            findings += await _run(connection, check, arguments)
        if slot_map is None:
            skipped[_MAP_CHECK] = "no slot map was given"
        else:
            ran += [_MAP_CHECK, _MAP_AHEAD]
            findings += await _compare_map(connection, slot_map, samples_max)
        skipped |= await _unknown_methods(connection) | _NOT_HERE
        figures = await _figures(connection, "state" in columns.get("deliveries", ()))
        return Report(now.isoformat(), tuple(ran), tuple(findings), figures, skipped)


async def _columns(connection: AsyncConnection) -> Mapping[str, frozenset[str]]:
    """Optional tables that are there, with their columns."""
    optional = sorted({table for check in CHECKS for table in check.needs})
    rows = await connection.execute(
        text(
            "SELECT CAST(table_name AS text), CAST(column_name AS text)"
            " FROM information_schema.columns WHERE table_schema = current_schema()"
            " AND table_name = ANY(CAST(:tables AS text[]))"
        ),
        {"tables": optional},
    )
    found: dict[str, set[str]] = {}
    for table, column in rows:
        found.setdefault(table, set()).add(column)
    return {table: frozenset(names) for table, names in found.items()}


def _missing(check: Check, columns: Mapping[str, frozenset[str]]) -> str:
    for table, names in check.needs.items():
        if table not in columns:
            return f"table {table}"
        absent = sorted(set(names) - columns[table])
        if absent:
            return f"column {table}.{absent[0]}"
    return ""


async def _run(
    connection: AsyncConnection, check: Check, arguments: Mapping[str, Any]
) -> list[Finding]:
    rows = await connection.execute(
        text(
            f"SELECT v.*, count(*) OVER () AS rows_found FROM ({check.sql}) AS v"
            " ORDER BY 1 LIMIT CAST(:samples AS bigint)"
        ),
        arguments,
    )
    found = [dict(row) for row in rows.mappings()]
    return _finding(
        check.name,
        check.invariant,
        check.severity,
        int(found[0]["rows_found"]) if found else 0,
        (check.sentence.format_map(row) for row in found),
    )


def _finding(
    name: str, invariant: int, severity: Severity, total: int, sentences: Iterable[str]
) -> list[Finding]:
    if not total:
        return []
    samples = tuple(sentence[:_SAMPLE_CHARACTERS_MAX] for sentence in sentences)
    return [Finding(name, invariant, severity, total, samples)]


async def _compare_map(
    connection: AsyncConnection, slot_map: SlotMap, samples_max: int
) -> list[Finding]:
    rows = await connection.execute(text("SELECT slot, owner, epoch FROM slots ORDER BY slot"))
    wrong: list[str] = []
    behind: list[str] = []
    for slot, owner, epoch in rows:
        entry = slot_map.at(slot)
        if (owner, epoch) == (entry.cell, entry.epoch):
            continue
        sentence = (
            f"slot {slot} is {owner}'s at epoch {epoch} in the database,"
            f" {entry.cell}'s at epoch {entry.epoch} in the map"
        )
        (behind if epoch > entry.epoch else wrong).append(sentence)
    return [
        *_finding(_MAP_CHECK, 3, Severity.BROKEN, len(wrong), wrong[:samples_max]),
        *_finding(_MAP_AHEAD, 3, Severity.PENDING, len(behind), behind[:samples_max]),
    ]


async def _unknown_methods(connection: AsyncConnection) -> dict[str, str]:
    """Idempotency records of methods that no check knows are named, not passed over in silence."""
    rows = await connection.execute(
        text(
            f"SELECT method, count(*) FROM idempotency WHERE method NOT IN ({KNOWN_METHODS})"
            " GROUP BY method ORDER BY method"
        )
    )
    return {
        f"idempotency records of {method}": f"{count} name something that no check looks up"
        for method, count in rows
    }


_MONEY = """SELECT currency, sum(users), sum(collection), sum(clearing), sum(banks),
    sum(external_), sum(held), sum(deposits), sum(withdrawals) FROM (
    SELECT currency,
        CASE purpose WHEN 'balance' THEN balance ELSE 0 END AS users,
        CASE purpose WHEN 'collection' THEN balance ELSE 0 END AS collection,
        CASE purpose WHEN 'clearing' THEN balance ELSE 0 END AS clearing,
        CASE WHEN purpose IN ('channel', 'fees', 'suspense') THEN balance ELSE 0 END AS banks,
        CASE purpose WHEN 'external' THEN balance ELSE 0 END AS external_,
        held, 0 AS deposits, 0 AS withdrawals FROM accounts
    UNION ALL SELECT currency, 0, 0, 0, 0, 0, 0,
        CASE direction WHEN 'in' THEN amount ELSE 0 END,
        CASE direction WHEN 'in' THEN 0 ELSE amount END FROM movements
) AS m GROUP BY currency ORDER BY currency"""


async def _figures(connection: AsyncConnection, deliveries: bool) -> Figures:
    money = await connection.execute(text(_MONEY))

    async def counts(table: str, key: str = "state") -> dict[str, int]:
        rows = await connection.execute(
            text(f"SELECT {key} AS k, count(*) FROM {table} GROUP BY {key} ORDER BY {key}")
        )
        return {str(name): int(count) for name, count in rows}

    async def count(source: str, what: str = "count(*)") -> int:
        rows = await connection.execute(text(f"SELECT {what} FROM {source}"))
        return int(rows.scalar_one())

    transfers = await counts("transfers")
    ended = {"confirmed", "cancelled"}
    return Figures(
        money=tuple(
            CurrencyFigures(currency, *(int(value) for value in sums)) for currency, *sums in money
        ),
        accounts=await counts("accounts", "purpose || '/' || state"),
        entries=await count("entries"),
        orders=await counts("orders"),
        payments=await count("payments"),
        refunds=await counts("refunds"),
        movements=await counts("movements", "direction"),
        transfers=transfers,
        branches=await counts("branches"),
        charges=await counts("charges"),
        charge_refunds=await counts("charge_refunds"),
        payouts=await counts("payouts"),
        attempts_open=await count(f"attempts WHERE state IN ({banks.OPEN})"),
        in_doubt=sum(total for state, total in transfers.items() if state not in ended),
        idempotency_records=await count("idempotency"),
        outbox=await count("outbox", "COALESCE(sum(events), 0)"),
        outbox_unsent=await count("outbox WHERE NOT sent", "COALESCE(sum(events), 0)"),
        deliveries=await counts("deliveries") if deliveries else None,
    )
