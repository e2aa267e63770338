"""May this payment go, what entries does it make; refunds that never exceed it. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quoted

from cells.accounts.rules import account_keys, overflow, shortage, usable
from cells.ledger.book import Book, Leg
from cells.ledger.model import (
    Accepted,
    Account,
    AccountKind,
    Idempotency,
    Key,
    Outcome,
    PlainCommand,
    Reason,
    Refused,
)
from cells.ledger.tables import ACCOUNTS
from cells.orders.model import Order, OrderEvent
from cells.orders.rules import next_state
from cells.orders.tables import ORDERS
from cells.payments.model import TRANSITIONS, Payment, Refund, RefundEvent, RefundState
from cells.payments.tables import PAYMENTS, REFUNDS
from router.ids import Purpose, account_id, collection_account_id


@dataclass(frozen=True, slots=True)
class Pay(PlainCommand):
    """An order is paid from its payer's balance into the collection account of the payer's slot.

    `key` and `request_hash` are kept in the payment: the order leads a repeat to it.
    """

    slot: int
    payment_id: str
    event_id: str
    order_id: str
    key: str
    request_hash: str
    idempotency = None
    resource_type = PAYMENTS

    def reads(self) -> Iterable[Key]:
        return (Key(ORDERS, self.slot, self.order_id),)

    def accounts(self, book: Book) -> Iterable[Key]:
        order = book.get(ORDERS, self.order_id)
        if order is None:
            return ()
        if order.payment_id:
            return (Key(PAYMENTS, self.slot, order.payment_id),)
        # Both in this slot (docs/decisions/0001-collection-accounts-per-slot.md).
        payer = account_id(order.payer_id, order.currency)
        collection = collection_account_id(self.slot, order.merchant_id, order.currency)
        return (Key(ACCOUNTS, self.slot, payer), Key(ACCOUNTS, self.slot, collection))

    def decide(self, book: Book) -> Outcome:
        order = book.get(ORDERS, self.order_id)
        if order is None:
            return Refused(Reason.ORDER_NOT_FOUND, "there is no such order")
        if order.payment_id:
            before = self.existing(book)
            if before is not None:
                return before
        state = next_state(order, OrderEvent.PAY)
        if isinstance(state, Refused):
            return state
        payer = usable(
            book.account(account_id(order.payer_id, order.currency)),
            "payer",
            Reason.PAYER_NOT_FOUND,
        )
        if isinstance(payer, Refused):
            return payer
        refused = shortage(payer, order.amount)
        if refused:
            return refused
        collection_id = collection_account_id(self.slot, order.merchant_id, order.currency)
        collection = book.account(collection_id) or book.new_account(
            self.slot,
            collection_id,
            order.merchant_id,
            order.currency,
            Purpose.COLLECTION,
            AccountKind.MERCHANT,
        )
        refused = overflow(collection, order.amount)
        if refused:
            return refused
        book.post(
            self.payment_id, "payment", [Leg(payer, -order.amount), Leg(collection, order.amount)]
        )
        # By position: `_replace` by name costs three times as much.
        book.put(ORDERS, Order(*order[:6], state, order.description, self.payment_id, order[9]))
        payment = Payment(
            self.slot, self.payment_id, order.order_id, order.payer_id, order.merchant_id,
            order.amount, order.currency, 0, self.key, self.request_hash, book.now,
        )  # fmt: skip
        # Written by hand, as json.dumps would: it is in the path of every payment.
        told = (
            f'{{"payment_id": "{self.payment_id}", "order_id": "{order.order_id}", '
            f'"payer_id": {quoted(order.payer_id)}, "merchant_id": {quoted(order.merchant_id)}, '
            f'"amount_minor_units": {order.amount}, "currency": "{order.currency}"}}'
        )
        book.tell(self.slot, self.event_id, "payment.succeeded", order.merchant_id, told)
        return Accepted(book.put(PAYMENTS, payment))

    def existing(self, book: Book) -> Outcome | None:
        """The outcome of this request's first run, if the order's payment was made by it."""
        order = book.get(ORDERS, self.order_id)
        payment = book.get(PAYMENTS, order.payment_id) if order and order.payment_id else None
        if payment is None or payment.idempotency_key != self.key:
            return None
        if payment.request_hash != self.request_hash:
            return Refused(
                Reason.EXISTS_WITH_DIFFERENT_INPUT,
                "this idempotency key was used before, with other input",
                {"resource": payment.payment_id},
            )
        return Accepted(payment, replayed=True)


def refund_accounts(book: Book, payment: Payment) -> tuple[Account | None, Account | None]:
    """The collection account it comes from and the payer's account it goes to."""
    return (
        book.account(collection_account_id(payment.slot, payment.merchant_id, payment.currency)),
        book.account(account_id(payment.payer_id, payment.currency)),
    )


