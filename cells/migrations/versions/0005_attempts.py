"""Requests to banks, written down before they are sent.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    texts = (
        "owner_id", "channel", "operation", "original_id", "short_reference",
    )  # fmt: skip
    later = ("currency", "state", "reason", "code", "bank_reference", "clearing_date")
    op.create_table(
        "attempts",
        sa.Column("slot", sa.SmallInteger(), nullable=False),
        sa.Column("attempt_id", sa.Text(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in texts),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in later),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("touched_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("slot", "attempt_id"),
    )
    op.create_index(
        "attempts_open",
        "attempts",
        ["slot", "touched_at"],
        postgresql_where=sa.text("state IN ('sent', 'pending', 'unknown')"),
    )
    op.create_index("attempts_by_owner", "attempts", ["owner_id"])
    op.create_index("attempts_by_channel", "attempts", ["channel", "created_at", "slot"])


def downgrade() -> None:
    op.drop_table("attempts")
