"""Attempts: each request to a bank, written down before it is sent.

What is in this row survives the process, the cell and its region: whoever owns the slot next asks
the bank by the same reference. Reconciliation matches these rows with the banks' statements.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import BigInteger, Column, DateTime, Index, SmallInteger, Table, Text, text

from cells.fencing.tables import metadata
from cells.ledger.records import RecordType


class AttemptState(StrEnum):
    # Written down, and perhaps sent.
    SENT = "sent"
    APPROVED = "approved"
    DECLINED = "declined"
    FAILED = "failed"
    PENDING = "pending"
    UNKNOWN = "unknown"
    # It may have had its effect, which was undone (the bank approved a VOID of it).
    REVERSED = "reversed"


OPEN_STATES = (AttemptState.SENT, AttemptState.PENDING, AttemptState.UNKNOWN)


class Attempt(NamedTuple):
    slot: int
    # The reference that the bank hears.
    attempt_id: str
    # The charge, payout or refund that it is for.
    owner_id: str
    channel: str
    operation: str
    # What capture, void, refund and query speak of; else empty.
    original_id: str
    # `short_reference` of attempt_id, for banks whose field is short.
    short_reference: str
    amount: int
    currency: str
    state: str
    # AnswerReason, and the bank's own code.
    reason: str
    code: str
    bank_reference: str
    # ISO 8601; empty until the bank said.
    clearing_date: str
    created_at: datetime
    # When a bank was last asked or heard: recovery asks again, ever more seldom.
    touched_at: datetime
    # What the bank said against it after it had ended, as `verdict/code`: a case for people.
    dispute: str = ""


attempts = Table(
    "attempts",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("attempt_id", Text, primary_key=True),
    Column("owner_id", Text, nullable=False),
    Column("channel", Text, nullable=False),
    Column("operation", Text, nullable=False),
    Column("original_id", Text, nullable=False),
    Column("short_reference", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("code", Text, nullable=False),
    Column("bank_reference", Text, nullable=False),
    Column("clearing_date", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("touched_at", DateTime(timezone=True), nullable=False),
    Column("dispute", Text, nullable=False, server_default=""),
)
Index(
    "attempts_open",
    attempts.c.slot,
    attempts.c.touched_at,
    postgresql_where=text("state IN ('sent', 'pending', 'unknown')"),
)
# Without the slot (see migration 0003); the ID carries it.
Index("attempts_by_owner", attempts.c.owner_id)
# A day of one channel, for reconciliation; the slot comes behind, for that reads all of them.
Index("attempts_by_channel", attempts.c.channel, attempts.c.created_at, attempts.c.slot)

ATTEMPTS: RecordType[Attempt] = RecordType(
    attempts,
    Attempt,
    changes=(
        "state",
        "reason",
        "code",
        "bank_reference",
        "clearing_date",
        "touched_at",
        "dispute",
    ),
)