def _refund_keys(payment: Payment | Refund) -> list[Key]:
    return account_keys(
        collection_account_id(payment.slot, payment.merchant_id, payment.currency),
        account_id(payment.payer_id, payment.currency),
    )


def _tell_refund(book: Book, event_id: str, refund: Refund) -> None:
    book.tell(
        refund.slot,
        event_id,
        f"refund.{refund.state}",
        refund.merchant_id,
        json.dumps(
            {
                "refund_id": refund.refund_id,
                "payment_id": refund.payment_id,
                "amount_minor_units": refund.amount,
                "currency": refund.currency,
            }
        ),
    )


@dataclass(frozen=True, slots=True)
class RefundPayment(PlainCommand):
    """Gives money back. `amount` None: all that is left.

    When the collection account has been settled already, the refund stays pending: its money is
    reserved at the payment and fetched from the merchant's home (pitfall 29: in-doubt ones count).
    """

    slot: int
    refund_id: str
    event_id: str
    payment_id: str
    amount: int | None
    currency: str | None
    reason: str
    idempotency: Idempotency
    resource_type = REFUNDS

    def reads(self) -> Iterable[Key]:
        return (Key(PAYMENTS, self.slot, self.payment_id),)

    def accounts(self, book: Book) -> Iterable[Key]:
        payment = book.get(PAYMENTS, self.payment_id)
        return _refund_keys(payment) if payment else ()

    def decide(self, book: Book) -> Outcome:
        payment = book.get(PAYMENTS, self.payment_id)
        if payment is None:
            return Refused(Reason.PAYMENT_NOT_FOUND, "there is no such payment")
        collection, payer_found = refund_accounts(book, payment)
        payer = usable(payer_found, "payer", Reason.PAYER_NOT_FOUND)
        if isinstance(payer, Refused):
            return payer
        if collection is None:
            return Refused(Reason.ACCOUNT_NOT_FOUND, "the payment has no collection account")
        if self.currency is not None and self.currency != payment.currency:
            return Refused(Reason.CURRENCY_MISMATCH, f"the payment was in {payment.currency}")
        left = payment.amount - payment.refunded
        amount = left if self.amount is None else self.amount
        if amount > left or amount == 0:
            return Refused(
                Reason.REFUND_EXCEEDS_PAYMENT,
                "the refund exceeds what is left of the payment",
                {"refundable_minor_units": str(left), "currency": payment.currency},
            )
        refused = overflow(payer, amount)
        if refused:
            return refused
        book.put(PAYMENTS, payment._replace(refunded=payment.refunded + amount))
        funded = collection.available - collection.reserved >= amount
        refund = Refund(
            self.slot, self.refund_id, payment.payment_id, payment.payer_id, payment.merchant_id,
            amount, payment.currency, RefundState.SUCCEEDED if funded else RefundState.PENDING,
            self.reason, book.now,
        )  # fmt: skip
        if funded:
            book.post(self.refund_id, "refund", [Leg(collection, -amount), Leg(payer, amount)])
            _tell_refund(book, self.event_id, refund)
        else:
            book.change_account(collection.account_id, reserved=amount)
            book.change_account(payer.account_id, promised=amount)
        return Accepted(book.put(REFUNDS, refund))


@dataclass(frozen=True, slots=True)
class EndRefund(PlainCommand):
    """A pending refund ends: its money has come from the merchant's home, or will not."""

    slot: int
    refund_id: str
    event_id: str
    event: RefundEvent
    idempotency = None
    resource_type = REFUNDS

    def reads(self) -> Iterable[Key]:
        return (Key(REFUNDS, self.slot, self.refund_id),)

    def accounts(self, book: Book) -> Iterable[Key]:
        refund = book.get(REFUNDS, self.refund_id)
        if refund is None:
            return ()
        return [Key(PAYMENTS, self.slot, refund.payment_id), *_refund_keys(refund)]

    def decide(self, book: Book) -> Outcome:
        refund = book.get(REFUNDS, self.refund_id)
        payment = book.get(PAYMENTS, refund.payment_id) if refund else None
        if refund is None or payment is None:
            return Refused(Reason.REFUND_NOT_FOUND, "there is no such refund")
        following = TRANSITIONS[RefundState(refund.state)].get(self.event)
        if following is None:
            return Accepted(refund)
        collection, payer = refund_accounts(book, payment)
        assert collection is not None
        assert payer is not None
        book.change_account(collection.account_id, reserved=-refund.amount)
        book.change_account(payer.account_id, promised=-refund.amount)
        if following == RefundState.SUCCEEDED:
            book.post(
                refund.refund_id,
                "refund",
                [Leg(collection, -refund.amount), Leg(payer, refund.amount)],
            )
        else:
            book.put(PAYMENTS, payment._replace(refunded=payment.refunded - refund.amount))
        ended = book.put(REFUNDS, refund._replace(state=following))
        _tell_refund(book, self.event_id, ended)
        return Accepted(ended)
