"""A case: one person proposes what becomes of a break, another one decides. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class CaseState(StrEnum):
    OPENED = "opened"
    PROPOSED = "proposed"
    APPROVED = "approved"
    # The checker said no: the case waits for another proposal.
    REJECTED = "rejected"
    # The break was matched before anybody decided; the reconciler says so.
    MOOT = "moot"


class CaseEvent(StrEnum):
    PROPOSE = "propose"
    APPROVE = "approve"
    REJECT = "reject"
    MATCH = "match"


# Anything absent is refused.
TRANSITIONS: Mapping[CaseState, Mapping[CaseEvent, CaseState]] = {
    CaseState.OPENED: {CaseEvent.PROPOSE: CaseState.PROPOSED, CaseEvent.MATCH: CaseState.MOOT},
    CaseState.PROPOSED: {
        # The maker, or another one, thinks again.
        CaseEvent.PROPOSE: CaseState.PROPOSED,
        CaseEvent.APPROVE: CaseState.APPROVED,
        CaseEvent.REJECT: CaseState.REJECTED,
        CaseEvent.MATCH: CaseState.MOOT,
    },
    CaseState.REJECTED: {
        CaseEvent.PROPOSE: CaseState.PROPOSED,
        CaseEvent.MATCH: CaseState.MOOT,
    },
    CaseState.APPROVED: {},
    CaseState.MOOT: {},
}


class Proposal(StrEnum):
    # Post the difference: fees to fees, all else to suspense until its owner is known.
    ADJUST = "adjust"
    # Post nothing.
    DISMISS = "dismiss"


class Run(NamedTuple):
    channel: str
    clearing_date: str
    version: int
    state: str
    reason: str
    lines: int
    requested_by: str
    touched_at: datetime
    open: int
    cases: int
    adjusted: int
    matched_later: int


class Break(NamedTuple):
    channel: str
    clearing_date: str
    break_id: str
    break_class: str
    reason: str
    state: str
    attempt_id: str
    amount: int
    currency: str
    ours: str
    theirs: str
    note: str
    resolved_on: str
    resolution: str
    adjustment_id: str


class Case(NamedTuple):
    of: Break
    version: int
    state: str
    proposal: str
    maker: str
    maker_reason: str
    checker: str
    checker_reason: str
