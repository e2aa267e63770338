"""Reconciliation: runs, breaks and cases, by channel and clearing date.

They belong to no slot (cells/reconciliation/tables.py says why), and a handful of processes write
them: on CockroachDB they stay in the database's primary region.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def _texts(names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text(), nullable=False) for name in names.split()]


def _times() -> list[sa.Column[datetime]]:
    return [
        sa.Column(name, sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()"))
        for name in ("created_at", "touched_at")
    ]


def upgrade() -> None:
    op.create_table(
        "reconciliation_runs",
        *_texts("channel clearing_date"),
        sa.Column("version", sa.BigInteger(), nullable=False),
        *_texts("state reason statement_sha256"),
        sa.Column("lines", sa.BigInteger(), nullable=False),
        *_texts("sums guesses requested_by"),
        *_times(),
        sa.PrimaryKeyConstraint("channel", "clearing_date"),
    )
    op.create_table(
        "reconciliation_breaks",
        *_texts("channel clearing_date break_id class reason state attempt_id"),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        *_texts("currency"),
        sa.Column("waits", sa.Boolean(), nullable=False),
        *_texts("ours theirs note resolved_on resolution adjustment_id"),
        *_times(),
        sa.PrimaryKeyConstraint("channel", "clearing_date", "break_id"),
    )
    op.create_index(
        "reconciliation_breaks_unresolved",
        "reconciliation_breaks",
        ["channel", "clearing_date"],
        postgresql_where=sa.text("state IN ('open', 'case', 'adjusting')"),
    )
    op.create_table(
        "reconciliation_cases",
        *_texts("channel clearing_date break_id"),
        sa.Column("version", sa.BigInteger(), nullable=False),
        *_texts("state proposal maker maker_reason maker_audit_id checker checker_reason"),
        *_texts("checker_audit_id"),
        *_times(),
        sa.PrimaryKeyConstraint("channel", "clearing_date", "break_id"),
        sa.CheckConstraint("checker = '' OR checker <> maker", name="reconciliation_two_people"),
    )


def downgrade() -> None:
    for name in ("cases", "breaks", "runs"):
        op.drop_table(f"reconciliation_{name}")
