"""`slots`: who owns which slot at which epoch, as the database enforces it."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    MetaData,
    SmallInteger,
    Table,
    Text,
    func,
)

metadata = MetaData()

slots = Table(
    "slots",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("owner", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
)

slot_history = Table(
    "slot_history",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("owner", Text, nullable=False),
    Column("operation_id", Text, nullable=False),
    Column("assigned_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)
