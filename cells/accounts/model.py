"""Rows of the accounts noun beside the ledger's own Account."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class Direction(StrEnum):
    IN = "in"
    OUT = "out"


class Movement(NamedTuple):
    """Money that came in or went out: the only changes of the sum over all users' accounts."""

    slot: int
    movement_id: str
    account_id: str
    user_id: str
    direction: str
    amount: int
    currency: str
    created_at: datetime


class Merchant(NamedTuple):
    """A merchant's account, as every cell may read it (a GLOBAL table on CockroachDB)."""

    slot: int
    account_id: str
    merchant_id: str
    currency: str
    state: str
    created_at: datetime
