"""Risk: challenges and reviews, second factors, decisions other than allow.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_TABLES = ("risk_cases", "risk_factors", "risk_decisions")


def _texts(names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text(), nullable=False) for name in names.split()]


def _numbers(names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger(), nullable=False) for name in names.split()]


def _times(names: str) -> list[sa.Column[datetime]]:
    return [sa.Column(name, sa.DateTime(timezone=True), nullable=False) for name in names.split()]


def upgrade() -> None:
    op.create_table(
        "risk_cases",
        sa.Column("slot", sa.SmallInteger(), nullable=False),
        *_texts("case_id kind state user_id operation subject_id payee_id"),
        *_numbers("amount"),
        *_texts("currency idempotency_key fingerprint decision_id reasons rules facts"),
        *_numbers("tries"),
        *_texts("decided_by audit_id note"),
        *_times("expires_at created_at touched_at"),
        sa.PrimaryKeyConstraint("slot", "case_id"),
    )
    op.create_index(
        "risk_cases_reviews",
        "risk_cases",
        ["created_at", "case_id"],
        postgresql_where=sa.text("kind = 'review'"),
    )
    op.create_table(
        "risk_factors",
        sa.Column("slot", sa.SmallInteger(), nullable=False),
        *_texts("factor_id user_id secret_sealed pending_sealed"),
        *_numbers("secret_key pending_key last_step failures"),
        *_times("locked_until"),
        *_numbers("version"),
        *_times("confirmed_at created_at touched_at"),
        sa.PrimaryKeyConstraint("slot", "factor_id"),
    )
    op.create_table(
        "risk_decisions",
        sa.Column("slot", sa.SmallInteger(), nullable=False),
        *_texts("decision_id user_id operation action subject_id payee_id"),
        *_numbers("amount"),
        *_texts("currency reasons rules without"),
        *_numbers("rules_version"),
        *_texts("model_version"),
        *_times("created_at"),
        sa.PrimaryKeyConstraint("slot", "decision_id"),
    )
    op.create_index("risk_decisions_by_user", "risk_decisions", ["user_id", "decision_id"])
    if op.get_context().dialect.name == "cockroachdb":
        for name in _TABLES:
            op.execute(f"ALTER TABLE {name} SET LOCALITY REGIONAL BY ROW")


def downgrade() -> None:
    for name in reversed(_TABLES):
        op.drop_table(name)
