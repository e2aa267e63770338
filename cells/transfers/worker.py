"""Recovery: whoever owns a slot finishes what was begun there (invariant 5, pitfall 5).

Transfers in doubt whose driver is gone, and refunds that wait for money, are driven again: soon
when a slot has just come here, by age otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import func, literal_column, select

from cells.payments.model import Refund
from cells.payments.refunding import Refunding
from cells.payments.tables import REFUNDS, refunds
from cells.reading import ReadEngine, any_slot, fetch
from cells.settings import TransferSettings
from cells.transfers.coordinator import Coordinator
from cells.transfers.model import IN_DOUBT, Transfer
from cells.transfers.tables import TRANSFERS, transfers
from router.guard import SlotsHere

log = structlog.get_logger(__name__)

_BATCH_MAX = 512


class Recovery:
    def __init__(
        self,
        engine: ReadEngine,
        here: SlotsHere,
        coordinator: Coordinator,
        refunding: Refunding,
        settings: TransferSettings,
    ) -> None:
        self._engine = engine
        self._here = here
        self._coordinator = coordinator
        self._refunding = refunding
        self._settings = settings

    async def run(self) -> None:
        """Looks for orphans for ever."""
        while True:
            await asyncio.sleep(self._settings.recovery_interval_s)
            owned = self._here.owned()
            if not owned:
                continue
            try:
                await self.recover(owned, min_age_s=self._settings.recovery_age_s)
            except Exception as error:
                log.warning("recovery is held up", error=type(error).__name__)

    async def recover(self, slots: Collection[int], *, min_age_s: float) -> tuple[int, int]:
        """Drives what is in doubt in these slots; returns how many were found and are left."""
        found = await self._in_doubt(slots, min_age_s)
        limit = asyncio.Semaphore(self._settings.recovery_concurrency_max)
        left = 0

        async def drive(transfer: Transfer, now: datetime) -> None:
            nonlocal left
            async with limit:
                driven = await self._coordinator.drive(transfer, now=now)
            if driven.state in IN_DOUBT:
                left += 1

        async def fund(refund: Refund) -> None:
            async with limit:
                await self._refunding.advance(refund)

        async with asyncio.TaskGroup() as group:
            for transfer, now in found:
                group.create_task(_logged(drive(transfer, now), transfer.transfer_id))
            for refund in await self._waiting_refunds(slots, min_age_s):
                group.create_task(_logged(fund(refund), refund.refund_id))
        if found:
            log.info("transfers recovered", found=len(found), left=left)
        return len(found), left

    async def _in_doubt(
        self, slots: Collection[int], min_age_s: float
    ) -> list[tuple[Transfer, datetime]]:
        # The states are written out, not bound, so that the partial index is used.
        states = ", ".join(f"'{state}'" for state in IN_DOUBT)
        statement = (
            select(*(transfers.c[name] for name in TRANSFERS.fields), func.now())
            .where(
                transfers.c.slot == any_slot(slots),
                literal_column(f"transfers.state IN ({states})"),
                transfers.c.touched_at <= _ago(min_age_s),
            )
            .limit(_BATCH_MAX)
        )
        rows = await fetch(self._engine, statement)
        return [(Transfer(*row[:-1]), row[-1]) for row in rows]

    async def _waiting_refunds(self, slots: Collection[int], min_age_s: float) -> list[Refund]:
        statement = (
            select(*(refunds.c[name] for name in REFUNDS.fields))
            .where(
                refunds.c.slot == any_slot(slots),
                literal_column("refunds.state = 'pending'"),
                refunds.c.created_at <= _ago(min_age_s),
            )
            .limit(_BATCH_MAX)
        )
        return [Refund(*row) for row in await fetch(self._engine, statement)]


def _ago(seconds: float) -> Any:
    """That long before the database's now."""
    return func.now() - literal_column(f"INTERVAL '{seconds:.3f} seconds'")


async def _logged(work: Any, identifier: str) -> None:
    """One orphan's trouble must not stop the recovery of the others."""
    try:
        await work
    except Exception as error:
        log.warning("an orphan resists", id=identifier, error=str(error))
