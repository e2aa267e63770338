"""May this adjustment be posted? Pure: a command over the book."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cells.accounts.rules import account_keys, overflow, shortage, system_overflow, usable
from cells.adjustments.model import ALLOWED, Adjustment, Side
from cells.adjustments.tables import ADJUSTMENTS
from cells.channels.rules import channel_account
from cells.ledger.book import Book, Leg
from cells.ledger.model import Accepted, Account, Key, Outcome, PlainCommand, Reason, Refused
from router.ids import Kind, Purpose, account_id, channel_account_id, derive, own_account_id

_PURPOSES = {Side.FEES: Purpose.FEES, Side.SUSPENSE: Purpose.SUSPENSE}


def adjustment_id(slot: int, break_id: str) -> str:
    return derive(Kind.ADJUSTMENT, slot, break_id)


@dataclass(frozen=True, slots=True)
class Adjust(PlainCommand):
    """Moves money between a channel and fees, suspense or a user. A break's second is its first."""

    slot: int
    break_id: str
    channel: str
    source: Side
    target: Side
    user_id: str
    amount: int
    currency: str
    subject_id: str
    reason: str
    approved_by: str
    idempotency = None
    resource_type = ADJUSTMENTS

    def reads(self) -> Iterable[Key]:
        return (Key(ADJUSTMENTS, self.slot, adjustment_id(self.slot, self.break_id)),)

    def accounts(self, book: Book) -> Iterable[Key]:
        return account_keys(*(self._account_id(side) for side in (self.source, self.target)))

    def _account_id(self, side: Side) -> str:
        if side == Side.USER:
            return account_id(self.user_id, self.currency)
        if side == Side.CHANNEL:
            return channel_account_id(self.slot, self.channel, self.currency)
        return own_account_id(self.slot, _PURPOSES[side], self.currency)

    def decide(self, book: Book) -> Outcome:
        identifier = adjustment_id(self.slot, self.break_id)
        wanted = Adjustment(
            self.slot, identifier, self.break_id, self.channel, self.source, self.target,
            self.user_id, self.amount, self.currency, self.subject_id, self.reason,
            self.approved_by, book.now,
        )  # fmt: skip
        known = book.get(ADJUSTMENTS, identifier)
        if known is not None:
            return self._before(known, wanted)
        if (self.source, self.target) not in ALLOWED:
            return Refused(
                Reason.ADJUSTMENT_NOT_ALLOWED,
                f"nothing may be adjusted from {self.source} to {self.target}",
            )
        refused = self._refused(book)
        if refused:
            return refused
        book.post(
            identifier,
            "adjustment",
            [
                Leg(self._account(book, self.source), -self.amount),
                Leg(self._account(book, self.target), self.amount),
            ],
        )
        return Accepted(book.put(ADJUSTMENTS, wanted))

    def _before(self, known: Adjustment, wanted: Adjustment) -> Outcome:
        """Whoever approves it again may say so in other words; the money must be the same."""
        if known[:10] != wanted[:10]:
            return Refused(
                Reason.EXISTS_WITH_DIFFERENT_INPUT,
                "this break has another adjustment already",
                {"resource": known.adjustment_id},
            )
        return Accepted(known, replayed=True)

    def _refused(self, book: Book) -> Refused | None:
        for side, amount in ((self.source, -self.amount), (self.target, self.amount)):
            account = book.account(self._account_id(side))
            if side != Side.USER:
                refused = system_overflow(account, amount)
            else:
                user = usable(account, "user", Reason.ACCOUNT_NOT_FOUND)
                if isinstance(user, Refused):
                    return user
                refused = overflow(user, amount) if amount > 0 else shortage(user, -amount)
            if refused:
                return refused
        return None

    def _account(self, book: Book, side: Side) -> Account:
        identifier = self._account_id(side)
        if side == Side.USER:
            user = book.account(identifier)
            assert user is not None
            return user
        if side == Side.CHANNEL:
            return channel_account(book, self.slot, self.channel, self.currency)
        return book.system_account(self.slot, identifier, _PURPOSES[side], self.currency)
