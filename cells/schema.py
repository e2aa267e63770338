"""All tables of a cell's database, gathered for migrations and tests."""

from __future__ import annotations

import cells.accounts.tables
import cells.adjustments.tables
import cells.channels.attempts
import cells.channels.decisions
import cells.charges.tables
import cells.keys.tables
import cells.ledger.tables
import cells.notifications.tables
import cells.orders.tables
import cells.payments.tables
import cells.payouts.tables
import cells.reconciliation.tables
import cells.risk.cases.tables
import cells.transfers.tables
import cells.vault.tables  # noqa: F401
from cells.fencing.tables import metadata

__all__ = ["metadata"]
