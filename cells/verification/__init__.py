"""Verification: the auditor of the books (`cellctl verify`, the end of every chaos test).

Independent of what it audits: it imports no rules and no book, and reads with SQL alone what the
database holds, so a fault of the rules cannot hide itself.

    model.py    what an audit says: findings, figures, a report
    checks.py   the books, one query a check: the rows that should not be there
    traces.py   the same for what lies beside the entries: idempotency, epochs, events
    auditor.py  one read-only snapshot of all tables, all checks, the figures
"""
