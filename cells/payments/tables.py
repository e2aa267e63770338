"""Tables of the payments noun."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Index,
    SmallInteger,
    Table,
    Text,
    text,
)

from cells.fencing.tables import metadata
from cells.ledger.records import RecordType
from cells.payments.model import Payment, Refund

payments = Table(
    "payments",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("payment_id", Text, primary_key=True),
    Column("order_id", Text, nullable=False),
    Column("payer_id", Text, nullable=False),
    Column("merchant_id", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("refunded", BigInteger, nullable=False),
    Column("idempotency_key", Text, nullable=False),
    Column("request_hash", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
)
# Listed by payer through `orders_by_payer`: a second index like it would cost each payment a tenth.

refunds = Table(
    "refunds",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("refund_id", Text, primary_key=True),
    Column("payment_id", Text, nullable=False),
    Column("payer_id", Text, nullable=False),
    Column("merchant_id", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
)
Index(
    "refunds_pending",
    refunds.c.slot,
    refunds.c.refund_id,
    postgresql_where=text("state = 'pending'"),
)

PAYMENTS: RecordType[Payment] = RecordType(payments, Payment, changes=("refunded",))
REFUNDS: RecordType[Refund] = RecordType(refunds, Refund, changes=("state",))
