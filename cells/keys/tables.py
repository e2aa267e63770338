"""Tables of merchants' keys."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, DateTime, Index, SmallInteger, Table, Text

from cells.fencing.tables import metadata
from cells.keys.model import MerchantKey
from cells.ledger.records import RecordType

merchant_keys = Table(
    "merchant_keys",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("key_id", Text, primary_key=True),
    Column("merchant_id", Text, nullable=False),
    Column("algorithm", Text, nullable=False),
    Column("public", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("not_before", BigInteger, nullable=False),
    Column("not_after", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("touched_at", DateTime(timezone=True), nullable=False),
)
Index("merchant_keys_by_merchant", merchant_keys.c.merchant_id, merchant_keys.c.key_id)

MERCHANT_KEYS: RecordType[MerchantKey] = RecordType(
    merchant_keys,
    MerchantKey,
    changes=("state", "not_after", "reason", "version", "touched_at"),
)
