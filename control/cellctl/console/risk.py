"""What risk decided, read from the database: of a user, and of an order in its life.

Reads only, as `life` does: support asks for it just when a user's home cell does not answer. What
was let through leaves no decision behind; devices and addresses of people stay with the reviews.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_DECISIONS_MAX = 100
_SHOWN = (
    "decision_id, user_id, operation, action, subject_id, payee_id, amount, currency, reasons,"
    " rules, without, created_at"
)
# Newest first: an ID begins with the slot, which is one user's, and then the time.
_OF_USER = text(
    f"SELECT {_SHOWN} FROM risk_decisions WHERE user_id = :user_id"
    f" ORDER BY decision_id DESC LIMIT {_DECISIONS_MAX}"
)
_OF_SUBJECT = text(
    f"SELECT {_SHOWN} FROM risk_decisions"
    " WHERE user_id = :user_id AND slot = :slot AND subject_id = :subject_id"
)
_CASES = text(
    "SELECT case_id, kind, state, user_id, operation, subject_id, payee_id, amount, currency,"
    " reasons, rules, decision_id, tries, decided_by, note, expires_at, created_at, touched_at"
    " FROM risk_cases WHERE slot = :slot AND subject_id = :subject_id AND user_id = :user_id"
)
Row = Mapping[str, Any]


async def decisions_of(engine: AsyncEngine, user_id: str) -> list[dict[str, Any]]:
    """Challenges, reviews and denials of a user, newest first."""
    async with engine.connect() as connection:
        rows = (await connection.execute(_OF_USER, {"user_id": user_id})).mappings()
        return [
            {
                name: value.isoformat() if name == "created_at" else value
                for name, value in row.items()
            }
            for row in rows
        ]


async def rows_of_subject(
    connection: AsyncConnection, slot: int, user_id: str, subject_id: str
) -> tuple[list[Row], list[Row]]:
    """The decisions on a request for an order, and its cases."""
    given = {"slot": slot, "user_id": user_id, "subject_id": subject_id}
    decisions = (await connection.execute(_OF_SUBJECT, given)).mappings().all()
    cases = (await connection.execute(_CASES, given)).mappings().all()
    return [dict(row) for row in decisions], [dict(row) for row in cases]
