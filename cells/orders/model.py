"""Orders and their states."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class OrderState(StrEnum):
    OPEN = "open"
    PAID = "paid"
    CLOSED = "closed"


class OrderEvent(StrEnum):
    PAY = "pay"
    CLOSE = "close"


# Anything absent is refused.
TRANSITIONS: Mapping[OrderState, Mapping[OrderEvent, OrderState]] = {
    OrderState.OPEN: {OrderEvent.PAY: OrderState.PAID, OrderEvent.CLOSE: OrderState.CLOSED},
    OrderState.PAID: {},
    OrderState.CLOSED: {OrderEvent.CLOSE: OrderState.CLOSED},
}


class Order(NamedTuple):
    slot: int
    order_id: str
    payer_id: str
    merchant_id: str
    amount: int
    currency: str
    state: str
    description: str
    # Empty until it is paid.
    payment_id: str
    created_at: datetime
