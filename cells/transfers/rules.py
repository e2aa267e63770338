"""What each side of a transfer may decide. Pure: commands over the book."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from cells.accounts.rules import account_keys, overflow, shortage, system_overflow, usable
from cells.ledger.book import Book, Leg
from cells.ledger.model import (
    Accepted,
    Account,
    Idempotency,
    Key,
    Outcome,
    PlainCommand,
    Reason,
    Refused,
)
from cells.transfers.model import (
    TRANSITIONS,
    Branch,
    BranchState,
    Transfer,
    TransferEvent,
    TransferKind,
    TransferState,
)
from cells.transfers.tables import BRANCHES, TRANSFERS
from router.ids import Kind, Purpose, clearing_account_id, derive, slot_of_id


def branch_id(payee_account_id: str, transfer_id: str) -> str:
    """One branch a transfer, in the payee's slot."""
    return derive(Kind.BRANCH, slot_of_id(payee_account_id), transfer_id)


@dataclass(frozen=True, slots=True)
class BeginTransfer(PlainCommand):
    """Moves the money at once when this cell owns both slots; else holds it (the payer's try).

    Settlement takes what is there: `amount` None means all that is free.
    """

    slot: int
    transfer_id: str
    event_id: str
    kind: TransferKind
    payer_id: str
    payee_id: str
    payer_account_id: str
    payee_account_id: str
    amount: int | None
    currency: str
    description: str
    # None: settlement, where a repeat finds nothing free.
    idempotency: Idempotency | None
    resource_type = TRANSFERS

    def other_slots(self) -> Iterable[int]:
        return (slot_of_id(self.payee_account_id),)

    def accounts(self, book: Book) -> Iterable[Key]:
        if book.owns(slot_of_id(self.payee_account_id)):
            return account_keys(self.payer_account_id, self.payee_account_id)
        clearing = clearing_account_id(self.slot, self.currency)
        return account_keys(self.payer_account_id, clearing)

    def decide(self, book: Book) -> Outcome:
        payer = usable(book.account(self.payer_account_id), "payer", Reason.PAYER_NOT_FOUND)
        if isinstance(payer, Refused):
            return payer
        here = book.owns(slot_of_id(self.payee_account_id))
        payee: Account | None = None
        if here:
            found = usable(
                book.account(self.payee_account_id),
                "payee",
                Reason.PAYEE_NOT_FOUND,
                self.currency,
            )
            if isinstance(found, Refused):
                return found
            payee = found
        free = payer.available - payer.reserved
        amount = free if self.amount is None else self.amount
        if amount <= 0:
            return Refused(Reason.NOTHING_TO_SETTLE, "there is nothing to settle")
        refused = shortage(payer, amount) or self._overflow(book, payee, amount)
        if refused:
            return refused
        transfer = Transfer(
            self.slot, self.transfer_id, self.kind, self.payer_id, self.payee_id,
            self.payer_account_id, self.payee_account_id, amount, self.currency,
            TransferState.CONFIRMED if payee else TransferState.TRYING,
            self.description, "", book.now, book.now,
        )  # fmt: skip
        if payee:
            book.post(self.transfer_id, self.kind, [Leg(payer, -amount), Leg(payee, amount)])
            _tell(book, self.event_id, transfer)
        else:
            book.change_account(payer.account_id, held=amount)
        return Accepted(book.put(TRANSFERS, transfer))

    def _overflow(self, book: Book, payee: Account | None, amount: int) -> Refused | None:
        """Asked before anything is promised: a decided transfer may not fail."""
        if payee is not None:
            return overflow(payee, amount)
        clearing = book.account(clearing_account_id(self.slot, self.currency))
        return system_overflow(clearing, amount)


@dataclass(frozen=True, slots=True)
class AdvanceTransfer(PlainCommand):
    """The decision, or the end, of a transfer across cells. Repeating it changes nothing.

    Commit is the coordinator's record and the payer's confirm in one transaction (pitfall 4).
    """

    slot: int
    transfer_id: str
    event_id: str
    event: TransferEvent
    reason: str = ""
    idempotency = None
    resource_type = TRANSFERS

    def reads(self) -> Iterable[Key]:
        return (Key(TRANSFERS, self.slot, self.transfer_id),)

    def accounts(self, book: Book) -> Iterable[Key]:
        transfer = book.get(TRANSFERS, self.transfer_id)
        if transfer is None or self.event == TransferEvent.END:
            return ()
        clearing = clearing_account_id(self.slot, transfer.currency)
        return account_keys(transfer.payer_account_id, clearing)

    def decide(self, book: Book) -> Outcome:
        transfer = book.get(TRANSFERS, self.transfer_id)
        if transfer is None:
            return Refused(Reason.TRANSFER_NOT_FOUND, "there is no such transfer")
        following = TRANSITIONS[TransferState(transfer.state)].get(self.event)
        if following is None:
            return Accepted(transfer)
        if self.event != TransferEvent.END:
            book.change_account(transfer.payer_account_id, held=-transfer.amount)
        if self.event == TransferEvent.COMMIT:
            payer = book.account(transfer.payer_account_id)
            assert payer is not None
            clearing = book.system_account(
                self.slot,
                clearing_account_id(self.slot, transfer.currency),
                Purpose.CLEARING,
                transfer.currency,
            )
            book.post(
                f"{transfer.transfer_id}/payer",
                transfer.kind,
                [Leg(payer, -transfer.amount), Leg(clearing, transfer.amount)],
            )
        advanced = transfer._replace(
            state=following,
            cancel_reason=self.reason
            if self.event == TransferEvent.CANCEL
            else transfer.cancel_reason,
            touched_at=book.now,
        )
        if self.event == TransferEvent.END:
            _tell(book, self.event_id, advanced)
        return Accepted(book.put(TRANSFERS, advanced))


