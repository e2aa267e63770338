"""The vault: registers, removes and reveals instruments.

`reveal` is for the moment before a request to a bank; whoever calls it says what for, and a line of
the log keeps that. `facts` is all that choosing a channel may know.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
import structlog
from sqlalchemy import select

from cells.answers import not_found, resource_of
from cells.channels.model import BankAccount, Card, Instrument
from cells.ledger.model import Accepted, Idempotency, Reason, Refused
from cells.ledger.worker import Lanes
from cells.reading import ReadEngine, fetch, fetch_row
from cells.vault.keyring import NO_TIME, Keyring
from cells.vault.kms import Kms
from cells.vault.model import (
    Details,
    Facts,
    InstrumentKind,
    InstrumentState,
    KeyPurpose,
    Lookup,
    SealedField,
    StoredInstrument,
)
from cells.vault.numbers import BIN_DIGITS
from cells.vault.rules import RegisterInstrument, RemoveInstrument
from cells.vault.sealing import SealBroken, lookup_id, sealed_as, unseal
from cells.vault.tables import INSTRUMENTS, LOOKUPS, vault_lookups
from router.errors import Refusal
from router.ids import Kind, slot_of_id
from router.minting import mint_now
from router.slots import slot_of_user

log = structlog.get_logger(__name__)

# A key that was replaced or an instrument that was changed in between makes one more try.
_TRIES_MAX = 5
_AGAIN = (Reason.KEY_REPLACED, Reason.INSTRUMENT_CHANGED)


class Vault:
    def __init__(self, lanes: Lanes, engine: ReadEngine, kms: Kms) -> None:
        self._lanes = lanes
        self.engine = engine
        self.kms = kms
        self.keyring = Keyring(lanes, engine, kms)

    async def register(
        self, details: Details, idempotency: Idempotency, timeout_s: float | None = None
    ) -> StoredInstrument:
        """The instrument, sealed and committed; the one that is there, when the number is known."""
        slot = slot_of_user(details.user_id)
        for _ in range(_TRIES_MAX):
            command, hashes = await self._registration(slot, details, idempotency)
            outcome = await self._lanes.submit(command, timeout_s)
            if isinstance(outcome, Refused) and outcome.reason in _AGAIN:
                self.keyring.forget(slot)
                continue
            instrument: StoredInstrument = resource_of(outcome)
            if isinstance(outcome, Accepted) and outcome.replayed:
                _require_same(instrument, hashes)
            return instrument
        raise Refusal(
            grpc.StatusCode.ABORTED,
            Reason.INSTRUMENT_CHANGED,
            "the instrument is being changed by others; nothing was executed",
            retry_after_ms=100,
        )

    async def _registration(
        self, slot: int, details: Details, idempotency: Idempotency
    ) -> tuple[RegisterInstrument, dict[int, str]]:
        """The command, and the number's hashes by the version of their key, the primary's first."""
        field = await self.keyring.primary(slot, KeyPurpose.FIELD)
        keys = await self.keyring.live(slot, KeyPurpose.LOOKUP)
        hashes = {key.version: lookup_id(key, details) for key in keys}
        known = await self._found(slot, tuple(hashes.values()))
        is_card = details.kind == InstrumentKind.CARD
        base = known or _new(slot, details)
        instrument = base._replace(
            scheme=details.scheme, bank=details.bank, country=details.country,
            bin=details.number[:BIN_DIGITS] if is_card else "",
            expires=details.expires, lookup_key=keys[0].version,
            lookup_id=hashes[keys[0].version], version=base.version + 1,
        )  # fmt: skip
        sealed = sealed_as(field, instrument, details)
        return RegisterInstrument(sealed, tuple(hashes.values()), idempotency), hashes

    async def _found(self, slot: int, hashes: Sequence[str]) -> StoredInstrument | None:
        statement = select(*(vault_lookups.c[name] for name in LOOKUPS.fields)).where(
            vault_lookups.c.slot == slot,
            vault_lookups.c.lookup_id.in_(hashes),
            vault_lookups.c.instrument_id != "",
        )
        rows = [Lookup(*row) for row in await fetch(self.engine, statement)]
        if not rows:
            return None
        return await fetch_row(self.engine, INSTRUMENTS, slot, rows[0].instrument_id)

    async def remove(
        self, instrument_id: str, idempotency: Idempotency, timeout_s: float | None = None
    ) -> StoredInstrument:
        command = RemoveInstrument(slot_of_id(instrument_id), instrument_id, idempotency)
        removed: StoredInstrument = resource_of(await self._lanes.submit(command, timeout_s))
        log.info("an instrument was removed", instrument_id=instrument_id, audit=True)
        return removed

    async def facts(self, instrument_id: str) -> Facts:
        """Without opening anything. Raises Refusal when it is not there, or removed."""
        row = await self._active(instrument_id)
        return Facts(InstrumentKind(row.kind), row.scheme, row.bank, row.country, row.bin)

    async def reveal(self, instrument_id: str, purpose: str = "unsaid") -> Instrument:
        """The instrument as a bank needs it. `purpose`: the ID of what it is opened for, which the
        log keeps."""
        row, number, holder = await self._opened(instrument_id)
        log.info(
            "an instrument was revealed",
            instrument_id=instrument_id, user_id=row.user_id, purpose=purpose, audit=True,
        )  # fmt: skip
        if row.kind == InstrumentKind.CARD:
            return Card(number, f"{row.expires[2:4]}{row.expires[5:7]}", row.scheme, holder)
        return BankAccount(number, row.bank, holder)

    async def _opened(self, instrument_id: str) -> tuple[StoredInstrument, str, str]:
        broken: SealBroken | None = None
        # Twice: between reading the row and its key, both may have been replaced.
        for _ in range(2):
            row = await self._active(instrument_id)
            try:
                key = await self.keyring.at(row.slot, KeyPurpose.FIELD, row.field_key)
                number = unseal(key, row, SealedField.NUMBER)
                return row, number, unseal(key, row, SealedField.HOLDER)
            except SealBroken as error:
                broken = error
                self.keyring.forget(row.slot)
        log.error("a seal is broken", instrument_id=instrument_id, error=str(broken), audit=True)
        raise Refusal(
            grpc.StatusCode.DATA_LOSS, "SEAL_BROKEN", "what was sealed does not open"
        ) from None

    async def _active(self, instrument_id: str) -> StoredInstrument:
        row = await fetch_row(self.engine, INSTRUMENTS, slot_of_id(instrument_id), instrument_id)
        if row is None:
            raise not_found(Reason.INSTRUMENT_NOT_FOUND, "instrument")
        if row.state != InstrumentState.ACTIVE:
            resource_of(Refused(Reason.INSTRUMENT_REMOVED, "the instrument was removed"))
        return row


def _new(slot: int, details: Details) -> StoredInstrument:
    now = NO_TIME
    # Of a short account number four digits would be nearly all.
    shown = details.number[-4:] if len(details.number) >= 8 else details.number[-2:]
    return StoredInstrument(
        slot, mint_now(Kind.INSTRUMENT, slot), details.user_id, details.kind,
        InstrumentState.ACTIVE, "", "", "", "", shown, "", "", "", "", "",
        0, 0, "", 0, now, now,
    )  # fmt: skip


def _require_same(instrument: StoredInstrument, hashes: dict[int, str]) -> None:
    """A repeat must say the same number: the request's hash, which is kept, holds a part of it."""
    known = hashes.get(instrument.lookup_key)
    if known is not None and known != instrument.lookup_id:
        resource_of(
            Refused(
                Reason.EXISTS_WITH_DIFFERENT_INPUT,
                "this idempotency key was used before, with other input",
                {"resource": instrument.instrument_id},
            )
        )
