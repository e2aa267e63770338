"""Charges and their refunds, payouts, routing's decisions, adjustments; what banks contradict.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TABLES = ("charges", "charge_refunds", "payouts", "decisions", "adjustments")


def _texts(*names: str) -> list[Any]:
    return [sa.Column(name, sa.Text(), nullable=False) for name in names]


def _amounts(*names: str) -> list[Any]:
    return [sa.Column(name, sa.BigInteger(), nullable=False) for name in names]


def _attempts() -> Any:
    return sa.Column("attempts", sa.Integer(), nullable=False)


def _times(*names: str) -> list[Any]:
    return [sa.Column(name, sa.DateTime(timezone=True), nullable=False) for name in names]


def _create(name: str, *columns: Any) -> None:
    """A table whose key is the slot and its first column."""
    op.create_table(
        name,
        sa.Column("slot", sa.SmallInteger(), autoincrement=False, nullable=False),
        *columns,
        sa.PrimaryKeyConstraint("slot", columns[0].name),
    )
    _lives_by_row(name)


def _lives_by_row(name: str) -> None:
    if op.get_context().dialect.name == "cockroachdb":
        op.execute(f"ALTER TABLE {name} SET LOCALITY REGIONAL BY ROW")


def upgrade() -> None:
    op.add_column("attempts", sa.Column("dispute", sa.Text(), server_default="", nullable=False))
    _lives_by_row("attempts")
    _create(
        "charges",
        *_texts("charge_id", "user_id", "purpose", "order_id", "merchant_id", "if_order_ended"),
        *_texts("instrument_id"),
        *_amounts("amount"),
        *_texts("currency"),
        *_amounts("refunded"),
        *_texts("state", "reason", "attempt_id"),
        _attempts(),
        *_texts("void_id", "payment_id"),
        *_times("created_at"),
    )
    op.create_index("charges_by_user", "charges", ["user_id", "charge_id"])
    _create(
        "charge_refunds",
        *_texts("refund_id", "charge_id", "user_id", "cause", "channel", "original_id"),
        *_amounts("amount"),
        *_texts("currency", "state", "reason", "failure", "attempt_id"),
        _attempts(),
        *_times("created_at", "touched_at"),
    )
    _create(
        "payouts",
        *_texts("payout_id", "user_id", "kind", "instrument_id"),
        *_amounts("amount"),
        *_texts("currency", "state", "reason", "description", "attempt_id"),
        _attempts(),
        *_texts("channel"),
        *_times("created_at", "touched_at"),
    )
    op.create_index("payouts_by_user", "payouts", ["user_id", "payout_id"])
    for name in ("charge_refunds", "payouts"):
        op.create_index(
            f"{name}_held", name, ["slot", "touched_at"],
            postgresql_where=sa.text("state = 'held'"),
        )  # fmt: skip
    _create("decisions", *_texts("attempt_id", "owner_id", "document"), *_times("created_at"))
    op.create_index("decisions_by_owner", "decisions", ["owner_id"])
    _create(
        "adjustments",
        *_texts("adjustment_id", "break_id", "channel", "source", "target", "user_id"),
        *_amounts("amount"),
        *_texts("currency", "subject_id", "reason", "approved_by"),
        *_times("created_at"),
    )


def downgrade() -> None:
    for name in reversed(_TABLES):
        op.drop_table(name)
    op.drop_column("attempts", "dispute")
