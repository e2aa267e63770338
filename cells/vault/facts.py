"""The vault as the desk sees it (cells/channels/instruments.py)."""

from __future__ import annotations

from cells.answers import not_found
from cells.channels.instruments import InstrumentFacts
from cells.channels.model import Instrument
from cells.ledger.model import Reason
from cells.reading import fetch_row
from cells.vault.model import InstrumentState
from cells.vault.store import Vault
from cells.vault.tables import INSTRUMENTS
from router.ids import slot_of_id


class RegisteredInstruments:
    """What users have registered. A removed one is not there."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    async def facts(self, instrument_id: str) -> InstrumentFacts:
        row = await fetch_row(
            self._vault.engine, INSTRUMENTS, slot_of_id(instrument_id), instrument_id
        )
        if row is None or row.state != InstrumentState.ACTIVE:
            raise not_found(Reason.INSTRUMENT_NOT_FOUND, "instrument")
        return InstrumentFacts(
            row.instrument_id,
            row.user_id,
            row.kind,
            row.scheme,
            row.bank,
            row.bin,
            row.country,
        )

    async def reveal(self, instrument_id: str, purpose: str) -> Instrument:
        return await self._vault.reveal(instrument_id, purpose)
