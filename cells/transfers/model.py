"""Transfers, branches and their states (TCC: try, confirm, cancel)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class TransferKind(StrEnum):
    USER = "transfer"
    # A collection account's money goes to its merchant's home.
    SETTLEMENT = "settlement"
    # A merchant's money comes back to a collection account, for a refund.
    FUNDING = "funding"


class TransferState(StrEnum):
    TRYING = "trying"
    COMMITTING = "committing"
    CONFIRMED = "confirmed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class TransferEvent(StrEnum):
    COMMIT = "commit"
    CANCEL = "cancel"
    END = "end"


# The decision (commit or cancel) is made once, in the payer's slot, under its fence.
TRANSITIONS: Mapping[TransferState, Mapping[TransferEvent, TransferState]] = {
    TransferState.TRYING: {
        TransferEvent.COMMIT: TransferState.COMMITTING,
        TransferEvent.CANCEL: TransferState.CANCELLING,
    },
    TransferState.COMMITTING: {TransferEvent.END: TransferState.CONFIRMED},
    TransferState.CANCELLING: {TransferEvent.END: TransferState.CANCELLED},
    TransferState.CONFIRMED: {},
    TransferState.CANCELLED: {},
}
IN_DOUBT = (TransferState.TRYING, TransferState.COMMITTING, TransferState.CANCELLING)


class BranchState(StrEnum):
    TRIED = "tried"
    CONFIRMED = "confirmed"
    CANCELLED = "cancelled"


class Transfer(NamedTuple):
    """The coordinator's log. It lies in the payer's slot and moves with it (pitfall 5)."""

    slot: int
    transfer_id: str
    kind: str
    payer_id: str
    payee_id: str
    payer_account_id: str
    payee_account_id: str
    amount: int
    currency: str
    state: str
    description: str
    cancel_reason: str
    created_at: datetime
    # When its driver last did something: recovery takes those that stand still.
    touched_at: datetime


class Branch(NamedTuple):
    """The payee's side: also the barrier against null cancel and late try (pitfalls 1 to 3).

    Source: dtm's sub-transaction barrier. A row in state cancelled with amount 0 is a cancel that
    came before its try; the try that comes later finds it and is refused.
    """

    slot: int
    branch_id: str
    transfer_id: str
    payee_account_id: str
    amount: int
    currency: str
    state: str
    created_at: datetime
