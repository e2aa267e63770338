"""An approval: who asked for what, who said yes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import TypeAdapter


class State(StrEnum):
    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"
    USED = "used"
    EXPIRED = "expired"


class Event(StrEnum):
    APPROVE = "approve"
    REJECT = "reject"
    USE = "use"
    # Its lease in etcd ran out.
    EXPIRE = "expire"


# Anything absent is refused.
TRANSITIONS: Mapping[State, Mapping[Event, State]] = {
    State.PENDING: {
        Event.APPROVE: State.APPROVED,
        Event.REJECT: State.REJECTED,
        Event.EXPIRE: State.EXPIRED,
    },
    State.APPROVED: {
        Event.USE: State.USED,
        # Whoever approved, or another approver, may think again.
        Event.REJECT: State.REJECTED,
        Event.EXPIRE: State.EXPIRED,
    },
    State.REJECTED: {},
    State.USED: {},
    State.EXPIRED: {},
}


@dataclass(frozen=True, slots=True)
class Approval:
    approval_id: str
    state: State
    # The full name of the method that waits, and its request as canonical JSON.
    action: str
    parameters: str
    sha256: str
    requester: str
    # Unix ms of the controller: for people, never compared.
    created_ms: int
    approver: str = ""
    note: str = ""
    decided_ms: int = 0

    def to_json(self) -> str:
        return _ADAPTER.dump_json(self).decode()

    @staticmethod
    def from_json(text: str) -> Approval:
        return _ADAPTER.validate_json(text)


_ADAPTER = TypeAdapter(Approval)
