"""Table of the orders noun."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, DateTime, Index, SmallInteger, Table, Text

from cells.fencing.tables import metadata
from cells.ledger.records import RecordType
from cells.orders.model import Order

orders = Table(
    "orders",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("order_id", Text, primary_key=True),
    Column("payer_id", Text, nullable=False),
    Column("merchant_id", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("payment_id", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
)
Index("orders_by_payer", orders.c.payer_id, orders.c.order_id)

ORDERS: RecordType[Order] = RecordType(orders, Order, changes=("state", "payment_id"))
