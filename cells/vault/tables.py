"""Tables of the vault. Text columns hold base 64, for columns travel as joined strings."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, DateTime, Index, SmallInteger, Table, Text

from cells.fencing.tables import metadata
from cells.ledger.records import RecordType
from cells.vault.model import Lookup, SlotKey, StoredInstrument

_TEXTS = (
    "user_id", "kind", "state", "scheme", "bank", "country", "bin", "last_four", "expires",
    "number_sealed", "holder_sealed", "phone_sealed", "identity_sealed",
)  # fmt: skip

instruments = Table(
    "instruments",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("instrument_id", Text, primary_key=True),
    *(Column(name, Text, nullable=False) for name in _TEXTS),
    Column("field_key", BigInteger, nullable=False),
    Column("lookup_key", BigInteger, nullable=False),
    Column("lookup_id", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("touched_at", DateTime(timezone=True), nullable=False),
)
# Without the slot (see migration 0003).
Index("instruments_by_user", instruments.c.user_id, instruments.c.instrument_id)

vault_lookups = Table(
    "vault_lookups",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("lookup_id", Text, primary_key=True),
    Column("instrument_id", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
)

vault_keys = Table(
    "vault_keys",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("key_id", Text, primary_key=True),
    Column("purpose", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("wrapped", Text, nullable=False),
    Column("kms_version", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("touched_at", DateTime(timezone=True), nullable=False),
)

INSTRUMENTS: RecordType[StoredInstrument] = RecordType(
    instruments,
    StoredInstrument,
    changes=(
        "state", "scheme", "bank", "country", "bin", "expires", "number_sealed", "holder_sealed",
        "phone_sealed", "identity_sealed", "field_key", "lookup_key", "lookup_id", "version",
        "touched_at",
    ),
)  # fmt: skip
LOOKUPS: RecordType[Lookup] = RecordType(vault_lookups, Lookup, changes=("instrument_id",))
KEYS: RecordType[SlotKey] = RecordType(
    vault_keys, SlotKey, changes=("state", "wrapped", "kms_version", "touched_at")
)
