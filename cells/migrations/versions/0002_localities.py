"""Where rows live on CockroachDB: with their region, or everywhere.

REGIONAL BY ROW homes a row in the region that wrote it and, with auto-rehoming, takes it along
when a slot's new owner writes it. Merchants and the fence are read by every cell: GLOBAL. Surviving
the loss of a region is the database's goal, set when its regions are added (deploy/cockroachdb).
PostgreSQL knows none of this and needs none.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_BY_ROW = (
    "accounts",
    "branches",
    "deliveries",
    "endpoints",
    "entries",
    "idempotency",
    "movements",
    "orders",
    "outbox",
    "payments",
    "refunds",
    "transfers",
)
_GLOBAL = ("merchants", "slot_history")
# Every write of a group locks rows of `slots`; they must be near their owner, not everywhere.
_BY_ROW_OWNED = ("slots",)


def upgrade() -> None:
    if op.get_context().dialect.name != "cockroachdb":
        return
    op.execute("SET enable_auto_rehoming = on")
    for name in (*_BY_ROW, *_BY_ROW_OWNED):
        op.execute(f"ALTER TABLE {name} SET LOCALITY REGIONAL BY ROW")
    for name in _GLOBAL:
        op.execute(f"ALTER TABLE {name} SET LOCALITY GLOBAL")


def downgrade() -> None:
    if op.get_context().dialect.name != "cockroachdb":
        return
    for name in (*_BY_ROW, *_BY_ROW_OWNED, *_GLOBAL):
        op.execute(f"ALTER TABLE {name} SET LOCALITY REGIONAL BY TABLE IN PRIMARY REGION")
