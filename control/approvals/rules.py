"""May this approval be decided, may it be used? Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any, NamedTuple

from control.approvals.model import TRANSITIONS, Approval, Event, State


class Reason(StrEnum):
    """Why not, in the order in which they are looked at."""

    OWN = "APPROVAL_IS_YOUR_OWN"
    OTHERS = "APPROVAL_OF_ANOTHER"
    EXPIRED = "APPROVAL_EXPIRED"
    REJECTED = "APPROVAL_REJECTED"
    USED = "APPROVAL_USED"
    PENDING = "APPROVAL_PENDING"
    DECIDED = "APPROVAL_DECIDED"
    MISMATCH = "APPROVAL_MISMATCH"


class No(NamedTuple):
    reason: Reason
    message: str


def canonical(parameters: Mapping[str, Any]) -> str:
    return json.dumps(parameters, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def action_hash(action: str, parameters: str) -> str:
    return hashlib.sha256(f"{action}\n{parameters}".encode()).hexdigest()


def state_now(approval: Approval, *, alive: bool) -> State:
    """`alive`: its lease still runs. What has ended stays as it ended."""
    if alive:
        return approval.state
    return TRANSITIONS[approval.state].get(Event.EXPIRE, approval.state)


def decide(
    approval: Approval, who: str, event: Event, *, alive: bool, now_ms: int, note: str
) -> Approval | No:
    """An approver says yes or no."""
    if who == approval.requester:
        return No(Reason.OWN, "a second person must decide; you asked for it yourself")
    state = state_now(approval, alive=alive)
    following = TRANSITIONS[state].get(event)
    if following is None:
        return No(_ended(state), f"{approval.approval_id} is {state}; it cannot be decided")
    return replace(approval, state=following, approver=who, note=note, decided_ms=now_ms)


def use(approval: Approval, who: str, sha256: str, *, alive: bool) -> Approval | No:
    """The requester's call comes again, with the approval."""
    name = approval.approval_id
    if who != approval.requester:
        return No(Reason.OTHERS, f"{name} was asked for by {approval.requester}, who alone uses it")
    state = state_now(approval, alive=alive)
    if Event.USE not in TRANSITIONS[state]:
        return No(_ended(state), f"{name} is {state}")
    if sha256 != approval.sha256:
        return No(
            Reason.MISMATCH,
            f"{name} is for {approval.action} with {approval.parameters}, and for nothing else",
        )
    assert approval.approver not in ("", who), "approved by nobody, or by its requester"
    return replace(approval, state=TRANSITIONS[state][Event.USE])


def _ended(state: State) -> Reason:
    return {
        State.PENDING: Reason.PENDING,
        State.APPROVED: Reason.DECIDED,
        State.REJECTED: Reason.REJECTED,
        State.USED: Reason.USED,
        State.EXPIRED: Reason.EXPIRED,
    }[state]
