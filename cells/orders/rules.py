"""What may happen to orders. Pure: commands over the book."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cells.accounts.model import Merchant
from cells.accounts.rules import account_keys, usable
from cells.accounts.tables import MERCHANTS
from cells.ledger.book import Book
from cells.ledger.model import (
    Accepted,
    AccountState,
    Idempotency,
    Key,
    Outcome,
    PlainCommand,
    Reason,
    Refused,
)
from cells.orders.model import TRANSITIONS, Order, OrderEvent, OrderState
from cells.orders.tables import ORDERS
from router.ids import account_id
from router.slots import slot_of_user

_REFUSALS = {
    OrderState.PAID: Reason.ORDER_ALREADY_PAID,
    OrderState.CLOSED: Reason.ORDER_CLOSED,
}


def next_state(order: Order, event: OrderEvent) -> OrderState | Refused:
    state = OrderState(order.state)
    following = TRANSITIONS[state].get(event)
    if following is None:
        return Refused(_REFUSALS[state], f"the order is {state}", {"payment_id": order.payment_id})
    return following


def merchant_key(merchant_id: str, currency: str) -> Key:
    return Key(MERCHANTS, slot_of_user(merchant_id), account_id(merchant_id, currency))


def open_merchant(merchant: Merchant | None) -> Refused | None:
    if merchant is None:
        return Refused(
            Reason.MERCHANT_NOT_FOUND, "the merchant has no merchant account in this currency"
        )
    if merchant.state != AccountState.OPEN:
        return Refused(
            Reason.ACCOUNT_CLOSED, "the merchant's account is closed", {"role": "merchant"}
        )
    return None


@dataclass(frozen=True, slots=True)
class CreateOrder(PlainCommand):
    """A merchant asks a payer for money."""

    slot: int
    order_id: str
    payer_id: str
    merchant_id: str
    amount: int
    currency: str
    description: str
    idempotency: Idempotency
    resource_type = ORDERS

    def reads(self) -> Iterable[Key]:
        return (merchant_key(self.merchant_id, self.currency),)

    def accounts(self, book: Book) -> Iterable[Key]:
        return account_keys(account_id(self.payer_id, self.currency))

    def decide(self, book: Book) -> Outcome:
        merchant = book.get(MERCHANTS, account_id(self.merchant_id, self.currency))
        refused = open_merchant(merchant)
        if refused:
            return refused
        payer = usable(
            book.account(account_id(self.payer_id, self.currency)), "payer", Reason.PAYER_NOT_FOUND
        )
        if isinstance(payer, Refused):
            return payer
        return Accepted(
            book.put(
                ORDERS,
                Order(
                    self.slot, self.order_id, self.payer_id, self.merchant_id, self.amount,
                    self.currency, OrderState.OPEN, self.description, "", book.now,
                ),
            )
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class CloseOrder(PlainCommand):
    """An unpaid order is given up."""

    slot: int
    order_id: str
    idempotency: Idempotency
    resource_type = ORDERS

    def reads(self) -> Iterable[Key]:
        return (Key(ORDERS, self.slot, self.order_id),)

    def decide(self, book: Book) -> Outcome:
        order = book.get(ORDERS, self.order_id)
        if order is None:
            return Refused(Reason.ORDER_NOT_FOUND, "there is no such order")
        state = next_state(order, OrderEvent.CLOSE)
        if isinstance(state, Refused):
            return state
        return Accepted(book.put(ORDERS, order._replace(state=state)))
