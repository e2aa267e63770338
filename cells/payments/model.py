"""Payments, refunds and their states."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class RefundState(StrEnum):
    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class RefundEvent(StrEnum):
    FUNDED = "funded"
    UNFUNDED = "unfunded"


TRANSITIONS: Mapping[RefundState, Mapping[RefundEvent, RefundState]] = {
    RefundState.PENDING: {
        RefundEvent.FUNDED: RefundState.SUCCEEDED,
        RefundEvent.UNFUNDED: RefundState.FAILED,
    },
    RefundState.SUCCEEDED: {},
    RefundState.FAILED: {},
}


class Payment(NamedTuple):
    slot: int
    payment_id: str
    order_id: str
    payer_id: str
    merchant_id: str
    amount: int
    currency: str
    # Refunded or promised to a refund that is pending.
    refunded: int
    # Of the request that made it. An order is paid once, so the order finds it again and no
    # idempotency record is needed (docs/decisions/0012-a-payment-is-its-own-record.md).
    idempotency_key: str
    request_hash: str
    created_at: datetime


class Refund(NamedTuple):
    slot: int
    refund_id: str
    payment_id: str
    payer_id: str
    merchant_id: str
    amount: int
    currency: str
    state: str
    reason: str
    created_at: datetime
