"""Tables of the transfers noun."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, DateTime, Index, SmallInteger, Table, Text, text

from cells.fencing.tables import metadata
from cells.ledger.records import RecordType
from cells.transfers.model import Branch, Transfer

transfers = Table(
    "transfers",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("transfer_id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("payer_id", Text, nullable=False),
    Column("payee_id", Text, nullable=False),
    Column("payer_account_id", Text, nullable=False),
    Column("payee_account_id", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("cancel_reason", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("touched_at", DateTime(timezone=True), nullable=False),
)
Index(
    "transfers_in_doubt",
    transfers.c.slot,
    transfers.c.transfer_id,
    postgresql_where=text("state IN ('trying', 'committing', 'cancelling')"),
)

branches = Table(
    "branches",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("branch_id", Text, primary_key=True),
    Column("transfer_id", Text, nullable=False),
    Column("payee_account_id", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
)

TRANSFERS: RecordType[Transfer] = RecordType(
    transfers, Transfer, changes=("state", "cancel_reason", "touched_at")
)
BRANCHES: RecordType[Branch] = RecordType(branches, Branch, changes=("state",))
