"""What may become of a payout. Pure: commands over the book.

The money is held when the payout is made, posted to the channel in the commit that makes it PAID,
released in the commit that makes it FAILED. What is unknown stays held.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from cells.accounts.rules import account_keys, shortage, system_overflow, usable
from cells.channels.attempts import ATTEMPTS, Attempt, AttemptState
from cells.channels.choosing import Following
from cells.channels.decisions import DECISIONS, Decision
from cells.channels.model import Answer, AnswerReason, Operation
from cells.channels.rules import channel_account, channel_account_key, heard, new_attempt
from cells.ledger.book import Book, Leg
from cells.ledger.model import (
    Accepted,
    AccountKind,
    Idempotency,
    Key,
    Outcome,
    PlainCommand,
    Reason,
    Refused,
)
from cells.payouts.model import TRANSITIONS, Payout, PayoutEvent, PayoutKind, PayoutState
from cells.payouts.tables import PAYOUTS
from router.ids import account_id, channel_account_id


@dataclass(frozen=True, slots=True)
class CreatePayout(PlainCommand):
    """Holds the money that is to go out."""

    slot: int
    payout_id: str
    user_id: str
    instrument_id: str
    amount: int
    currency: str
    description: str
    idempotency: Idempotency
    resource_type = PAYOUTS

    def accounts(self, book: Book) -> Iterable[Key]:
        return account_keys(account_id(self.user_id, self.currency))

    def decide(self, book: Book) -> Outcome:
        user = usable(
            book.account(account_id(self.user_id, self.currency)), "user", Reason.ACCOUNT_NOT_FOUND
        )
        if isinstance(user, Refused):
            return user
        refused = shortage(user, self.amount)
        if refused:
            return refused
        book.change_account(user.account_id, held=self.amount)
        kind = PayoutKind.MERCHANT if user.kind == AccountKind.MERCHANT else PayoutKind.WITHDRAWAL
        return Accepted(
            book.put(
                PAYOUTS,
                Payout(
                    self.slot, self.payout_id, self.user_id, kind, self.instrument_id, self.amount,
                    self.currency, PayoutState.HELD, AnswerReason.NONE, self.description, "", 0,
                    "", book.now, book.now,
                ),
            )
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class SendPayout(PlainCommand):
    """Writes down the request to the bank, with the decision that led to it, before it is sent."""

    slot: int
    payout_id: str
    currency: str
    following: Following
    idempotency = None
    resource_type = PAYOUTS

    def reads(self) -> Iterable[Key]:
        return (Key(PAYOUTS, self.slot, self.payout_id),)

    def accounts(self, book: Book) -> Iterable[Key]:
        return (channel_account_key(self.slot, self.following.channel, self.currency),)

    def decide(self, book: Book) -> Outcome:
        payout = book.get(PAYOUTS, self.payout_id)
        if payout is None:
            return Refused(Reason.PAYOUT_NOT_FOUND, "there is no such payout")
        state = TRANSITIONS[PayoutState(payout.state)].get(PayoutEvent.SENT)
        if state is None:
            return Accepted(payout)
        following = self.following
        lying = book.account(channel_account_id(self.slot, following.channel, payout.currency))
        refused = system_overflow(lying, payout.amount)
        if refused:
            return refused
        book.put(
            ATTEMPTS,
            new_attempt(
                self.slot, following.attempt_id, payout.payout_id, following.channel,
                Operation.PAYOUT, payout.amount, payout.currency, book.now,
            ),
        )  # fmt: skip
        book.put(
            DECISIONS,
            Decision(
                self.slot, following.attempt_id, payout.payout_id, following.document, book.now
            ),
        )
        return Accepted(
            book.put(
                PAYOUTS,
                payout._replace(
                    state=state,
                    attempt_id=following.attempt_id,
                    attempts=payout.attempts + 1,
                    channel=following.channel,
                    touched_at=book.now,
                ),
            )
        )


@dataclass(frozen=True, slots=True)
class AnswerPayout(PlainCommand):
    """A bank's answer to a payout's attempt, and what follows from it.

    `retry`: should this channel have failed cleanly, another one may be asked.
    """

    slot: int
    payout_id: str
    attempt_id: str
    user_id: str
    channel: str
    currency: str
    event_id: str
    answer: Answer
    retry: bool
    idempotency = None
    resource_type = PAYOUTS

    def reads(self) -> Iterable[Key]:
        yield Key(PAYOUTS, self.slot, self.payout_id)
        yield Key(ATTEMPTS, self.slot, self.attempt_id)

    def accounts(self, book: Book) -> Iterable[Key]:
        yield from account_keys(account_id(self.user_id, self.currency))
        yield channel_account_key(self.slot, self.channel, self.currency)

    def decide(self, book: Book) -> Outcome:
        payout = book.get(PAYOUTS, self.payout_id)
        attempt = book.get(ATTEMPTS, self.attempt_id)
        if payout is None or attempt is None or attempt.owner_id != self.payout_id:
            return Refused(Reason.ATTEMPT_NOT_FOUND, "there is no such attempt of this payout")
        answered = heard(attempt, self.answer, book.now)
        if answered != attempt:
            book.put(ATTEMPTS, answered)
        if payout.state != PayoutState.SENDING or payout.attempt_id != self.attempt_id:
            return Accepted(payout)
        event = event_of(answered, retry=self.retry)
        if event is None:
            return Accepted(payout)
        return Accepted(_advance(book, payout, event, answered.reason, self.event_id))


def event_of(attempt: Attempt, *, retry: bool) -> PayoutEvent | None:
    """What its attempt means for a payout; None: nothing yet."""
    if attempt.state == AttemptState.APPROVED:
        return PayoutEvent.APPROVED
    if attempt.state == AttemptState.FAILED:
        return PayoutEvent.FAILED if retry else PayoutEvent.REFUSED
    return PayoutEvent.REFUSED if attempt.state == AttemptState.DECLINED else None


def _advance(book: Book, payout: Payout, event: PayoutEvent, reason: str, event_id: str) -> Payout:
    state = TRANSITIONS[PayoutState(payout.state)][event]
    payout = book.put(PAYOUTS, payout._replace(state=state, reason=reason, touched_at=book.now))
    if state == PayoutState.HELD:
        return payout
    user = book.change_account(account_id(payout.user_id, payout.currency), held=-payout.amount)
    if state == PayoutState.PAID:
        lying = channel_account(book, payout.slot, payout.channel, payout.currency)
        book.post(
            payout.payout_id, "payout", [Leg(user, -payout.amount), Leg(lying, payout.amount)]
        )
    _tell(book, event_id, payout)
    return payout


@dataclass(frozen=True, slots=True)
class GiveUpPayout(PlainCommand):
    """No bank has it and none will: the hold ends. One that is under way is left alone."""

    slot: int
    payout_id: str
    user_id: str
    currency: str
    event_id: str
    reason: str
    idempotency = None
    resource_type = PAYOUTS

    def reads(self) -> Iterable[Key]:
        return (Key(PAYOUTS, self.slot, self.payout_id),)

    def accounts(self, book: Book) -> Iterable[Key]:
        return account_keys(account_id(self.user_id, self.currency))

    def decide(self, book: Book) -> Outcome:
        payout = book.get(PAYOUTS, self.payout_id)
        if payout is None:
            return Refused(Reason.PAYOUT_NOT_FOUND, "there is no such payout")
        if payout.state != PayoutState.HELD:
            return Accepted(payout)
        return Accepted(_advance(book, payout, PayoutEvent.REFUSED, self.reason, self.event_id))


@dataclass(frozen=True, slots=True)
class KeepPayout(PlainCommand):
    """No channel takes it now: it stays held, and its next turn comes later."""

    slot: int
    payout_id: str
    idempotency = None
    resource_type = PAYOUTS

    def reads(self) -> Iterable[Key]:
        return (Key(PAYOUTS, self.slot, self.payout_id),)

    def decide(self, book: Book) -> Outcome:
        payout = book.get(PAYOUTS, self.payout_id)
        if payout is None:
            return Refused(Reason.PAYOUT_NOT_FOUND, "there is no such payout")
        if payout.state != PayoutState.HELD:
            return Accepted(payout)
        return Accepted(book.put(PAYOUTS, payout._replace(touched_at=book.now)))


@dataclass(frozen=True, slots=True)
class ReturnPayout(PlainCommand):
    """The bank sent the money back after it had paid: a posting of its own. Once a payout."""

    slot: int
    payout_id: str
    attempt_id: str
    user_id: str
    channel: str
    currency: str
    event_id: str
    reason: str
    idempotency = None
    resource_type = PAYOUTS

    def reads(self) -> Iterable[Key]:
        return (Key(PAYOUTS, self.slot, self.payout_id),)

    def accounts(self, book: Book) -> Iterable[Key]:
        yield from account_keys(account_id(self.user_id, self.currency))
        yield channel_account_key(self.slot, self.channel, self.currency)

    def decide(self, book: Book) -> Outcome:
        payout = book.get(PAYOUTS, self.payout_id)
        if payout is None or payout.attempt_id != self.attempt_id:
            return Refused(Reason.PAYOUT_NOT_FOUND, "there is no such payout")
        if payout.state == PayoutState.RETURNED:
            return Accepted(payout)
        following = TRANSITIONS[PayoutState(payout.state)].get(PayoutEvent.RETURNED)
        if following is None:
            return Refused(Reason.PAYOUT_NOT_PAID, f"the payout is {payout.state}, not paid")
        user = usable(
            book.account(account_id(payout.user_id, payout.currency)),
            "user",
            Reason.ACCOUNT_NOT_FOUND,
        )
        if isinstance(user, Refused):
            # The account was closed since: reconciliation books it to suspense.
            return user
        lying = channel_account(book, payout.slot, payout.channel, payout.currency)
        book.post(
            f"{payout.payout_id}/returned",
            "payout_return",
            [Leg(lying, -payout.amount), Leg(user, payout.amount)],
        )
        payout = book.put(
            PAYOUTS, payout._replace(state=following, reason=self.reason, touched_at=book.now)
        )
        _tell(book, self.event_id, payout)
        return Accepted(payout)


def _tell(book: Book, event_id: str, payout: Payout) -> None:
    merchant = payout.user_id if payout.kind == PayoutKind.MERCHANT else ""
    book.tell(
        payout.slot,
        event_id,
        f"payout.{payout.state}",
        merchant,
        json.dumps(
            {
                "payout_id": payout.payout_id,
                "user_id": payout.user_id,
                "amount_minor_units": payout.amount,
                "currency": payout.currency,
                "reason": payout.reason,
            }
        ),
    )
