"""Every statement and every migration compiles for CockroachDB as for PostgreSQL.

CockroachDB cannot be run here, so this is what can be shown: the text is the same, or differs only
where a migration says so, and holds nothing that CockroachDB's documentation excludes.
"""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
from sqlalchemy.dialects import registry
from sqlalchemy.schema import CreateTable

import cells.schema
from cells.accounts.tables import MERCHANTS, MOVEMENTS
from cells.adjustments.tables import ADJUSTMENTS
from cells.channels.attempts import ATTEMPTS
from cells.channels.decisions import DECISIONS
from cells.channels.recovery import due_attempts, held
from cells.charges.tables import CHARGE_REFUNDS, CHARGES
from cells.ledger.records import RecordType, Write, load_statement, write_statement
from cells.ledger.tables import ACCOUNTS, ENTRIES, IDEMPOTENCY, OUTBOX
from cells.orders.tables import ORDERS
from cells.payments.tables import PAYMENTS, REFUNDS
from cells.payouts.tables import PAYOUTS
from cells.settings import BankingSettings
from cells.transfers.tables import BRANCHES, TRANSFERS
from cells.vault.tables import INSTRUMENTS, KEYS, LOOKUPS

ALL: list[RecordType[Any]] = [
    ACCOUNTS,
    ENTRIES,
    IDEMPOTENCY,
    OUTBOX,
    MERCHANTS,
    MOVEMENTS,
    ORDERS,
    PAYMENTS,
    REFUNDS,
    TRANSFERS,
    BRANCHES,
    ATTEMPTS,
    DECISIONS,
    CHARGES,
    CHARGE_REFUNDS,
    PAYOUTS,
    ADJUSTMENTS,
    INSTRUMENTS,
    LOOKUPS,
    KEYS,
]
NAMES = ("postgresql.asyncpg", "cockroachdb.asyncpg")


def dialects() -> list[Any]:
    return [registry.load(name)() for name in NAMES]


def migration_sql(scheme: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cells.migrations", "sql", f"{scheme}+asyncpg://x@127.0.0.1/x"],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


@pytest.mark.parametrize("record", ALL, ids=lambda record: record.name)
def test_loads_and_writes_are_one_text_for_both(record: RecordType[Any]) -> None:
    statements = [load_statement(record)]
    statements.append(write_statement((Write(record, fresh=True),)))
    if record.changes:
        statements.append(write_statement((Write(record, fresh=False),)))
    for statement in statements:
        assert "unnest(CAST(string_to_array($" in statement
        # What only one of the two documents: PostgreSQL's casts are there, its extensions are not.
        assert not re.search(r"(?i)::|\bMERGE\b|ONLY |ctid|xmin|WITH ORDINALITY", statement)


def test_one_statement_modifies_a_table_only_once() -> None:
    """CockroachDB refuses a statement that modifies one table twice."""
    writes = tuple(Write(record, fresh=True) for record in ALL)
    text = write_statement(writes)
    for record in ALL:
        assert len(re.findall(rf"(?:INSERT INTO|UPDATE) {record.name}\b", text)) == 1


def test_what_recovery_looks_for_compiles_for_both() -> None:
    statements = [due_attempts([1, 2], BankingSettings())]
    statements += [held(record, [1, 2], 30.0) for record in (CHARGE_REFUNDS, PAYOUTS)]
    for statement in statements:
        one, other = (str(statement.compile(dialect=dialect)) for dialect in dialects())
        assert one == other
        assert ":param" not in one


def test_every_table_compiles_for_both_and_its_key_begins_with_the_slot() -> None:
    for table in cells.schema.metadata.sorted_tables:
        for dialect in dialects():
            assert str(CreateTable(table).compile(dialect=dialect))
        first = "channel" if table.name.startswith("reconciliation_") else "slot"
        # No user owns a run of reconciliation: cells/reconciliation/tables.py.
        assert next(iter(table.primary_key.columns)).name == first, table.name


def test_no_table_has_a_sequence_as_its_key() -> None:
    """Sequential keys make one hot range on CockroachDB (pitfall 15)."""
    for text in (migration_sql("postgresql"), migration_sql("cockroachdb")):
        assert "SERIAL" not in text.upper()
        assert "CREATE SEQUENCE" not in text.upper()


def test_migrations_differ_only_where_the_engine_asks_for_it() -> None:
    def tables(text: str) -> set[str]:
        return set(re.findall(r"CREATE (?:TABLE|INDEX) .*?;", text, re.DOTALL))

    postgresql, cockroachdb = migration_sql("postgresql"), migration_sql("cockroachdb")
    assert tables(postgresql) == tables(cockroachdb)
    assert "fillfactor" in postgresql
    assert "fillfactor" not in cockroachdb
    assert "REGIONAL BY ROW" in cockroachdb
    assert "REGIONAL BY ROW" not in postgresql
