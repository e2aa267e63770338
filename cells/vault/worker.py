"""Rotation in the background: step by step, each a fenced commit, so that it can end anywhere.

    a key is due ─▶ a new one is primary, it is old ─▶ its rows are sealed anew ─▶ no row uses it:
    it is retired and its material destroyed

Where it is stands in the database: whoever owns the slot goes on from there, after a crash or a
failover. Until the last step the old key opens what it sealed, so nothing is unreadable meanwhile.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta

import structlog
from sqlalchemy import func, or_, select

from cells.answers import resource_of
from cells.database import commit, transaction
from cells.fencing.store import fence
from cells.ledger.model import Refused
from cells.ledger.worker import Lanes
from cells.reading import any_slot, fetch
from cells.risk.cases.factors import resealing
from cells.risk.cases.model import Factor
from cells.risk.cases.tables import FACTORS, risk_factors
from cells.settings import VaultSettings
from cells.vault.kms import KmsFault
from cells.vault.model import (
    Details,
    InstrumentKind,
    InstrumentState,
    KeyPurpose,
    KeyState,
    SealedField,
    SlotKey,
    StoredInstrument,
)
from cells.vault.rules import ResealInstrument, RetireKey, is_due
from cells.vault.sealing import DataKey, SealBroken, lookup_id, resealed, unseal
from cells.vault.store import Vault
from cells.vault.tables import INSTRUMENTS, KEYS, instruments, vault_keys
from router.errors import Refusal
from router.guard import SlotsHere
from router.policies.model import Keys

log = structlog.get_logger(__name__)

_FACTOR_KEYS = ("secret_key", "pending_key")
# Hashes that lead nowhere any more: of removed instruments, and under keys before.
_SWEEP_LOOKUPS = "DELETE FROM vault_lookups WHERE slot = $1 AND instrument_id = ''"


class Rotation:
    def __init__(
        self,
        lanes: Lanes,
        here: SlotsHere,
        vault: Vault,
        settings: VaultSettings,
        policies: Callable[[], Sequence[Keys]],
    ) -> None:
        """`policies`: what operators say of keys now."""
        self._lanes = lanes
        self._engine = vault.engine
        self._here = here
        self._keyring = vault.keyring
        self._kms = vault.kms
        self._settings = settings
        self._policies = policies

    async def run(self) -> None:
        """Looks after the keys of this cell's slots for ever."""
        while True:
            # The first pause spreads cells that start together.
            await asyncio.sleep(random.uniform(0.5, 1.0) * self._settings.look_interval_s)
            try:
                await self.look(self._here.owned())
            except Exception as error:
                log.warning("the rotation of keys is held up", error=type(error).__name__)

    async def look(self, slots: Collection[int]) -> int:
        """Takes every key of these slots as far as it goes; returns how many were retired."""
        statement = select(*(vault_keys.c[name] for name in KEYS.fields), func.now()).where(
            vault_keys.c.slot == any_slot(slots), vault_keys.c.state != KeyState.RETIRED
        )
        rows = await fetch(self._engine, statement)
        by_slot: dict[int, list[SlotKey]] = {}
        for row in rows:
            by_slot.setdefault(row[0], []).append(SlotKey(*row[:-1]))
        retired = 0
        # In any order: a slot whose turn ends badly each time must not hold up those behind it.
        turns = list(by_slot.items())
        random.shuffle(turns)
        for slot, keys in turns:
            try:
                retired += await self._look_at(slot, keys, rows[0][-1])
            except (Refusal, KmsFault, SealBroken) as error:
                # One slot's trouble, or its move to another cell, is not the others'.
                log.warning("the keys of a slot are held up", slot=slot, error=str(error))
        return retired

    async def _look_at(self, slot: int, keys: Sequence[SlotKey], now: datetime) -> int:
        current = await self._kms.current_version()
        old = [key for key in keys if key.state == KeyState.OLD]
        for key in keys:
            if key.state == KeyState.PRIMARY and self._is_due(key, now):
                await self._keyring.replace(key)
                old.append(key)
            elif key.kms_version != current:
                await self._keyring.rewrap(key)
        if not old:
            return 0
        self._keyring.forget(slot)
        await self._reseal(slot)
        await self._sweep(slot)
        return sum([await self._retire(key) for key in old])

    def _is_due(self, key: SlotKey, now: datetime) -> bool:
        policies = self._policies() or [Keys()]
        return any(
            is_due(key, now, timedelta(days=policy.period_days), policy.rotate_before)
            for policy in policies
        )

    async def _reseal(self, slot: int) -> None:
        field = await self._keyring.primary(slot, KeyPurpose.FIELD)
        lookup = await self._keyring.primary(slot, KeyPurpose.LOOKUP)
        await self._reseal_factors(slot, field)
        after = ""
        while batch := await self._sealed_before(slot, field, lookup, after):
            commands = []
            for row in batch:
                try:
                    commands.append(await self._resealing(row, field, lookup))
                except SealBroken as error:
                    # It keeps its key, which is therefore never retired.
                    log.error("a seal is broken", error=str(error), audit=True)
            for outcome in await self._lanes.submit_many(commands):
                if isinstance(outcome, Refused | Refusal):
                    # Changed meanwhile: by a request that sealed it anew, or seen at the next look.
                    log.info("not sealed anew", reason=outcome.reason)
            after = batch[-1].instrument_id
            await asyncio.sleep(self._settings.pause_s)

    async def _reseal_factors(self, slot: int, field: DataKey) -> None:
        """Second factors, which the same key seals: one a user, so a slot's are few thousands."""
        old = [risk_factors.c[name].not_in([0, field.version]) for name in _FACTOR_KEYS]
        statement = select(*(risk_factors.c[name] for name in FACTORS.fields)).where(
            risk_factors.c.slot == slot, or_(*old)
        )
        rows = [Factor(*row) for row in await fetch(self._engine, statement)]
        for start in range(0, len(rows), self._settings.batch_size_max):
            commands = []
            for factor in rows[start : start + self._settings.batch_size_max]:
                try:
                    commands.append(await resealing(self._keyring, factor, field))
                except SealBroken as error:
                    log.error("a seal is broken", error=str(error), audit=True)
            for outcome in await self._lanes.submit_many(commands):
                if isinstance(outcome, Refused | Refusal):
                    log.info("not sealed anew", reason=outcome.reason)
            await asyncio.sleep(self._settings.pause_s)

    async def _sealed_before(
        self, slot: int, field: DataKey, lookup: DataKey, after: str
    ) -> list[StoredInstrument]:
        statement = (
            select(*(instruments.c[name] for name in INSTRUMENTS.fields))
            .where(
                instruments.c.slot == slot,
                instruments.c.instrument_id > after,
                instruments.c.state == InstrumentState.ACTIVE,
                or_(
                    instruments.c.field_key != field.version,
                    instruments.c.lookup_key != lookup.version,
                ),
            )
            .order_by(instruments.c.instrument_id)
            .limit(self._settings.batch_size_max)
        )
        return [StoredInstrument(*row) for row in await fetch(self._engine, statement)]

    async def _resealing(
        self, row: StoredInstrument, field: DataKey, lookup: DataKey
    ) -> ResealInstrument:
        before = await self._keyring.at(row.slot, KeyPurpose.FIELD, row.field_key)
        details = Details(
            InstrumentKind(row.kind), row.user_id, unseal(before, row, SealedField.NUMBER),
            row.scheme, row.bank,
        )  # fmt: skip
        after = resealed(before, field, row)._replace(
            lookup_key=lookup.version,
            lookup_id=lookup_id(lookup, details),
            version=row.version + 1,
        )
        return ResealInstrument(after, row.lookup_id)

    async def _sweep(self, slot: int) -> None:
        async with transaction(self._engine.primary) as driver:
            session, held = await fence(driver, self._here.cell, [slot])
            if slot in held.epochs:
                await session.driver.execute(_SWEEP_LOOKUPS, slot)
                await commit(driver)

    async def _retire(self, key: SlotKey) -> int:
        """1 when no row uses the key and it is gone. Whoever could have used it was refused since
        it became old: whatever seals takes primaries only."""
        uses = (
            instruments.c.field_key if key.purpose == KeyPurpose.FIELD else instruments.c.lookup_key
        )
        statement = (
            select(instruments.c.instrument_id)
            .where(instruments.c.slot == key.slot, uses == key.version)
            .limit(1)
        )
        if await fetch(self._engine, statement):
            return 0
        if key.purpose == KeyPurpose.FIELD and await self._seals_factors(key):
            return 0
        resource_of(await self._lanes.submit(RetireKey(key.slot, key.key_id)))
        self._keyring.forget(key.slot)
        log.info("a key was retired", key=key.key_id, audit=True)
        return 1

    async def _seals_factors(self, key: SlotKey) -> bool:
        sealed = [risk_factors.c[name] == key.version for name in _FACTOR_KEYS]
        statement = (
            select(risk_factors.c.factor_id)
            .where(risk_factors.c.slot == key.slot, or_(*sealed))
            .limit(1)
        )
        return bool(await fetch(self._engine, statement))
