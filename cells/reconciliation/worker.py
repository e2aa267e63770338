"""The reconciler's loop: which days are due, which run is next, what waits to be posted."""

from __future__ import annotations

import asyncio
from datetime import date, datetime, timedelta

import structlog

from cells.database import is_away, is_contention
from cells.reconciliation.attempts import database_time, day_of
from cells.reconciliation.model import Run, RunState
from cells.reconciliation.run import Reconciler
from cells.reconciliation.settings import ChannelPolicy, ReconciliationSettings
from cells.reconciliation.store import RunConflict, RunStore

log = structlog.get_logger(__name__)


def due_days(policy: ChannelPolicy, known: list[str], now: datetime, days_back: int) -> list[date]:
    """Days that have ended (and their grace) and have no run. Without any run yet, the last one
    only: what was before Cellpay reconciled was agreed otherwise."""
    last = day_of("", now - timedelta(minutes=policy.grace_minutes), policy) - timedelta(days=1)
    if not known:
        return [last]
    first = max(date.fromisoformat(max(known)) + timedelta(days=1), last - timedelta(days_back))
    return [first + timedelta(days=number) for number in range((last - first).days + 1)]


def next_run(runs: list[Run]) -> Run | None:
    """The oldest that is not done, unless it waits for a person: a day's carry-over needs the day
    before (`runs` are of one channel, in the order of their days)."""
    pending = next((run for run in runs if run.state != RunState.DONE), None)
    return None if pending is None or pending.state == RunState.QUARANTINED else pending


class Worker:
    def __init__(
        self, settings: ReconciliationSettings, store: RunStore, reconciler: Reconciler
    ) -> None:
        self._settings = settings
        self._store = store
        self._reconciler = reconciler

    async def run(self) -> None:
        """For ever."""
        while True:
            await self.look()
            await asyncio.sleep(self._settings.poll_interval_s)

    async def look(self) -> None:
        """Takes each channel as far as it goes now."""
        for policy in self._settings.channels:
            try:
                await self._look_at(policy)
            except RunConflict as conflict:
                log.info("another was first", why=str(conflict))
            except Exception as error:
                if not (is_away(error) or is_contention(error)):
                    raise
                log.warning("waiting for the database", error=type(error).__name__)

    async def _look_at(self, policy: ChannelPolicy) -> None:
        known = await self._store.runs(policy.name)
        now = await database_time(self._store.engine)
        days = [run.clearing_date for run in known]
        for day in due_days(policy, days, now, self._settings.days_back):
            await self._store.begin(policy.name, day.isoformat(), self._settings.name)
        while run := next_run(await self._store.runs(policy.name)):
            if (await self._reconciler.step(run)).version == run.version:
                break
        await self._post_what_people_approved(policy)

    async def _post_what_people_approved(self, policy: ChannelPolicy) -> None:
        waiting = await self._store.to_post(policy.name)
        if not waiting:
            return
        await self._reconciler.post(policy.name)
        for day in sorted({row.clearing_date for row in waiting}):
            run = await self._store.run(policy.name, day)
            if run is not None and run.state == RunState.DONE:
                await self._reconciler.report(run)