def _tell(book: Book, event_id: str, transfer: Transfer) -> None:
    book.tell(
        transfer.slot,
        event_id,
        f"{transfer.kind}.{transfer.state}",
        "",
        json.dumps(
            {
                "transfer_id": transfer.transfer_id,
                "payer_id": transfer.payer_id,
                "payee_id": transfer.payee_id,
                "amount_minor_units": transfer.amount,
                "currency": transfer.currency,
            }
        ),
    )


@dataclass(frozen=True, slots=True)
class TryBranch(PlainCommand):
    """Promises that the payee will take the money, unless a cancel came first."""

    slot: int
    transfer_id: str
    payee_account_id: str
    amount: int
    currency: str
    idempotency = None
    resource_type = BRANCHES

    def reads(self) -> Iterable[Key]:
        return (Key(BRANCHES, self.slot, branch_id(self.payee_account_id, self.transfer_id)),)

    def accounts(self, book: Book) -> Iterable[Key]:
        clearing = clearing_account_id(self.slot, self.currency)
        return account_keys(self.payee_account_id, clearing)

    def decide(self, book: Book) -> Outcome:
        identifier = branch_id(self.payee_account_id, self.transfer_id)
        known = book.get(BRANCHES, identifier)
        if known is not None:
            if known.state == BranchState.CANCELLED:
                return Refused(Reason.BRANCH_CANCELLED, "the branch was cancelled before this try")
            if (known.amount, known.currency) != (self.amount, self.currency):
                return Refused(
                    Reason.EXISTS_WITH_DIFFERENT_AMOUNT, "the branch was tried with another amount"
                )
            return Accepted(known)
        payee = usable(
            book.account(self.payee_account_id), "payee", Reason.PAYEE_NOT_FOUND, self.currency
        )
        if isinstance(payee, Refused):
            return payee
        clearing = book.account(clearing_account_id(self.slot, self.currency))
        refused = overflow(payee, self.amount) or system_overflow(clearing, -self.amount)
        if refused:
            return refused
        book.change_account(payee.account_id, promised=self.amount)
        return Accepted(
            book.put(
                BRANCHES,
                Branch(
                    self.slot, identifier, self.transfer_id, self.payee_account_id, self.amount,
                    self.currency, BranchState.TRIED, book.now,
                ),
            )
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class EndBranch(PlainCommand):
    """Confirm or cancel of the payee's side; both idempotent, cancel also without a try."""

    slot: int
    transfer_id: str
    payee_account_id: str
    confirm: bool
    idempotency = None
    resource_type = BRANCHES

    def reads(self) -> Iterable[Key]:
        return (Key(BRANCHES, self.slot, branch_id(self.payee_account_id, self.transfer_id)),)

    def accounts(self, book: Book) -> Iterable[Key]:
        branch = book.get(BRANCHES, branch_id(self.payee_account_id, self.transfer_id))
        if branch is None:
            return ()
        clearing = clearing_account_id(self.slot, branch.currency)
        return account_keys(branch.payee_account_id, clearing)

    def decide(self, book: Book) -> Outcome:
        branch = book.get(BRANCHES, branch_id(self.payee_account_id, self.transfer_id))
        return self._confirm(book, branch) if self.confirm else self._cancel(book, branch)

    def _confirm(self, book: Book, branch: Branch | None) -> Outcome:
        if branch is None:
            return Refused(Reason.BRANCH_NOT_FOUND, "the branch was never tried")
        if branch.state == BranchState.CANCELLED:
            return Refused(Reason.BRANCH_CANCELLED, "the branch was cancelled")
        if branch.state == BranchState.CONFIRMED:
            return Accepted(branch)
        book.change_account(branch.payee_account_id, promised=-branch.amount)
        payee = book.account(branch.payee_account_id)
        assert payee is not None
        clearing = book.system_account(
            self.slot,
            clearing_account_id(self.slot, branch.currency),
            Purpose.CLEARING,
            branch.currency,
        )
        book.post(
            f"{self.transfer_id}/payee",
            "transfer",
            [Leg(clearing, -branch.amount), Leg(payee, branch.amount)],
        )
        return Accepted(book.put(BRANCHES, branch._replace(state=BranchState.CONFIRMED)))

    def _cancel(self, book: Book, branch: Branch | None) -> Outcome:
        if branch is None:
            # Null cancel: bar the try that may still come.
            return Accepted(
                book.put(
                    BRANCHES,
                    Branch(
                        self.slot, branch_id(self.payee_account_id, self.transfer_id),
                        self.transfer_id, self.payee_account_id, 0, "", BranchState.CANCELLED,
                        book.now,
                    ),
                )
            )  # fmt: skip
        if branch.state == BranchState.CONFIRMED:
            return Refused(Reason.BRANCH_CONFIRMED, "the branch was confirmed")
        if branch.state == BranchState.TRIED:
            book.change_account(branch.payee_account_id, promised=-branch.amount)
            branch = book.put(BRANCHES, branch._replace(state=BranchState.CANCELLED))
        return Accepted(branch)
