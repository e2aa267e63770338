"""Table of the adjustments noun."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, DateTime, SmallInteger, Table, Text

from cells.adjustments.model import Adjustment
from cells.fencing.tables import metadata
from cells.ledger.records import RecordType

adjustments = Table(
    "adjustments",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("adjustment_id", Text, primary_key=True),
    Column("break_id", Text, nullable=False),
    Column("channel", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("subject_id", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("approved_by", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
)

ADJUSTMENTS: RecordType[Adjustment] = RecordType(adjustments, Adjustment)
