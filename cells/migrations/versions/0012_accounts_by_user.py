"""Risk finds an account by its user, in the read that finds the order which names him.

An account's ID is computed from both, so whoever knew the user of an order only from its row needed
a second read. Expands only: cells of the version before do without.

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_NAME = "accounts_by_user"


def upgrade() -> None:
    # By slot first, unlike those of 0003: no look-up by primary key says what purpose it is after,
    # so none can take this index instead.
    op.create_index(
        _NAME,
        "accounts",
        ["slot", "user_id", "currency"],
        postgresql_where=sa.text("purpose = 'balance'"),
    )


def downgrade() -> None:
    op.drop_index(_NAME, table_name="accounts")
