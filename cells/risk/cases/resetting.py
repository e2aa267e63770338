"""A second factor that its user has lost: a person lets him begin anew. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cells.ledger.book import Book
from cells.ledger.model import Accepted, Key, Outcome, PlainCommand, Reason, Refused
from cells.risk.cases.model import NO_TIME
from cells.risk.cases.rules import factor_id
from cells.risk.cases.tables import FACTORS


@dataclass(frozen=True, slots=True)
class ResetFactor(PlainCommand):
    """A person has made sure that the user has lost it: from now on there is none.

    The row stays, so that its version goes on: what was begun with the factor as it was comes to
    nothing.
    """

    slot: int
    user_id: str
    idempotency = None
    resource_type = FACTORS

    def reads(self) -> Iterable[Key]:
        return (Key(FACTORS, self.slot, factor_id(self.slot, self.user_id)),)

    def decide(self, book: Book) -> Outcome:
        factor = book.get(FACTORS, factor_id(self.slot, self.user_id))
        if factor is None:
            return Refused(Reason.FACTOR_NOT_FOUND, "the user has no second factor")
        if not factor.secret_sealed and not factor.pending_sealed:
            return Accepted(factor, replayed=True)
        return Accepted(
            book.put(
                FACTORS,
                factor._replace(
                    secret_sealed="", secret_key=0, pending_sealed="", pending_key=0, failures=0,
                    locked_until=NO_TIME, version=factor.version + 1, confirmed_at=NO_TIME,
                    touched_at=book.now,
                ),
            )
        )  # fmt: skip
