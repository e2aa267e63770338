"""Tables of the charges noun."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, DateTime, Index, Integer, SmallInteger, Table, Text, text

from cells.charges.model import Charge, ChargeRefund
from cells.fencing.tables import metadata
from cells.ledger.records import RecordType

charges = Table(
    "charges",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("charge_id", Text, primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("order_id", Text, nullable=False),
    Column("merchant_id", Text, nullable=False),
    Column("if_order_ended", Text, nullable=False),
    Column("instrument_id", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("refunded", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("attempt_id", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("void_id", Text, nullable=False),
    Column("payment_id", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
)
# Without the slot (see migration 0003); a user's charges lie in one slot.
Index("charges_by_user", charges.c.user_id, charges.c.charge_id)

charge_refunds = Table(
    "charge_refunds",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("refund_id", Text, primary_key=True),
    Column("charge_id", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("cause", Text, nullable=False),
    Column("channel", Text, nullable=False),
    Column("original_id", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("failure", Text, nullable=False),
    Column("attempt_id", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("touched_at", DateTime(timezone=True), nullable=False),
)
Index(
    "charge_refunds_held",
    charge_refunds.c.slot,
    charge_refunds.c.touched_at,
    postgresql_where=text("state = 'held'"),
)

CHARGES: RecordType[Charge] = RecordType(
    charges,
    Charge,
    changes=("refunded", "state", "reason", "attempt_id", "attempts", "void_id", "payment_id"),
)
CHARGE_REFUNDS: RecordType[ChargeRefund] = RecordType(
    charge_refunds,
    ChargeRefund,
    changes=("state", "failure", "attempt_id", "attempts", "touched_at"),
)
