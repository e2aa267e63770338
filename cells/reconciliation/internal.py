"""Our own books against each other, and three ways with the bank.

What the audit already checks is taken from it (cells/verification), not checked twice: balances
against entries, cells' clearing accounts against what is in flight, charges and payouts against
attempts and the channel's accounts. Added here: the outbox against its consumers, and for each
channel what ledger, attempts and statements say that the bank owes us.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cells.reconciliation.report import amount_text
from cells.verification.auditor import audit
from cells.verification.checks import Check
from cells.verification.model import Finding, Severity

# Checks of the audit that are reconciliation's too, when this database's audit has them.
OF_THE_AUDIT = frozenset({
    "balance_is_sum_of_entries", "posting_sums_to_zero", "clearing_is_money_in_flight",
    "mesh_sums_to_zero", "batch_is_unsent", "effect_has_its_event", "event_tells_the_truth",
    "event_is_delivered_once", "delivery_is_dead", "channel_is_what_banks_approved",
    "charge_has_its_posting", "charge_refund_has_its_posting", "payout_has_its_posting",
    "adjustment_has_its_posting", "money_moved_by_an_approval", "attempt_is_disputed",
})  # fmt: skip
# A relay that is slow is no difference yet.
_DELIVERY_GRACE = "interval '10 minutes'"

OUTBOX_AGAINST_CONSUMERS = Check(
    "event_reached_its_consumer",
    6,
    "event {event_id} was told at {created_at}, and no consumer has a delivery of it",
    f"""SELECT e.event_id, e.created_at FROM (
        SELECT right(substring(line, '"id": ?"evt_[0-9A-Z]{{28}}'), 32) AS event_id, line,
            created_at FROM (
            SELECT created_at, unnest(string_to_array(lines, chr(10))) AS line FROM outbox
            WHERE sent AND created_at < now() - {_DELIVERY_GRACE}
        ) AS l
    ) AS e LEFT JOIN deliveries AS d ON d.event_id = e.event_id
    WHERE d.event_id IS NULL AND e.event_id IS NOT NULL
        AND substring(e.line, '"merchant_id": ?""') IS NULL""",
)
ADJUSTMENT_OF_A_BREAK = Check(
    "adjustment_has_its_break",
    7,
    "adjustment {adjustment_id} of {amount} {currency} names break {break_id}, which nobody"
    " adjusted",
    """SELECT a.adjustment_id, a.break_id, a.amount, a.currency FROM adjustments AS a
    LEFT JOIN reconciliation_breaks AS b ON b.channel = a.channel AND b.break_id = a.break_id
        AND b.state IN ('adjusting', 'adjusted') AND abs(b.amount) = a.amount
    WHERE b.break_id IS NULL""",
)
BREAK_WITHOUT_ADJUSTMENT = Check(
    "adjusted_break_has_its_adjustment",
    7,
    "break {break_id} of {amount} {currency} was adjusted by {adjustment_id}, which does not exist",
    """SELECT b.break_id, b.amount, b.currency, b.adjustment_id FROM reconciliation_breaks AS b
    LEFT JOIN adjustments AS a ON a.adjustment_id = b.adjustment_id AND a.break_id = b.break_id
    WHERE b.state = 'adjusted' AND a.adjustment_id IS NULL""",
)
CASE_OF_TWO_PEOPLE = Check(
    "approved_case_has_two_people",
    7,
    "the case of break {break_id} was approved by {checker}, proposed by {maker}",
    """SELECT break_id, maker, checker FROM reconciliation_cases
    WHERE state = 'approved' AND (maker = '' OR checker = '' OR maker = checker
        OR maker_audit_id = '' OR checker_audit_id = '')""",
)
CHECKS = (
    OUTBOX_AGAINST_CONSUMERS, ADJUSTMENT_OF_A_BREAK, BREAK_WITHOUT_ADJUSTMENT, CASE_OF_TWO_PEOPLE,
)  # fmt: skip

_LEDGER = """SELECT user_id, currency, -sum(balance) FROM accounts WHERE purpose = 'channel'
    GROUP BY user_id, currency"""
_ATTEMPTS = """SELECT channel, currency, sum(CASE operation WHEN 'authorise' THEN amount
        WHEN 'capture' THEN amount ELSE -amount END) FROM attempts
    WHERE state = 'approved' AND operation IN ('authorise', 'capture', 'refund', 'payout')
    GROUP BY channel, currency"""
_ADJUSTED = """SELECT channel, currency, sum(amount) FROM reconciliation_breaks
    WHERE state = 'adjusted' GROUP BY channel, currency"""
_UNRESOLVED = """SELECT channel, currency, sum(amount) FROM reconciliation_breaks
    WHERE state IN ('open', 'case', 'adjusting') GROUP BY channel, currency"""
_DISMISSED = """SELECT channel, currency, sum(amount) FROM reconciliation_breaks
    WHERE state = 'closed' GROUP BY channel, currency"""
_RUNS = "SELECT channel, sums FROM reconciliation_runs WHERE state IN ('matched', 'done')"
STATEMENTS = (
    _LEDGER,
    _ATTEMPTS,
    _ADJUSTED,
    _UNRESOLVED,
    _DISMISSED,
    _RUNS,
    *(check.sql for check in CHECKS),
)


@dataclass(frozen=True, slots=True)
class Position:
    """What a bank owes us, in one currency, three ways; minor units."""

    channel: str
    currency: str
    # Of the channel's accounts in all slots.
    ledger: int = 0
    # What it approved, and what reconciliation posted.
    attempts: int = 0
    adjusted: int = 0
    # Of its statements that were reconciled: lines less fees.
    statements: int = 0
    # Breaks that are not decided, or for which nothing is to be posted: once every day has its
    # statement, statements = ledger + unresolved + dismissed.
    unresolved: int = 0
    dismissed: int = 0


async def positions(engine: AsyncEngine) -> list[Position]:
    """All of one snapshot. Days that have no statement yet are in the ledger and not in the
    statements: what the bank owes for them."""
    figures: dict[tuple[str, str], dict[str, Any]] = {}

    def add(channel: str, currency: str, name: str, amount: int) -> None:
        of = figures.setdefault((channel, currency), {})
        of[name] = of.get(name, 0) + amount

    async with _snapshot(engine) as connection:
        for name, sql in (
            ("ledger", _LEDGER), ("attempts", _ATTEMPTS), ("adjusted", _ADJUSTED),
            ("unresolved", _UNRESOLVED),
            ("dismissed", _DISMISSED),
        ):  # fmt: skip
            for channel, currency, amount in await connection.execute(text(sql)):
                add(channel, currency, name, int(amount))
        for channel, sums in await connection.execute(text(_RUNS)):
            for of in json.loads(sums):
                day = of["theirs_amount"] - of["carried_amount"] - of["fees_charged"]
                add(channel, of["currency"], "statements", day)
    return [Position(*key, **figures[key]) for key in sorted(figures)]


def _snapshot(engine: AsyncEngine) -> AsyncConnection:
    level = "SERIALIZABLE" if engine.dialect.name == "cockroachdb" else "REPEATABLE READ"
    return engine.execution_options(isolation_level=level).connect()


async def internal(engine: AsyncEngine, samples_max: int = 5) -> list[Finding]:
    """What is not as it should be between our own books. Writes nothing, locks nothing."""
    report = await audit(engine, samples_max=samples_max)
    findings = [item for item in report.findings if item.check in OF_THE_AUDIT]
    async with _snapshot(engine) as connection:
        for check in CHECKS:
            rows = (await connection.execute(text(check.sql))).mappings().fetchmany(1_000)
            if rows:
                samples = tuple(check.sentence.format_map(row) for row in rows[:samples_max])
                findings.append(
                    Finding(check.name, check.invariant, Severity.BROKEN, len(rows), samples)
                )
    return findings


def lines(findings: Sequence[Finding], found: Iterable[Position]) -> list[str]:
    """For people."""
    broken = sum(item.severity == Severity.BROKEN for item in findings)
    text_lines = [f"internal reconciliation: {broken} broken, {len(findings) - broken} pending"]
    for item in findings:
        text_lines.append(f"{item.severity}: {item.check}: {item.total}")
        text_lines += [f"  {sample}" for sample in item.samples]
    for of in found:
        named = " ".join(
            f"{name} {amount_text(getattr(of, name), of.currency)}"
            for name in ("ledger", "attempts", "adjusted", "statements", "unresolved", "dismissed")
        )
        text_lines.append(f"{of.channel} {of.currency}: {named}")
    return text_lines
