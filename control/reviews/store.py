"""Reviews of all slots, read by SQL: the table is cells/risk/cases'."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine


class Review(NamedTuple):
    review_id: str
    user_id: str
    # What has run out is expired, though nobody wrote it down.
    state: str
    operation: str
    subject_id: str
    payee_id: str
    amount: int
    currency: str
    reasons: str
    rules: str
    facts: str
    decided_by: str
    note: str
    created_at: datetime
    expires_at: datetime


_STATE = (
    "CASE WHEN state IN ('open', 'passed') AND expires_at <= now() THEN 'expired' ELSE state END"
)
_FIELDS = ", ".join(
    {"review_id": "case_id", "state": _STATE}.get(name, name) for name in Review._fields
)
_LIST = text(
    f"SELECT {_FIELDS} FROM risk_cases WHERE kind = 'review'"
    " AND (:user_id = '' OR user_id = :user_id)"
    " AND (:decided OR (state = 'open' AND expires_at > now()))"
    " AND (created_at, case_id) > (CAST(:after_time AS timestamptz), :after_id)"
    " ORDER BY created_at, case_id LIMIT :most"
)
_FIND = text(f"SELECT {_FIELDS} FROM risk_cases WHERE slot = :slot AND case_id = :review_id")


class ReviewStore:
    """Raises what the database raises."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def list(
        self, user_id: str, after: tuple[datetime, str], most: int, *, decided: bool
    ) -> Sequence[Review]:
        """Oldest first. `decided`: those that do not wait any more too."""
        given = {
            "user_id": user_id, "decided": decided, "after_time": after[0], "after_id": after[1],
            "most": most,
        }  # fmt: skip
        async with self._engine.connect() as connection:
            return [Review(*row) for row in await connection.execute(_LIST, given)]

    async def find(self, slot: int, review_id: str) -> Review | None:
        given = {"slot": slot, "review_id": review_id}
        async with self._engine.connect() as connection:
            row = (await connection.execute(_FIND, given)).first()
        return Review(*row) if row else None

    async def close(self) -> None:
        await self._engine.dispose()
