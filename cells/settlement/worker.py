"""The sweep: step 9 of a payment's walk. What payers of a slot paid goes to the merchant's home.

A sweep is a transfer like any other (in one transaction when the merchant is at home here, TCC
otherwise). It needs no idempotency key: it takes what is free, and a repeat finds nothing free.
"""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from sqlalchemy import literal_column, select

from cells.answers import resource_of
from cells.ledger.model import Account
from cells.ledger.tables import ACCOUNTS, accounts
from cells.ledger.worker import Lanes
from cells.reading import ReadEngine, any_slot, fetch
from cells.settings import SettlementSettings
from cells.transfers.coordinator import Coordinator
from cells.transfers.model import Transfer, TransferKind
from cells.transfers.rules import BeginTransfer
from router.errors import Refusal
from router.guard import SlotsHere
from router.ids import Kind, account_id
from router.minting import mint_now

log = structlog.get_logger(__name__)

_BATCH_MAX = 2048


class Settlement:
    def __init__(
        self,
        lanes: Lanes,
        engine: ReadEngine,
        here: SlotsHere,
        coordinator: Coordinator,
        settings: SettlementSettings,
    ) -> None:
        self._lanes = lanes
        self._engine = engine
        self._here = here
        self._coordinator = coordinator
        self._settings = settings

    async def run(self) -> None:
        """Sweeps for ever."""
        while True:
            await asyncio.sleep(self._settings.interval_s)
            try:
                swept = await self.sweep()
            except Exception as error:
                log.warning("settlement is held up", error=type(error).__name__)
            else:
                if swept:
                    log.info("collection accounts swept", accounts=swept)

    async def sweep(self) -> int:
        """One sweep of this cell's slots; returns how many accounts were swept."""
        owned = self._here.owned()
        statement = (
            select(*(accounts.c[name] for name in ACCOUNTS.fields))
            .where(
                accounts.c.slot == any_slot(owned),
                literal_column("purpose = 'collection'"),
                accounts.c.balance > accounts.c.held + accounts.c.reserved,
            )
            .limit(_BATCH_MAX)
        )
        found = [Account(*row) for row in await fetch(self._engine, statement)]
        limit = asyncio.Semaphore(self._settings.sweep_concurrency_max)
        swept = 0

        async def settle(account: Account) -> None:
            nonlocal swept
            async with limit:
                swept += await self._settle(account)

        async with asyncio.TaskGroup() as group:
            for account in found:
                group.create_task(settle(account))
        return swept

    async def _settle(self, account: Account) -> int:
        """1 when the account's money is on its way."""
        slot = account.slot
        command = BeginTransfer(
            slot, mint_now(Kind.TRANSFER, slot), mint_now(Kind.EVENT, slot),
            TransferKind.SETTLEMENT,
            account.user_id, account.user_id, account.account_id,
            account_id(account.user_id, account.currency), None, account.currency, "",
            None,
        )  # fmt: skip
        try:
            transfer: Transfer = resource_of(await self._lanes.submit(command))
            await self._coordinator.drive(transfer)
        except Refusal as refusal:
            log.info("not settled", account=account.account_id, reason=refusal.reason)
            return 0
        except Exception as error:
            log.warning("not settled", account=account.account_id, error=_name(error))
            return 0
        return 1


def _name(error: BaseException) -> Any:
    return type(error).__name__
