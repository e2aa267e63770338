"""Events travel in batches; a payment is its own idempotency record.

Stop the cells and relays of an older version first: they write the tables as they were.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None
# The first version that has the tables as they are from here on.
contract = "0.1.0"

# A batch of one for each event that is there. JSON_BUILD_OBJECT is both engines'.
_CONVERT = """
    INSERT INTO outbox (slot, batch_id, type, events, lines, created_at, sent)
    SELECT slot, event_id, type, 1, CAST(json_build_object('id', event_id, 'type', type, 'slot',
        slot, 'merchant_id', merchant_id, 'time', created_at, 'data', CAST(payload AS json))
        AS text), created_at, sent FROM outbox_of_events
"""
_TAKE_KEYS = """
    UPDATE payments AS p SET idempotency_key = split_part(r.idempotency_id, chr(31), 2),
        request_hash = encode(r.request_hash, 'hex')
    FROM idempotency AS r
    WHERE r.method = 'Pay' AND r.slot = p.slot AND r.resource_id = p.payment_id
"""
_GIVE_KEYS = """
    INSERT INTO idempotency (slot, idempotency_id, method, request_hash, resource_id, created_at)
    SELECT slot, order_id || chr(31) || idempotency_key, 'Pay', decode(request_hash, 'hex'),
        payment_id, created_at
    FROM payments
"""


def _lives_by_row(name: str) -> None:
    if op.get_context().dialect.name == "cockroachdb":
        op.execute(f"ALTER TABLE {name} SET LOCALITY REGIONAL BY ROW")


def _tune_postgresql() -> None:
    if op.get_context().dialect.name != "postgresql":
        return
    # An order is mostly paid soon after it was made, with its neighbours: with room for both
    # versions in one page PostgreSQL leaves the indexes alone (a HOT update).
    op.execute("ALTER TABLE orders SET (fillfactor = 45)")
    # To compress a batch takes longer than to write it.
    op.execute("ALTER TABLE outbox ALTER COLUMN lines SET STORAGE EXTERNAL")


def upgrade() -> None:
    op.drop_index("outbox_unsent", table_name="outbox", postgresql_where=sa.text("NOT sent"))
    op.rename_table("outbox", "outbox_of_events")
    op.create_table(
        "outbox",
        sa.Column("slot", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("events", sa.Integer(), nullable=False),
        sa.Column("lines", sa.Text(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.Column("sent", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("slot", "batch_id", name="outbox_batches_pkey"),
    )
    op.create_index(
        "outbox_unsent",
        "outbox",
        ["slot", "batch_id"],
        unique=False,
        postgresql_where=sa.text("NOT sent"),
    )
    _lives_by_row("outbox")
    op.execute(_CONVERT)
    op.drop_table("outbox_of_events")
    op.add_column(
        "payments", sa.Column("idempotency_key", sa.Text(), nullable=False, server_default="")
    )
    op.add_column(
        "payments",
        sa.Column("request_hash", sa.Text(), nullable=False, server_default=""),
    )
    op.execute(_TAKE_KEYS)
    op.execute("DELETE FROM idempotency WHERE method = 'Pay'")
    op.alter_column("payments", "idempotency_key", server_default=None)
    op.alter_column("payments", "request_hash", server_default=None)
    op.drop_index("payments_by_payer", table_name="payments")
    _tune_postgresql()


def downgrade() -> None:
    """Events that are unsent must be relayed before: their batches are not taken apart."""
    if op.get_context().dialect.name == "postgresql":
        op.execute("ALTER TABLE orders SET (fillfactor = 70)")
    op.create_index("payments_by_payer", "payments", ["payer_id", "payment_id"], unique=False)
    op.execute(_GIVE_KEYS)
    op.drop_column("payments", "request_hash")
    op.drop_column("payments", "idempotency_key")
    op.drop_index("outbox_unsent", table_name="outbox", postgresql_where=sa.text("NOT sent"))
    op.drop_table("outbox")
    op.create_table(
        "outbox",
        sa.Column("slot", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("merchant_id", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.Column("sent", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("slot", "event_id", name="outbox_pkey"),
    )
    op.create_index(
        "outbox_unsent",
        "outbox",
        ["slot", "event_id"],
        unique=False,
        postgresql_where=sa.text("NOT sent"),
    )
    _lives_by_row("outbox")
