"""Table of the payouts noun."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, DateTime, Index, Integer, SmallInteger, Table, Text, text

from cells.fencing.tables import metadata
from cells.ledger.records import RecordType
from cells.payouts.model import Payout

payouts = Table(
    "payouts",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("payout_id", Text, primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("instrument_id", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("attempt_id", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("channel", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("touched_at", DateTime(timezone=True), nullable=False),
)
Index(
    "payouts_held",
    payouts.c.slot,
    payouts.c.touched_at,
    postgresql_where=text("state = 'held'"),
)
# Without the slot (see migration 0003); a user's payouts lie in one slot.
Index("payouts_by_user", payouts.c.user_id, payouts.c.payout_id)

PAYOUTS: RecordType[Payout] = RecordType(
    payouts,
    Payout,
    changes=("state", "reason", "attempt_id", "attempts", "channel", "touched_at"),
)
