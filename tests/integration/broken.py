"""One thing that is wrong with books, and a posting that is right in itself."""

from __future__ import annotations

from typing import NamedTuple


class Broken(NamedTuple):
    """What is done to the books, the check that must name it, and what else must follow from it."""

    check: str
    statements: list[str]
    also: tuple[str, ...] = ()


def post(posting: str, debit: str = "ann", credit: str = "abe", amount: int = 5) -> list[str]:
    """A posting that is right in itself: both accounts' balances and sequences follow it."""
    statements = []
    for account, change in ((debit, -amount), (credit, amount)):
        where = f"a.account_id = '{{{account}}}'"
        statements += [
            "INSERT INTO entries (slot, account_id, sequence, posting_id, kind, amount,"
            " balance_after, epoch, created_at)"
            f" SELECT a.slot, a.account_id, a.sequence + 1, '{posting}', 'transfer', {change},"
            f" a.balance + {change}, s.epoch, now()"
            f" FROM accounts AS a JOIN slots AS s ON s.slot = a.slot WHERE {where}",
            f"UPDATE accounts AS a SET balance = a.balance + {change}, sequence = a.sequence + 1"
            f" WHERE {where}",
        ]
    return statements
