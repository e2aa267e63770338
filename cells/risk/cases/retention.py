"""Forgets decisions and ended cases that are old: who was refused what, when, is personal data.

A case goes when it can pass nothing any more; a decision when it is old and no case names it. What
else risk remembers ends by itself: nonces by their time in Redis, records by the stream's age,
features by their windows. Factors stay: they are the user's.
"""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from cells.database import changed_rows, commit, transaction
from cells.fencing.store import fence
from router.guard import SlotsHere

log = structlog.get_logger(__name__)

_INTERVAL_S = 600.0
# Rows of one commit, and the pause after it: forgetting waits for payments.
_BATCH_MAX = 200
_PAUSE_S = 0.02

# The conditions stand twice: a case that was asked for again between the two reads stays.
_IS_OLD = (
    "touched_at < CAST($2 AS timestamptz) AND expires_at < CAST($2 AS timestamptz)"
    " AND slot = CAST($1 AS smallint)"
)
_CASES = (
    f"DELETE FROM risk_cases WHERE {_IS_OLD} AND case_id IN ("
    f"SELECT case_id FROM risk_cases WHERE {_IS_OLD} ORDER BY case_id LIMIT $3)"
)
_DECISIONS = (
    "DELETE FROM risk_decisions WHERE slot = CAST($1 AS smallint) AND decision_id IN ("
    "SELECT d.decision_id FROM risk_decisions AS d"
    " WHERE d.slot = CAST($1 AS smallint) AND d.created_at < CAST($2 AS timestamptz)"
    " AND NOT EXISTS (SELECT 1 FROM risk_cases AS c"
    " WHERE c.slot = d.slot AND c.decision_id = d.decision_id)"
    " ORDER BY d.decision_id LIMIT $3)"
)


class Retention:
    def __init__(
        self,
        engine: AsyncEngine,
        here: SlotsHere,
        retention_s: float,
        *,
        batch_max: int = _BATCH_MAX,
    ) -> None:
        """`retention_s`: 0 keeps everything."""
        self._engine = engine
        self._here = here
        self._retention_s = retention_s
        self._batch_max = batch_max

    async def run(self) -> None:
        """For ever; in one process of a cell."""
        while True:
            # The first pause spreads cells that start together.
            await asyncio.sleep(random.uniform(0.5, 1.0) * _INTERVAL_S)
            try:
                forgotten = await self.forget()
            except Exception as error:
                log.warning("risk forgets nothing for now", error=type(error).__name__)
                continue
            if forgotten:
                log.info("old cases and decisions forgotten", rows=forgotten)

    async def forget(self) -> int:
        """Deletes what is old, of every slot that is here; returns how many rows."""
        if self._retention_s <= 0:
            return 0
        forgotten = 0
        for slot in sorted(self._here.owned()):
            # Cases first: what they named may go then.
            for statement in (_CASES, _DECISIONS):
                while True:
                    deleted = await self._delete(statement, slot)
                    forgotten += deleted
                    if deleted < self._batch_max:
                        break
                    await asyncio.sleep(_PAUSE_S)
            await asyncio.sleep(_PAUSE_S)
        return forgotten

    async def _delete(self, statement: str, slot: int) -> int:
        async with transaction(self._engine) as driver:
            session, held = await fence(driver, self._here.cell, [slot])
            if slot not in held.epochs:
                return 0
            before = held.now - timedelta(seconds=self._retention_s)
            done = await session.driver.execute(statement, slot, before, self._batch_max)
            deleted = changed_rows(done)
            if deleted:
                await commit(driver)
        return deleted
