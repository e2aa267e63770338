"""Tables of the accounts noun."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, DateTime, SmallInteger, Table, Text

from cells.accounts.model import Merchant, Movement
from cells.fencing.tables import metadata
from cells.ledger.records import RecordType

movements = Table(
    "movements",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("movement_id", Text, primary_key=True),
    Column("account_id", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("direction", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
)

merchants = Table(
    "merchants",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("account_id", Text, primary_key=True),
    Column("merchant_id", Text, nullable=False),
    Column("currency", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
)

MOVEMENTS: RecordType[Movement] = RecordType(movements, Movement)
# Read by other cells, so never locked: a merchant's opening is seen a moment later. He stays open
# for good (MERCHANT_STAYS_OPEN), so each process may remember those that it has seen.
MERCHANTS: RecordType[Merchant] = RecordType(merchants, Merchant, cached_max=100_000)
