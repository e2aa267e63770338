"""Adjustments, and between which accounts they may move money."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class Side(StrEnum):
    # What lies with the bank that the break is about.
    CHANNEL = "channel"
    # What banks took for their service.
    FEES = "fees"
    # Differences whose owner is not known yet.
    SUSPENSE = "suspense"
    # A user's balance.
    USER = "user"


# From → to. A user is debited only into the channel: what a bank says it took back or never gave.
ALLOWED = frozenset(
    {
        (Side.CHANNEL, Side.FEES),
        (Side.FEES, Side.CHANNEL),
        (Side.CHANNEL, Side.SUSPENSE),
        (Side.SUSPENSE, Side.CHANNEL),
        (Side.CHANNEL, Side.USER),
        (Side.USER, Side.CHANNEL),
        (Side.SUSPENSE, Side.USER),
        (Side.SUSPENSE, Side.FEES),
        (Side.FEES, Side.SUSPENSE),
    }
)


class Adjustment(NamedTuple):
    slot: int
    # Computed from the break: one break has one adjustment in a slot.
    adjustment_id: str
    break_id: str
    channel: str
    source: str
    target: str
    # Of the user's side; else empty.
    user_id: str
    amount: int
    currency: str
    # What the break is about (an attempt), or any ID of the slot.
    subject_id: str
    # For people, and the person or rule that approved it.
    reason: str
    approved_by: str
    created_at: datetime
