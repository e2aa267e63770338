"""Instruments that users registered, sealed, and the wrapped keys of each slot.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_TABLES = ("instruments", "vault_lookups", "vault_keys")


def upgrade() -> None:
    texts = (
        "user_id", "kind", "state", "scheme", "bank", "country", "bin", "last_four", "expires",
        "number_sealed", "holder_sealed", "phone_sealed", "identity_sealed",
    )  # fmt: skip
    op.create_table(
        "instruments",
        sa.Column("slot", sa.SmallInteger(), nullable=False),
        sa.Column("instrument_id", sa.Text(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in texts),
        sa.Column("field_key", sa.BigInteger(), nullable=False),
        sa.Column("lookup_key", sa.BigInteger(), nullable=False),
        sa.Column("lookup_id", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("touched_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("slot", "instrument_id"),
    )
    op.create_index("instruments_by_user", "instruments", ["user_id", "instrument_id"])
    op.create_table(
        "vault_lookups",
        sa.Column("slot", sa.SmallInteger(), nullable=False),
        sa.Column("lookup_id", sa.Text(), nullable=False),
        sa.Column("instrument_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("slot", "lookup_id"),
    )
    op.create_table(
        "vault_keys",
        sa.Column("slot", sa.SmallInteger(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("state", "wrapped")),
        sa.Column("kms_version", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("touched_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("slot", "key_id"),
    )
    if op.get_context().dialect.name == "cockroachdb":
        for name in _TABLES:
            op.execute(f"ALTER TABLE {name} SET LOCALITY REGIONAL BY ROW")


def downgrade() -> None:
    for name in reversed(_TABLES):
        op.drop_table(name)
