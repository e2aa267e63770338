"""The seam to the vault, which alone knows the numbers of cards and accounts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cells.channels.model import Instrument


@dataclass(frozen=True, slots=True)
class InstrumentFacts:
    """What may be known of an instrument outside the vault."""

    instrument_id: str
    user_id: str
    # card or bank_account.
    kind: str
    # Of a card; else empty.
    scheme: str = ""
    # The issuer's or account's bank, as its clearing system codes it; empty when not known.
    bank: str = ""
    # The first digits of a card's number, six or eight; else empty.
    bin: str = ""
    # ISO 3166-1; empty when not known.
    country: str = ""


class Vault(Protocol):
    """Both raise Refusal: NOT_FOUND for good, UNAVAILABLE for now."""

    async def facts(self, instrument_id: str) -> InstrumentFacts: ...

    async def reveal(self, instrument_id: str, purpose: str) -> Instrument:
        """In memory, for one request to a bank; never kept. `purpose`: the attempt, for the log."""
        ...
