"""Endpoints, deliveries and their states."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class DeliveryState(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    # Given up after the last attempt.
    DEAD = "dead"
    # The merchant had no endpoint when the event came.
    SKIPPED = "skipped"


class DeliveryEvent(StrEnum):
    DELIVER = "deliver"
    FAIL = "fail"
    GIVE_UP = "give_up"
    REDELIVER = "redeliver"


# Anything absent is refused. An attempt whose answer comes late may still say that the merchant
# has it: that is believed in every state but skipped, where nothing was sent.
TRANSITIONS: Mapping[DeliveryState, Mapping[DeliveryEvent, DeliveryState]] = {
    DeliveryState.PENDING: {
        DeliveryEvent.DELIVER: DeliveryState.DELIVERED,
        DeliveryEvent.FAIL: DeliveryState.PENDING,
        DeliveryEvent.GIVE_UP: DeliveryState.DEAD,
    },
    DeliveryState.DEAD: {
        DeliveryEvent.REDELIVER: DeliveryState.PENDING,
        DeliveryEvent.DELIVER: DeliveryState.DELIVERED,
    },
    DeliveryState.DELIVERED: {DeliveryEvent.DELIVER: DeliveryState.DELIVERED},
    DeliveryState.SKIPPED: {},
}


class Endpoint(NamedTuple):
    """Where a merchant's events go. One a merchant, at the merchant's home."""

    slot: int
    # The merchant's ID.
    endpoint_id: str
    url: str
    # Empty once it is sealed.
    secret: bytes
    updated_at: datetime
    # Wrapped by the KMS, in base 64, and by which of its keys.
    secret_sealed: str = ""
    kms_version: str = ""

    def __repr__(self) -> str:
        # The secret must not reach a log (pitfall 34).
        return f"Endpoint({self.endpoint_id})"


class Delivery(NamedTuple):
    """One event on its way to its merchant. Its ID is the webhook-id by which receivers sort out
    repeats, computed from the event's."""

    slot: int
    delivery_id: str
    event_id: str
    event_type: str
    merchant_id: str
    body: str
    state: str
    # Begun since it was enqueued or redelivered.
    attempts: int
    last_error: str
    # While an attempt runs: when its claim ends.
    next_attempt_at: datetime
    created_at: datetime
    # Of the trace that the event belongs to; empty: none was recorded.
    traceparent: str = ""


class Retrying(NamedTuple):
    """How a failing delivery is tried again."""

    attempts_max: int
    backoff_base_s: float
    backoff_cap_s: float
