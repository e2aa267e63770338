"""What may happen to accounts. Pure: commands over the book."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cells.accounts.model import Direction, Merchant, Movement
from cells.accounts.tables import MERCHANTS, MOVEMENTS
from cells.ledger.book import Book, Leg
from cells.ledger.model import (
    MAX_BALANCE_MINOR,
    SYSTEM_BALANCE_SOFT_MAX_MINOR,
    Accepted,
    Account,
    AccountKind,
    AccountState,
    Idempotency,
    Key,
    Outcome,
    PlainCommand,
    Reason,
    Refused,
)
from cells.ledger.tables import ACCOUNTS
from router.ids import Purpose, account_id, external_account_id, slot_of_id


def usable(
    account: Account | None, role: str, missing: Reason, currency: str | None = None
) -> Account | Refused:
    """The account when it may take part in a posting, else why not."""
    if account is None:
        return Refused(missing, f"the {role} has no account in this currency")
    if account.state != AccountState.OPEN:
        return Refused(Reason.ACCOUNT_CLOSED, f"the {role}'s account is closed", {"role": role})
    if currency is not None and account.currency != currency:
        return Refused(
            Reason.CURRENCY_MISMATCH,
            f"the {role}'s account is in {account.currency}, not in {currency}",
        )
    return account


def shortage(account: Account, amount: int) -> Refused | None:
    if account.available >= amount:
        return None
    return Refused(
        Reason.INSUFFICIENT_FUNDS,
        "the balance is too low",
        {"available_minor_units": str(account.available), "currency": account.currency},
    )


def overflow(account: Account, amount: int) -> Refused | None:
    if account.balance + account.promised + amount <= MAX_BALANCE_MINOR:
        return None
    return Refused(Reason.BALANCE_TOO_LARGE, "the account cannot hold that much")


def system_overflow(account: Account | None, amount: int) -> Refused | None:
    """Whether one of Cellpay's own accounts can take the amount, which may be negative."""
    balance = account.balance if account else 0
    if abs(balance + amount) <= SYSTEM_BALANCE_SOFT_MAX_MINOR:
        return None
    return Refused(Reason.BALANCE_TOO_LARGE, "Cellpay cannot hold that much in one slot")


def account_keys(*identifiers: str) -> list[Key]:
    return [Key(ACCOUNTS, slot_of_id(identifier), identifier) for identifier in identifiers]


@dataclass(frozen=True, slots=True)
class OpenAccount(PlainCommand):
    """Opens the account of a user in a currency; the same kind again finds the first."""

    slot: int
    user_id: str
    currency: str
    kind: AccountKind
    idempotency: Idempotency
    resource_type = ACCOUNTS

    def accounts(self, book: Book) -> Iterable[Key]:
        return account_keys(account_id(self.user_id, self.currency))

    def decide(self, book: Book) -> Outcome:
        identifier = account_id(self.user_id, self.currency)
        known = book.account(identifier)
        if known is not None:
            if known.state == AccountState.CLOSED:
                return Refused(Reason.ACCOUNT_CLOSED, "this account was closed for good")
            if known.kind != self.kind:
                return Refused(
                    Reason.EXISTS_WITH_DIFFERENT_KIND, f"the account exists as a {known.kind}"
                )
            return Accepted(known)
        account = book.new_account(
            self.slot, identifier, self.user_id, self.currency, Purpose.BALANCE, self.kind
        )
        if self.kind == AccountKind.MERCHANT:
            book.put(
                MERCHANTS,
                Merchant(
                    self.slot, identifier, self.user_id, self.currency, AccountState.OPEN, book.now
                ),
            )
        return Accepted(account)


@dataclass(frozen=True, slots=True)
class CloseAccount(PlainCommand):
    """Closes an account that holds nothing, for good."""

    slot: int
    account_id: str
    idempotency: Idempotency
    resource_type = ACCOUNTS

    def accounts(self, book: Book) -> Iterable[Key]:
        return account_keys(self.account_id)

    def decide(self, book: Book) -> Outcome:
        account = book.account(self.account_id)
        if account is None or account.purpose != Purpose.BALANCE:
            return Refused(Reason.ACCOUNT_NOT_FOUND, "there is no such account")
        if account.state == AccountState.CLOSED:
            return Accepted(account)
        if account.kind == AccountKind.MERCHANT:
            return Refused(
                Reason.MERCHANT_STAYS_OPEN,
                "collection accounts in any cell may owe a merchant money; his account stays open",
            )
        if account.balance or account.held or account.promised or account.reserved:
            return Refused(
                Reason.ACCOUNT_NOT_EMPTY,
                "the account still holds money or promises",
                {"balance_minor_units": str(account.balance)},
            )
        return Accepted(book.put(ACCOUNTS, account._replace(state=AccountState.CLOSED)))


@dataclass(frozen=True, slots=True)
class MoveMoney(PlainCommand):
    """A deposit or a withdrawal: money between a user and the world outside."""

    slot: int
    movement_id: str
    user_id: str
    direction: Direction
    amount: int
    currency: str
    idempotency: Idempotency
    resource_type = MOVEMENTS

    def accounts(self, book: Book) -> Iterable[Key]:
        return account_keys(
            account_id(self.user_id, self.currency), external_account_id(self.slot, self.currency)
        )

    def decide(self, book: Book) -> Outcome:
        user = usable(
            book.account(account_id(self.user_id, self.currency)), "user", Reason.ACCOUNT_NOT_FOUND
        )
        if isinstance(user, Refused):
            return user
        incoming = self.direction == Direction.IN
        amount = self.amount if incoming else -self.amount
        external_id = external_account_id(self.slot, self.currency)
        refused = overflow(user, self.amount) if incoming else shortage(user, self.amount)
        refused = refused or system_overflow(book.account(external_id), -amount)
        if refused:
            return refused
        external = book.system_account(self.slot, external_id, Purpose.EXTERNAL, self.currency)
        book.post(
            self.movement_id,
            "deposit" if incoming else "withdrawal",
            [Leg(external, -amount), Leg(user, amount)],
        )
        return Accepted(
            book.put(
                MOVEMENTS,
                Movement(
                    self.slot, self.movement_id, user.account_id, self.user_id, self.direction,
                    self.amount, self.currency, book.now,
                ),
            )
        )  # fmt: skip
