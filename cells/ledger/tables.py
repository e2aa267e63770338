"""Tables of the ledger. Primary keys begin with the slot, so rows spread and move with it."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    func,
    text,
)

from cells.fencing.tables import metadata
from cells.ledger.model import Account, Entry, EventBatch, IdempotencyRecord
from cells.ledger.records import RecordType

accounts = Table(
    "accounts",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("account_id", Text, primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("currency", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("balance", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),
    Column("promised", BigInteger, nullable=False),
    Column("reserved", BigInteger, nullable=False),
    Column("floor", BigInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    # The second half of "assert in pairs": the book refuses first, the database always.
    CheckConstraint("balance - held >= floor", name="accounts_floor"),
    CheckConstraint("held >= 0 AND promised >= 0 AND reserved >= 0", name="accounts_promises"),
)

entries = Table(
    "entries",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("account_id", Text, primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("posting_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("balance_after", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("idempotency_id", Text, primary_key=True),
    Column("method", Text, nullable=False),
    Column("request_hash", LargeBinary, nullable=False),
    Column("resource_id", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("batch_id", Text, primary_key=True),
    Column("type", Text, nullable=False),
    Column("events", Integer, nullable=False),
    Column("lines", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("sent", Boolean, nullable=False, server_default=text("false")),
)
# Only what is still to be sent: the index stays small however long rows are kept for replay.
Index("outbox_unsent", outbox.c.slot, outbox.c.batch_id, postgresql_where=text("NOT sent"))
# Settlement looks for merchants' money that waits in collection accounts. The balance must not
# be part of any index: an update of an indexed column writes every index of the table anew.
Index(
    "accounts_collecting",
    accounts.c.slot,
    accounts.c.account_id,
    postgresql_where=text("purpose = 'collection'"),
)
# Risk knows an order's payer only from its row, and finds the account in the same read.
Index(
    "accounts_by_user",
    accounts.c.slot,
    accounts.c.user_id,
    accounts.c.currency,
    postgresql_where=text("purpose = 'balance'"),
)

ACCOUNTS: RecordType[Account] = RecordType(
    accounts,
    Account,
    changes=("state", "balance", "held", "promised", "reserved", "sequence"),
)
ENTRIES: RecordType[Entry] = RecordType(entries, Entry)
IDEMPOTENCY: RecordType[IdempotencyRecord] = RecordType(idempotency, IdempotencyRecord)
OUTBOX: RecordType[EventBatch] = RecordType(outbox, EventBatch)
