"""The data keys of slots: found in the database, unwrapped by the KMS, kept for as long as they
are used. A slot's keys live with its rows, so whoever owns the slot next has them.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from datetime import UTC, datetime
from typing import cast

import grpc
import structlog
from sqlalchemy import select

from cells.answers import resource_of
from cells.ledger.worker import Lanes
from cells.reading import ReadEngine, fetch
from cells.vault.kms import Kms, KmsFault, KmsRefused, Wrapped
from cells.vault.model import KeyPurpose, KeyState, SlotKey, key_id_of
from cells.vault.rules import AddKey, RewrapKey
from cells.vault.sealing import DataKey, SealBroken, new_material, open_material
from cells.vault.tables import KEYS, vault_keys
from router.errors import Refusal

log = structlog.get_logger(__name__)

# Two keys for each of 1,024 slots, and as many again while they rotate.
_OPEN_MAX = 4096
# Replaced by the database's when the row is written.
NO_TIME = datetime.fromtimestamp(0, UTC)


def _context(key_id: str) -> bytes:
    return f"cellpay.vault.1/{key_id}".encode()


class Keyring:
    """Raises Refusal UNAVAILABLE when the KMS cannot be asked."""

    def __init__(self, lanes: Lanes, engine: ReadEngine, kms: Kms) -> None:
        self._lanes = lanes
        self._engine = engine
        self._kms = kms
        # Of slots that were asked for; a row's state may be old, which the rules find out.
        self._rows: dict[int, list[SlotKey]] = {}
        # A key never changes, only how it is wrapped.
        self._open: OrderedDict[str, DataKey] = OrderedDict()

    def forget(self, slot: int) -> None:
        """The slot's keys have changed: they are read anew."""
        self._rows.pop(slot, None)

    async def primary(self, slot: int, purpose: KeyPurpose) -> DataKey:
        """What seals; made when the slot has none yet."""
        row = _primary_of(await self._known(slot), purpose)
        if row is None:
            row = await self._add(slot, purpose, 1)
        return await self._opened(row)

    async def live(self, slot: int, purpose: KeyPurpose) -> list[DataKey]:
        """All that may have made what is there, the primary first."""
        primary = await self.primary(slot, purpose)
        old = [
            row
            for row in await self._known(slot)
            if row.purpose == purpose and row.state == KeyState.OLD
        ]
        return [primary, *[await self._opened(row) for row in old]]

    async def at(self, slot: int, purpose: KeyPurpose, version: int) -> DataKey:
        """A key that opens what it has sealed. Raises SealBroken when it is no more."""
        key_id = key_id_of(slot, purpose, version)
        if key_id in self._open:
            self._open.move_to_end(key_id)
            return self._open[key_id]
        for again in (False, True):
            if again:
                self.forget(slot)
            for row in await self._known(slot):
                if row.key_id == key_id and row.state != KeyState.RETIRED:
                    return await self._opened(row)
        raise SealBroken(f"key {key_id} is no more")

    async def replace(self, row: SlotKey) -> SlotKey:
        """A new primary in place of this one; another's, when somebody was faster."""
        return await self._add(row.slot, KeyPurpose(row.purpose), row.version + 1)

    async def rewrap(self, row: SlotKey) -> None:
        """Wraps the same key by the KMS's current one."""
        purpose = KeyPurpose(row.purpose)
        material = await self._unwrap(row)
        open_material(purpose, row.version, material)
        wrapped = await self._wrap(material, row.key_id)
        command = RewrapKey(row.slot, row.key_id, row.wrapped, _text(wrapped), wrapped.version)
        resource_of(await self._lanes.submit(command))
        self.forget(row.slot)

    async def _add(self, slot: int, purpose: KeyPurpose, version: int) -> SlotKey:
        key_id = key_id_of(slot, purpose, version)
        wrapped = await self._wrap(new_material(purpose), key_id)
        row = SlotKey(
            slot, key_id, purpose, version, KeyState.PRIMARY, _text(wrapped), wrapped.version,
            NO_TIME, NO_TIME,
        )  # fmt: skip
        added = cast(SlotKey, resource_of(await self._lanes.submit(AddKey(row))))
        self.forget(slot)
        log.info("a key was added", key=added.key_id, kms_version=added.kms_version)
        return added

    async def _known(self, slot: int) -> list[SlotKey]:
        if slot not in self._rows:
            self._rows[slot] = await keys_of(self._engine, slot)
        return self._rows[slot]

    async def _opened(self, row: SlotKey) -> DataKey:
        known = self._open.get(row.key_id)
        if known is None:
            material = await self._unwrap(row)
            known = open_material(KeyPurpose(row.purpose), row.version, material)
            self._open[row.key_id] = known
            if len(self._open) > _OPEN_MAX:
                self._open.popitem(last=False)
        return known

    async def _unwrap(self, row: SlotKey) -> bytes:
        try:
            wrapped = Wrapped(row.kms_version, base64.b64decode(row.wrapped))
            return await self._kms.unwrap(wrapped, _context(row.key_id))
        except KmsRefused:
            raise SealBroken(f"key {row.key_id} does not unwrap") from None
        except KmsFault as fault:
            raise _unavailable(fault) from None

    async def _wrap(self, material: bytes, key_id: str) -> Wrapped:
        try:
            return await self._kms.wrap(material, _context(key_id))
        except KmsFault as fault:
            raise _unavailable(fault) from None


async def keys_of(engine: ReadEngine, slot: int) -> list[SlotKey]:
    statement = select(*(vault_keys.c[name] for name in KEYS.fields)).where(
        vault_keys.c.slot == slot
    )
    return [SlotKey(*row) for row in await fetch(engine, statement)]


def _primary_of(rows: list[SlotKey], purpose: KeyPurpose) -> SlotKey | None:
    found = (row for row in rows if row.purpose == purpose and row.state == KeyState.PRIMARY)
    return next(found, None)


def _text(wrapped: Wrapped) -> str:
    return base64.b64encode(wrapped.data).decode("ascii")


def _unavailable(fault: KmsFault) -> Refusal:
    # What the KMS says is for the log: a caller learns nothing of where keys lie.
    log.error("the KMS does not answer", error=str(fault))
    return Refusal(
        grpc.StatusCode.UNAVAILABLE,
        "KMS_UNAVAILABLE",
        "the vault cannot reach its keys; nothing was executed",
        retry_after_ms=1000,
    )
