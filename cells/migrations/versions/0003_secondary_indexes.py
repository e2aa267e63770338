"""Secondary indexes do not begin with the slot.

With it PostgreSQL, before it has statistics, may look up a primary key (slot, ID) in them, and then
reads all rows of the slot for each.
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_INDEXES = {
    "orders_by_payer": ("orders", ["payer_id", "order_id"]),
    "payments_by_payer": ("payments", ["payer_id", "payment_id"]),
    "deliveries_by_merchant": ("deliveries", ["merchant_id", "created_at", "delivery_id"]),
}


def upgrade() -> None:
    for name, (table, columns) in _INDEXES.items():
        op.drop_index(name, table_name=table)
        op.create_index(name, table, columns, unique=False)


def downgrade() -> None:
    for name, (table, columns) in _INDEXES.items():
        op.drop_index(name, table_name=table)
        op.create_index(name, table, ["slot", *columns], unique=False)
