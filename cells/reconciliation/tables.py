"""Tables of the reconciliation noun.

Their keys begin with the channel and the clearing date, not with a slot: a run reads the attempts
of every slot, and no user owns its rows. What fences them is the run's version: whoever writes for
a day first compares and sets it in the same transaction, so two reconcilers do no harm. What a
break changes of a user's books goes through the slot's home, under its fence (posting.py).
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    Table,
    Text,
    func,
    text,
)

from cells.fencing.tables import metadata

runs = Table(
    "reconciliation_runs",
    metadata,
    Column("channel", Text, primary_key=True),
    # ISO 8601.
    Column("clearing_date", Text, primary_key=True),
    # One higher at every change of the run or of what hangs from it.
    Column("version", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    # Why it waits or is quarantined.
    Column("reason", Text, nullable=False),
    Column("statement_sha256", Text, nullable=False),
    # Lines of the statement.
    Column("lines", BigInteger, nullable=False),
    # JSON: figures by currency, and what was matched by guess.
    Column("sums", Text, nullable=False),
    Column("guesses", Text, nullable=False),
    Column("requested_by", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("touched_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

breaks = Table(
    "reconciliation_breaks",
    metadata,
    Column("channel", Text, primary_key=True),
    # The day on which it was found.
    Column("clearing_date", Text, primary_key=True),
    Column("break_id", Text, primary_key=True),
    Column("class", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempt_id", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    # Whether a later day may explain it.
    Column("waits", Boolean, nullable=False),
    # JSON of model.Ours and model.Theirs; empty: that side has nothing.
    Column("ours", Text, nullable=False),
    Column("theirs", Text, nullable=False),
    Column("note", Text, nullable=False),
    # The day whose run resolved or adjusted it; empty: none yet.
    Column("resolved_on", Text, nullable=False),
    # How it was matched later, or who approved what was posted (a rule or a person), and its ID.
    Column("resolution", Text, nullable=False),
    Column("adjustment_id", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("touched_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)
# What is still to be done; the rest is history.
Index(
    "reconciliation_breaks_unresolved",
    breaks.c.channel,
    breaks.c.clearing_date,
    postgresql_where=text("state IN ('open', 'case', 'adjusting')"),
)

cases = Table(
    "reconciliation_cases",
    metadata,
    Column("channel", Text, primary_key=True),
    Column("clearing_date", Text, primary_key=True),
    Column("break_id", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    # adjust or dismiss.
    Column("proposal", Text, nullable=False),
    Column("maker", Text, nullable=False),
    Column("maker_reason", Text, nullable=False),
    # Of the audit log in etcd: each decision names its record.
    Column("maker_audit_id", Text, nullable=False),
    Column("checker", Text, nullable=False),
    Column("checker_reason", Text, nullable=False),
    Column("checker_audit_id", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("touched_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    # The second half of "assert in pairs": the control plane refuses first, the database always.
    CheckConstraint("checker = '' OR checker <> maker", name="reconciliation_two_people"),
)
