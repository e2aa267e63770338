"""Public keys of merchants; webhook secrets sealed by the KMS, beside those that are not yet.

`endpoints.secret` stays, for cells of before: a sealed row holds nothing there.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "merchant_keys",
        sa.Column("slot", sa.SmallInteger(), nullable=False),
        *(
            sa.Column(name, sa.Text(), nullable=False)
            for name in ("key_id", "merchant_id", "algorithm", "public", "state")
        ),
        sa.Column("not_before", sa.BigInteger(), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("touched_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("slot", "key_id"),
    )
    op.create_index("merchant_keys_by_merchant", "merchant_keys", ["merchant_id", "key_id"])
    for name in ("secret_sealed", "kms_version"):
        op.add_column(
            "endpoints", sa.Column(name, sa.Text(), nullable=False, server_default=sa.text("''"))
        )
    if op.get_context().dialect.name == "cockroachdb":
        op.execute("ALTER TABLE merchant_keys SET LOCALITY REGIONAL BY ROW")


def downgrade() -> None:
    for name in ("kms_version", "secret_sealed"):
        op.drop_column("endpoints", name)
    op.drop_table("merchant_keys")
