"""What may become of a charge's refund. Pure: commands over the book.

The user's money is held first, posted to the channel when the bank approved, released when it
surely failed. The sum of refunds is bounded under the charge's lock, in-doubt ones included
(pitfall 29). A refund that is unknown stays so, and its hold with it, until the bank says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from cells.accounts.rules import account_keys, shortage, system_overflow, usable
from cells.channels.attempts import ATTEMPTS, Attempt, AttemptState
from cells.channels.model import Answer, AnswerReason, Operation
from cells.channels.rules import (
    channel_account,
    channel_account_key,
    heard,
    new_attempt,
)
from cells.charges.model import (
    REFUND_TRANSITIONS,
    Charge,
    ChargeRefund,
    ChargeState,
    RefundCause,
    RefundEvent,
    RefundState,
)
from cells.charges.tables import CHARGE_REFUNDS, CHARGES
from cells.ledger.book import Book, Leg
from cells.ledger.model import Accepted, Idempotency, Key, Outcome, PlainCommand, Reason, Refused
from router.ids import account_id, channel_account_id


def begin_refund(
    book: Book,
    charge: Charge,
    authorise: Attempt,
    refund_id: str,
    amount: int,
    cause: RefundCause,
    reason: str,
) -> Charge:
    """Holds the money and counts it against the charge; the money must be there."""
    book.change_account(account_id(charge.user_id, charge.currency), held=amount)
    book.put(
        CHARGE_REFUNDS,
        ChargeRefund(
            charge.slot, refund_id, charge.charge_id, charge.user_id, cause, authorise.channel,
            authorise.attempt_id, amount, charge.currency, RefundState.HELD, reason,
            AnswerReason.NONE, "", 0, book.now, book.now,
        ),
    )  # fmt: skip
    return charge._replace(refunded=charge.refunded + amount)


@dataclass(frozen=True, slots=True)
class RefundCharge(PlainCommand):
    """Gives money back to where a charge took it from. `amount` None: all that is left."""

    slot: int
    refund_id: str
    charge_id: str
    amount: int | None
    currency: str | None
    reason: str
    idempotency: Idempotency
    resource_type = CHARGE_REFUNDS

    def reads(self) -> Iterable[Key]:
        return (Key(CHARGES, self.slot, self.charge_id),)

    def accounts(self, book: Book) -> Iterable[Key]:
        charge = book.get(CHARGES, self.charge_id)
        if charge is not None:
            yield Key(ATTEMPTS, self.slot, charge.attempt_id)
            yield from account_keys(account_id(charge.user_id, charge.currency))

    def decide(self, book: Book) -> Outcome:
        charge = book.get(CHARGES, self.charge_id)
        if charge is None:
            return Refused(Reason.CHARGE_NOT_FOUND, "there is no such charge")
        user = usable(
            book.account(account_id(charge.user_id, charge.currency)),
            "user",
            Reason.ACCOUNT_NOT_FOUND,
        )
        if isinstance(user, Refused):
            return user
        if charge.state != ChargeState.SUCCEEDED:
            return Refused(Reason.CHARGE_NOT_SUCCEEDED, f"the charge is {charge.state}")
        if self.currency is not None and self.currency != charge.currency:
            return Refused(Reason.CURRENCY_MISMATCH, f"the charge was in {charge.currency}")
        left = charge.amount - charge.refunded
        amount = left if self.amount is None else self.amount
        if amount > left or amount == 0:
            return Refused(
                Reason.REFUND_EXCEEDS_CHARGE,
                "the refund exceeds what is left of the charge",
                {"refundable_minor_units": str(left), "currency": charge.currency},
            )
        authorise = book.get(ATTEMPTS, charge.attempt_id)
        assert authorise is not None
        refused = shortage(user, amount)
        if refused:
            return refused
        book.put(
            CHARGES,
            begin_refund(
                book, charge, authorise, self.refund_id, amount, RefundCause.REQUESTED, self.reason
            ),
        )
        refund = book.get(CHARGE_REFUNDS, self.refund_id)
        assert refund is not None
        return Accepted(refund)


@dataclass(frozen=True, slots=True)
class SendRefund(PlainCommand):
    """Writes down the request to the bank, before it is sent."""

    slot: int
    refund_id: str
    attempt_id: str
    channel: str
    currency: str
    idempotency = None
    resource_type = CHARGE_REFUNDS

    def reads(self) -> Iterable[Key]:
        return (Key(CHARGE_REFUNDS, self.slot, self.refund_id),)

    def accounts(self, book: Book) -> Iterable[Key]:
        return (channel_account_key(self.slot, self.channel, self.currency),)

    def decide(self, book: Book) -> Outcome:
        refund = book.get(CHARGE_REFUNDS, self.refund_id)
        if refund is None:
            return Refused(Reason.REFUND_NOT_FOUND, "there is no such refund")
        following = REFUND_TRANSITIONS[RefundState(refund.state)].get(RefundEvent.SENT)
        if following is None:
            return Accepted(refund)
        lying = book.account(channel_account_id(self.slot, refund.channel, refund.currency))
        refused = system_overflow(lying, refund.amount)
        if refused:
            return refused
        book.put(
            ATTEMPTS,
            new_attempt(
                self.slot, self.attempt_id, refund.refund_id, refund.channel, Operation.REFUND,
                refund.amount, refund.currency, book.now, refund.original_id,
            ),
        )  # fmt: skip
        return Accepted(
            book.put(
                CHARGE_REFUNDS,
                refund._replace(
                    state=following,
                    attempt_id=self.attempt_id,
                    attempts=refund.attempts + 1,
                    touched_at=book.now,
                ),
            )
        )


@dataclass(frozen=True, slots=True)
class AnswerRefund(PlainCommand):
    """A bank's answer to a refund's attempt, and what follows. `retry`: it may be asked again."""

    slot: int
    refund_id: str
    charge_id: str
    attempt_id: str
    user_id: str
    channel: str
    currency: str
    event_id: str
    answer: Answer
    retry: bool
    idempotency = None
    resource_type = CHARGE_REFUNDS

    def reads(self) -> Iterable[Key]:
        yield Key(CHARGES, self.slot, self.charge_id)
        yield Key(CHARGE_REFUNDS, self.slot, self.refund_id)
        yield Key(ATTEMPTS, self.slot, self.attempt_id)

    def accounts(self, book: Book) -> Iterable[Key]:
        yield from account_keys(account_id(self.user_id, self.currency))
        yield channel_account_key(self.slot, self.channel, self.currency)

    def decide(self, book: Book) -> Outcome:
        refund = book.get(CHARGE_REFUNDS, self.refund_id)
        attempt = book.get(ATTEMPTS, self.attempt_id)
        if refund is None or attempt is None or attempt.owner_id != self.refund_id:
            return Refused(Reason.ATTEMPT_NOT_FOUND, "there is no such attempt of this refund")
        answered = heard(attempt, self.answer, book.now)
        if answered != attempt:
            book.put(ATTEMPTS, answered)
        if refund.state != RefundState.SENDING or refund.attempt_id != self.attempt_id:
            return Accepted(refund)
        event = refund_event_of(answered, retry=self.retry)
        if event is None:
            return Accepted(refund)
        following = REFUND_TRANSITIONS[RefundState(refund.state)][event]
        refund = book.put(
            CHARGE_REFUNDS,
            refund._replace(state=following, failure=answered.reason, touched_at=book.now),
        )
        if following != RefundState.HELD:
            end_refund(book, self.event_id, refund)
        return Accepted(refund)


def refund_event_of(attempt: Attempt, *, retry: bool) -> RefundEvent | None:
    if attempt.state == AttemptState.APPROVED:
        return RefundEvent.APPROVED
    if attempt.state == AttemptState.FAILED:
        return RefundEvent.FAILED if retry else RefundEvent.REFUSED
    return RefundEvent.REFUSED if attempt.state == AttemptState.DECLINED else None


def end_refund(book: Book, event_id: str, refund: ChargeRefund) -> None:
    """The hold ends: its money goes to the channel, or is the user's again."""
    user = book.change_account(account_id(refund.user_id, refund.currency), held=-refund.amount)
    if refund.state == RefundState.SUCCEEDED:
        lying = channel_account(book, refund.slot, refund.channel, refund.currency)
        book.post(
            refund.refund_id,
            "charge_refund",
            [Leg(user, -refund.amount), Leg(lying, refund.amount)],
        )
    else:
        charge = book.get(CHARGES, refund.charge_id)
        assert charge is not None
        book.put(CHARGES, charge._replace(refunded=charge.refunded - refund.amount))
    book.tell(
        refund.slot,
        event_id,
        f"charge_refund.{refund.state}",
        "",
        json.dumps(
            {
                "refund_id": refund.refund_id,
                "charge_id": refund.charge_id,
                "user_id": refund.user_id,
                "amount_minor_units": refund.amount,
                "currency": refund.currency,
                "reason": refund.failure,
            }
        ),
    )
