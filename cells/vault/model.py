"""Instruments as they are kept, and the keys of a slot. Nothing here holds a number in the clear
but `Details`, which lives as long as the request that brought it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class InstrumentKind(StrEnum):
    CARD = "card"
    BANK_ACCOUNT = "bank_account"


class InstrumentState(StrEnum):
    ACTIVE = "active"
    # What was sealed is gone.
    REMOVED = "removed"


class SealedField(StrEnum):
    """What is sealed, each by itself and bound to its place."""

    NUMBER = "number"
    HOLDER = "holder"
    PHONE = "phone"
    IDENTITY = "identity"


class KeyPurpose(StrEnum):
    # Seals fields.
    FIELD = "field"
    # Makes the keyed hash that finds a card which is known already.
    LOOKUP = "lookup"


class KeyState(StrEnum):
    # Seals what is new.
    PRIMARY = "primary"
    # Opens what it has sealed, and seals nothing more.
    OLD = "old"
    # No row uses it, and its material is destroyed.
    RETIRED = "retired"


class KeyEvent(StrEnum):
    REPLACE = "replace"
    RETIRE = "retire"


# Anything absent is refused.
KEY_TRANSITIONS: Mapping[KeyState, Mapping[KeyEvent, KeyState]] = {
    KeyState.PRIMARY: {KeyEvent.REPLACE: KeyState.OLD},
    KeyState.OLD: {KeyEvent.RETIRE: KeyState.RETIRED},
    KeyState.RETIRED: {},
}


class StoredInstrument(NamedTuple):
    slot: int
    instrument_id: str
    user_id: str
    kind: str
    state: str
    # Of a card.
    scheme: str
    # Of a card its issuer, when known; of an account the bank's code.
    bank: str
    country: str
    # The first six digits of a card; empty once it is removed.
    bin: str
    last_four: str
    # Of a card, YYYY-MM; else empty.
    expires: str
    # Base 64; empty when nothing was said.
    number_sealed: str
    holder_sealed: str
    phone_sealed: str
    identity_sealed: str
    # The versions of the slot's keys that made these four and `lookup_id`; 0 once it is removed.
    field_key: int
    lookup_key: int
    lookup_id: str
    # One higher at each change: who sealed what another has changed since is told so.
    version: int
    created_at: datetime
    touched_at: datetime

    def sealed(self, name: SealedField) -> str:
        value: str = getattr(self, f"{name}_sealed")
        return value


class Lookup(NamedTuple):
    """A keyed hash of a number → the instrument that has it."""

    slot: int
    lookup_id: str
    # Empty when none has it any more; such rows are swept.
    instrument_id: str
    created_at: datetime


class SlotKey(NamedTuple):
    """A data key of a slot, wrapped by the KMS."""

    slot: int
    # `<slot>.<purpose>.<version>`
    key_id: str
    purpose: str
    version: int
    state: str
    # Base 64; empty once it is retired.
    wrapped: str
    # Of the KMS's key that wraps it.
    kms_version: str
    created_at: datetime
    touched_at: datetime


def key_id_of(slot: int, purpose: KeyPurpose, version: int) -> str:
    return f"{slot}.{purpose}.{version}"


@dataclass(frozen=True, slots=True)
class Details:
    """An instrument as its user says it; of a card `bank` is what the table of BINs knows."""

    kind: InstrumentKind
    user_id: str
    number: str = field(repr=False)
    scheme: str = ""
    bank: str = ""
    country: str = ""
    expires: str = ""
    holder: str = field(default="", repr=False)
    phone: str = field(default="", repr=False)
    identity: str = field(default="", repr=False)

    def value(self, name: SealedField) -> str:
        value: str = getattr(self, name)
        return value


@dataclass(frozen=True, slots=True)
class Facts:
    """What may be known of an instrument without opening it, to choose a channel."""

    kind: InstrumentKind
    scheme: str
    bank: str
    # ISO 3166-1; empty when unknown.
    country: str
    # Six digits of a card; else empty.
    bin: str
