"""Both sides of a made-up day where the reconciler looks for them: a table and a bank's file."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from pathlib import Path

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from cells.channels.attempts import attempts
from cells.reconciliation.model import Ours, Theirs
from cells.statements.model import hash_number
from router.ids import slot_of_id

_OPERATIONS = {
    "purchase": "authorise", "refund": "refund", "payout": "payout", "void": "void",
}  # fmt: skip
_NAMES = (
    "reference", "short_reference", "bank_reference", "kind", "amount", "fee", "currency",
    "status", "booked_at", "batch",
)  # fmt: skip


async def write_attempts(
    engine: AsyncEngine, channel: str, rows: Iterable[Ours], clearing_date: str = ""
) -> None:
    values = [
        {
            "slot": slot_of_id(row.attempt_id), "attempt_id": row.attempt_id,
            "owner_id": row.owner_id, "channel": channel, "operation": _OPERATIONS[row.kind],
            "original_id": row.original_id, "short_reference": row.short_reference,
            "amount": abs(row.amount), "currency": row.currency, "state": row.state, "reason": "",
            "code": "", "bank_reference": row.bank_reference, "clearing_date": clearing_date,
            "created_at": row.happened_at, "touched_at": row.happened_at,
        }
        for row in rows
    ]  # fmt: skip
    async with engine.begin() as connection:
        await connection.execute(insert(attempts), values)


def write_statement(path: Path, channel: str, day: date, rows: Sequence[Theirs]) -> None:
    """As a bank would: a head, rows of decimal amounts, totals."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["#statement", f"ST-{day}", channel, day.isoformat()])
    writer.writerow(_NAMES)
    sums: dict[str, Counter[str]] = {}
    for row in rows:
        writer.writerow([
            row.reference, row.short_reference, row.bank_reference, row.kind, _decimal(row.amount),
            _decimal(row.fee), row.currency, row.status, _time(row.happened_at), row.batch,
        ])  # fmt: skip
        of = sums.setdefault(row.currency, Counter())
        of["lines"] += 1
        of["credits"] += max(row.amount, 0)
        of["debits"] += max(-row.amount, 0)
        of["fees"] += row.fee
        of["hash"] += hash_number(row.bank_reference)
    for currency, of in sums.items():
        writer.writerow([
            "#total", currency, of["lines"], _decimal(of["credits"]), _decimal(of["debits"]),
            _decimal(of["fees"]), of["hash"] % 10**12,
        ])  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(out.getvalue(), encoding="utf-8")


def _decimal(amount: int) -> str:
    return f"{'-' if amount < 0 else ''}{abs(amount) // 100}.{abs(amount) % 100:02d}"


def _time(moment: datetime | None) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment else ""
