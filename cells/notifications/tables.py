"""Tables of the notifications noun."""

from __future__ import annotations

from sqlalchemy import (
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    text,
)

from cells.fencing.tables import metadata
from cells.ledger.records import RecordType
from cells.notifications.model import Delivery, Endpoint

endpoints = Table(
    "endpoints",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("endpoint_id", Text, primary_key=True),
    Column("url", Text, nullable=False),
    Column("secret", LargeBinary, nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
    Column("secret_sealed", Text, nullable=False, server_default=""),
    Column("kms_version", Text, nullable=False, server_default=""),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("delivery_id", Text, primary_key=True),
    Column("event_id", Text, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("merchant_id", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("last_error", Text, nullable=False),
    Column("next_attempt_at", DateTime(timezone=True), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    # Cells of an older version do not know it.
    Column("traceparent", Text, nullable=False, server_default=text("''")),
)
# Only what is still to be delivered: it stays small however many deliveries there were.
Index(
    "deliveries_due",
    deliveries.c.slot,
    deliveries.c.next_attempt_at,
    postgresql_where=text("state = 'pending'"),
)
Index(
    "deliveries_by_merchant",
    deliveries.c.merchant_id,
    deliveries.c.created_at,
    deliveries.c.delivery_id,
)

ENDPOINTS: RecordType[Endpoint] = RecordType(
    endpoints, Endpoint, changes=("url", "secret", "updated_at", "secret_sealed", "kms_version")
)
DELIVERIES: RecordType[Delivery] = RecordType(
    deliveries, Delivery, changes=("state", "attempts", "last_error", "next_attempt_at")
)
