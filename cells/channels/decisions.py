"""Decisions: why an attempt went to its channel, as routing explained it when it chose."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Column, DateTime, Index, SmallInteger, Table, Text

from cells.fencing.tables import metadata
from cells.ledger.records import RecordType


class Decision(NamedTuple):
    slot: int
    # The attempt that it led to.
    attempt_id: str
    # The charge or payout.
    owner_id: str
    # JSON, as routing wrote it.
    document: str
    created_at: datetime


decisions = Table(
    "decisions",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("attempt_id", Text, primary_key=True),
    Column("owner_id", Text, nullable=False),
    Column("document", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
)
Index("decisions_by_owner", decisions.c.owner_id)

DECISIONS: RecordType[Decision] = RecordType(decisions, Decision)
