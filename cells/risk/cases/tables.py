"""Tables of cases, factors and decisions."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Column, DateTime, Index, SmallInteger, Table, Text, text

from cells.fencing.tables import metadata
from cells.ledger.records import RecordType
from cells.risk.cases.model import Case, Factor, StoredDecision


def _texts(names: str) -> list[Column[str]]:
    return [Column(name, Text, nullable=False) for name in names.split()]


def _times(names: str) -> list[Column[datetime]]:
    return [Column(name, DateTime(timezone=True), nullable=False) for name in names.split()]


risk_cases = Table(
    "risk_cases",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("case_id", Text, primary_key=True),
    *_texts("kind state user_id operation subject_id payee_id"),
    Column("amount", BigInteger, nullable=False),
    *_texts("currency idempotency_key fingerprint decision_id reasons rules facts"),
    Column("tries", BigInteger, nullable=False),
    *_texts("decided_by audit_id note"),
    *_times("expires_at created_at touched_at"),
)
# Without the slot (see migration 0003): operators see the reviews of all slots, oldest first.
Index(
    "risk_cases_reviews",
    risk_cases.c.created_at,
    risk_cases.c.case_id,
    postgresql_where=text("kind = 'review'"),
)

risk_factors = Table(
    "risk_factors",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("factor_id", Text, primary_key=True),
    *_texts("user_id secret_sealed pending_sealed"),
    *(
        Column(name, BigInteger, nullable=False)
        for name in ("secret_key", "pending_key", "last_step", "failures")
    ),
    *_times("locked_until"),
    Column("version", BigInteger, nullable=False),
    *_times("confirmed_at created_at touched_at"),
)

risk_decisions = Table(
    "risk_decisions",
    metadata,
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("decision_id", Text, primary_key=True),
    *_texts("user_id operation action subject_id payee_id"),
    Column("amount", BigInteger, nullable=False),
    *_texts("currency reasons rules without"),
    Column("rules_version", BigInteger, nullable=False),
    *_texts("model_version"),
    *_times("created_at"),
)
Index("risk_decisions_by_user", risk_decisions.c.user_id, risk_decisions.c.decision_id)

CASES: RecordType[Case] = RecordType(
    risk_cases,
    Case,
    changes=(
        "state", "decision_id", "reasons", "rules", "facts", "tries", "decided_by", "audit_id",
        "note", "expires_at", "touched_at",
    ),
)  # fmt: skip
FACTORS: RecordType[Factor] = RecordType(
    risk_factors,
    Factor,
    changes=(
        "secret_sealed", "pending_sealed", "secret_key", "pending_key", "last_step", "failures",
        "locked_until", "version", "confirmed_at", "touched_at",
    ),
)  # fmt: skip
RISK_DECISIONS: RecordType[StoredDecision] = RecordType(risk_decisions, StoredDecision)
