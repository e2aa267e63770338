"""What may become of a charge. Pure: commands over the book.

Money is posted in the commit that makes the charge SUCCEEDED, and in no other: a charge gets there
once, under its own row's lock, so no answer, however often or late, credits twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from cells.accounts.rules import account_keys, overflow, system_overflow, usable
from cells.channels.attempts import ATTEMPTS, Attempt, AttemptState
from cells.channels.choosing import Following
from cells.channels.decisions import DECISIONS, Decision
from cells.channels.model import Answer, AnswerReason, Operation
from cells.channels.rules import (
    channel_account,
    channel_account_key,
    heard,
    is_open,
    new_attempt,
    reversed_,
)
from cells.charges.model import (
    OPEN_CHARGES,
    TRANSITIONS,
    Charge,
    ChargeEvent,
    ChargePurpose,
    ChargeState,
    IfOrderEnded,
    RefundCause,
)
from cells.charges.refunds import begin_refund
from cells.charges.tables import CHARGES
from cells.ledger.book import Book, Leg
from cells.ledger.model import Accepted, Idempotency, Key, Outcome, PlainCommand, Reason, Refused
from cells.orders.model import OrderEvent
from cells.orders.rules import next_state
from cells.orders.tables import ORDERS
from cells.payments.rules import Pay
from router.ids import account_id, channel_account_id, collection_account_id

# Beside AnswerReason, why a charge failed.
REVERSED_REASON = "REVERSED"


@dataclass(frozen=True, slots=True)
class CreateCharge(PlainCommand):
    """Writes a charge and its first attempt down, and promises the user's account the money.

    `amount` None: the order's. `following` None: no channel takes it.
    """

    slot: int
    charge_id: str
    user_id: str
    order_id: str
    instrument_id: str
    amount: int | None
    currency: str
    if_order_ended: IfOrderEnded
    following: Following | None
    idempotency: Idempotency
    resource_type = CHARGES

    def reads(self) -> Iterable[Key]:
        return (Key(ORDERS, self.slot, self.order_id),) if self.order_id else ()

    def accounts(self, book: Book) -> Iterable[Key]:
        yield from account_keys(account_id(self.user_id, self.currency))
        if self.following is not None:
            yield channel_account_key(self.slot, self.following.channel, self.currency)

    def decide(self, book: Book) -> Outcome:
        order = book.get(ORDERS, self.order_id) if self.order_id else None
        if self.order_id:
            if order is None or order.payer_id != self.user_id:
                return Refused(Reason.ORDER_NOT_FOUND, "the user has no such order")
            state = next_state(order, OrderEvent.PAY)
            if isinstance(state, Refused):
                return state
            if order.currency != self.currency:
                return Refused(Reason.CURRENCY_MISMATCH, f"the order is in {order.currency}")
        amount = self.amount if order is None else order.amount
        if amount is None or self.amount not in (None, amount):
            return Refused(
                Reason.AMOUNT_MISMATCH,
                "a charge for an order is of the order's amount",
                {"amount_minor_units": str(amount or 0), "currency": self.currency},
            )
        user = usable(
            book.account(account_id(self.user_id, self.currency)), "user", Reason.ACCOUNT_NOT_FOUND
        )
        if isinstance(user, Refused):
            return user
        if self.following is None:
            return Refused(Reason.NO_CHANNEL, "no channel takes this charge now")
        lying = book.account(channel_account_id(self.slot, self.following.channel, self.currency))
        refused = overflow(user, amount) or system_overflow(lying, -amount)
        if refused:
            return refused
        book.change_account(user.account_id, promised=amount)
        charge = Charge(
            self.slot, self.charge_id, self.user_id,
            ChargePurpose.ORDER if order else ChargePurpose.TOP_UP,
            self.order_id, order.merchant_id if order else "", self.if_order_ended,
            self.instrument_id, amount, self.currency, 0, ChargeState.PROCESSING,
            AnswerReason.NONE, "", 0, "", "", book.now,
        )  # fmt: skip
        return Accepted(book.put(CHARGES, _attempted(book, charge, self.following)))


def _attempted(book: Book, charge: Charge, following: Following) -> Charge:
    """The charge with another attempt, written down with the decision that led to it."""
    book.put(
        ATTEMPTS,
        new_attempt(
            charge.slot, following.attempt_id, charge.charge_id, following.channel,
            Operation.AUTHORISE, charge.amount, charge.currency, book.now,
        ),
    )  # fmt: skip
    book.put(
        DECISIONS,
        Decision(charge.slot, following.attempt_id, charge.charge_id, following.document, book.now),
    )
    return charge._replace(attempt_id=following.attempt_id, attempts=charge.attempts + 1)


def event_of(
    charge: Charge, authorise: Attempt, void: Attempt | None, *, can_go_on: bool
) -> ChargeEvent | None:
    """What its attempts mean for a charge; None: nothing (yet).

    authorise    void            in PROCESSING           in REVERSING
    approved     -               APPROVED                -
    declined     -               REFUSED                 -
    failed       -               REROUTED, or REFUSED    -
    any          open            -                       nothing: the VOID's end decides
    any          approved        -                       REVERSED
    approved     no effect       -                       APPROVED
    no effect    no effect       -                       REFUSED
    open         no effect       nothing                 nothing: it is asked about, voided anew
    """
    state = AttemptState(authorise.state)
    if charge.state == ChargeState.REVERSING:
        assert void is not None
        if is_open(void):
            return None
        if void.state == AttemptState.APPROVED:
            return ChargeEvent.REVERSED
    elif charge.state != ChargeState.PROCESSING:
        return None
    if state == AttemptState.APPROVED:
        return ChargeEvent.APPROVED
    if state == AttemptState.DECLINED:
        return ChargeEvent.REFUSED
    if state == AttemptState.FAILED:
        goes_on = can_go_on and charge.state == ChargeState.PROCESSING
        return ChargeEvent.REROUTED if goes_on else ChargeEvent.REFUSED
    return None


def charge_keys(book: Book, charge_id: str) -> Iterable[Key]:
    """What an answer to one of its attempts may change, beside the attempt itself."""
    charge = book.get(CHARGES, charge_id)
    if charge is None:
        return
    slot, currency = charge.slot, charge.currency
    for attempt_id in (charge.attempt_id, charge.void_id):
        if attempt_id:
            yield Key(ATTEMPTS, slot, attempt_id)
    yield from account_keys(account_id(charge.user_id, currency))
    if charge.merchant_id:
        yield from account_keys(collection_account_id(slot, charge.merchant_id, currency))


@dataclass(frozen=True, slots=True)
class AnswerCharge(PlainCommand):
    """A bank's answer to an attempt of a charge, and all that follows from it, in one commit.

    `following`: where to go on should this channel have failed cleanly. The other IDs are for what
    may come of it. Repeats, late and contradictory answers change no money.
    """

    slot: int
    charge_id: str
    attempt_id: str
    channel: str
    currency: str
    order_id: str
    event_id: str
    payment_id: str
    payment_event_id: str
    refund_id: str
    answer: Answer
    following: Following | None = None
    idempotency = None
    resource_type = CHARGES

    def reads(self) -> Iterable[Key]:
        yield Key(CHARGES, self.slot, self.charge_id)
        yield Key(ATTEMPTS, self.slot, self.attempt_id)
        if self.order_id:
            yield Key(ORDERS, self.slot, self.order_id)

    def accounts(self, book: Book) -> Iterable[Key]:
        yield from charge_keys(book, self.charge_id)
        yield channel_account_key(self.slot, self.channel, self.currency)

    def decide(self, book: Book) -> Outcome:
        charge = book.get(CHARGES, self.charge_id)
        attempt = book.get(ATTEMPTS, self.attempt_id)
        if charge is None or attempt is None or attempt.owner_id != self.charge_id:
            return Refused(Reason.ATTEMPT_NOT_FOUND, "there is no such attempt of this charge")
        answered = heard(attempt, self.answer, book.now)
        if answered != attempt:
            book.put(ATTEMPTS, answered)
        if charge.state not in OPEN_CHARGES:
            return Accepted(charge)
        authorise = book.get(ATTEMPTS, charge.attempt_id)
        void = book.get(ATTEMPTS, charge.void_id) if charge.void_id else None
        assert authorise is not None
        event = event_of(charge, authorise, void, can_go_on=self.following is not None)
        if event is None:
            return Accepted(charge)
        following = TRANSITIONS[ChargeState(charge.state)][event]
        charge = charge._replace(state=following)
        if event == ChargeEvent.REROUTED:
            assert self.following is not None
            return Accepted(book.put(CHARGES, _attempted(book, charge, self.following)))
        if following == ChargeState.SUCCEEDED:
            return Accepted(self._settle(book, charge, authorise))
        return Accepted(self._give_up(book, charge, authorise, event))

    def _settle(self, book: Book, charge: Charge, authorise: Attempt) -> Charge:
        user_id = account_id(charge.user_id, charge.currency)
        user = book.change_account(user_id, promised=-charge.amount)
        lying = channel_account(book, charge.slot, authorise.channel, charge.currency)
        book.post(
            charge.charge_id, "charge", [Leg(lying, -charge.amount), Leg(user, charge.amount)]
        )
        if charge.order_id:
            charge = self._pay(book, charge, authorise)
        book.put(CHARGES, charge)
        tell_charge(book, self.event_id, charge)
        return charge

    def _pay(self, book: Book, charge: Charge, authorise: Attempt) -> Charge:
        """The order, from the balance; if it was paid or closed meanwhile, as was agreed."""
        pay = Pay(
            charge.slot, self.payment_id, self.payment_event_id, charge.order_id,
            charge.charge_id, "",
        )  # fmt: skip
        paid = pay.decide(book)
        if isinstance(paid, Accepted):
            return charge._replace(payment_id=paid.resource.payment_id)
        if charge.if_order_ended == IfOrderEnded.GIVE_BACK:
            return begin_refund(
                book, charge, authorise, self.refund_id, charge.amount,
                RefundCause.ORDER_ENDED, paid.reason,
            )  # fmt: skip
        return charge

    def _give_up(
        self, book: Book, charge: Charge, authorise: Attempt, event: ChargeEvent
    ) -> Charge:
        book.change_account(account_id(charge.user_id, charge.currency), promised=-charge.amount)
        reason: str = authorise.reason
        if event == ChargeEvent.REVERSED:
            undone = reversed_(authorise, book.now)
            if undone != authorise:
                book.put(ATTEMPTS, undone)
                reason = REVERSED_REASON
        charge = book.put(CHARGES, charge._replace(reason=reason))
        tell_charge(book, self.event_id, charge)
        return charge


@dataclass(frozen=True, slots=True)
class ReverseCharge(PlainCommand):
    """An attempt is unknown for too long: a VOID of it is written down, to be sent.

    Also when a VOID ended without effect while nothing else is known. Never two at once.
    """

    slot: int
    charge_id: str
    void_id: str
    idempotency = None
    resource_type = CHARGES

    def reads(self) -> Iterable[Key]:
        return (Key(CHARGES, self.slot, self.charge_id),)

    def accounts(self, book: Book) -> Iterable[Key]:
        charge = book.get(CHARGES, self.charge_id)
        if charge is not None:
            for attempt_id in (charge.attempt_id, charge.void_id):
                if attempt_id:
                    yield Key(ATTEMPTS, self.slot, attempt_id)

    def decide(self, book: Book) -> Outcome:
        charge = book.get(CHARGES, self.charge_id)
        if charge is None:
            return Refused(Reason.CHARGE_NOT_FOUND, "there is no such charge")
        following = TRANSITIONS[ChargeState(charge.state)].get(ChargeEvent.OVERDUE)
        authorise = book.get(ATTEMPTS, charge.attempt_id)
        void = book.get(ATTEMPTS, charge.void_id) if charge.void_id else None
        assert authorise is not None
        if following is None or not is_open(authorise) or (void is not None and is_open(void)):
            return Accepted(charge)
        book.put(
            ATTEMPTS,
            new_attempt(
                self.slot, self.void_id, self.charge_id, authorise.channel, Operation.VOID,
                authorise.amount, authorise.currency, book.now, authorise.attempt_id,
            ),
        )  # fmt: skip
        return Accepted(book.put(CHARGES, charge._replace(state=following, void_id=self.void_id)))


def tell_charge(book: Book, event_id: str, charge: Charge) -> None:
    book.tell(
        charge.slot,
        event_id,
        f"charge.{charge.state}",
        charge.merchant_id,
        json.dumps(
            {
                "charge_id": charge.charge_id,
                "user_id": charge.user_id,
                "order_id": charge.order_id,
                "amount_minor_units": charge.amount,
                "currency": charge.currency,
                "reason": charge.reason,
            }
        ),
    )
