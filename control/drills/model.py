"""What a drill is: its fault, its steady state, its state and its history. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from pydantic import TypeAdapter


class Fault(StrEnum):
    CELL_LOSS = "cell_loss"
    REGION_LOSS = "region_loss"
    PAUSE = "pause"
    PARTITION = "partition"
    LATENCY = "latency"
    ETCD_MEMBER_LOSS = "etcd_member_loss"
    ETCD_QUORUM_LOSS = "etcd_quorum_loss"
    DATABASE_CONNECTION_LOSS = "database_connection_loss"
    NATS_LOSS = "nats_loss"
    REDIS_LOSS = "redis_loss"
    FULL_DISK = "full_disk"
    CLOCK_JUMP = "clock_jump"
    SLOW_CHANNEL = "slow_channel"
    OVERLOAD = "overload"


class State(StrEnum):
    """What has been done. The names say what is true now."""

    PLANNED = "planned"
    CHECKED_BEFORE = "checked_before"
    INJECTED = "injected"
    CHECKED_DURING = "checked_during"
    HEALED = "healed"
    CHECKED_AFTER = "checked_after"
    REPORTED = "reported"
    # Nothing was injected.
    REFUSED = "refused"
    # Healed before its time.
    ABORTED = "aborted"
    # Not healed, or the books do not hold.
    FAILED = "failed"


class Event(StrEnum):
    STEADY = "steady"
    # No steady state to begin with, a fault that cannot be had here, or ended before it began.
    IMPOSSIBLE = "impossible"
    INJECTED = "injected"
    OBSERVED = "observed"
    HEALED = "healed"
    UNHEALED = "unhealed"
    CHECKED = "checked"
    COMPLETED = "completed"
    CUT_SHORT = "cut_short"
    BOOKS_BROKEN = "books_broken"


# Anything absent is refused. Once something may have been injected the only way is by healing.
TRANSITIONS: Mapping[State, Mapping[Event, State]] = {
    State.PLANNED: {Event.STEADY: State.CHECKED_BEFORE, Event.IMPOSSIBLE: State.REFUSED},
    State.CHECKED_BEFORE: {
        Event.INJECTED: State.INJECTED,
        Event.IMPOSSIBLE: State.REFUSED,
        Event.HEALED: State.HEALED,
        Event.UNHEALED: State.FAILED,
    },
    State.INJECTED: {
        Event.OBSERVED: State.CHECKED_DURING,
        Event.HEALED: State.HEALED,
        Event.UNHEALED: State.FAILED,
    },
    State.CHECKED_DURING: {Event.HEALED: State.HEALED, Event.UNHEALED: State.FAILED},
    State.HEALED: {Event.CHECKED: State.CHECKED_AFTER},
    State.CHECKED_AFTER: {
        Event.COMPLETED: State.REPORTED,
        Event.CUT_SHORT: State.ABORTED,
        Event.BOOKS_BROKEN: State.FAILED,
    },
    State.REPORTED: {},
    State.REFUSED: {},
    State.ABORTED: {},
    State.FAILED: {},
}
ENDED = frozenset(state for state, onward in TRANSITIONS.items() if not onward)


class IllegalEvent(Exception):
    """An event that the table does not know in this state."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """The steady state: what must be true of payments."""

    success_min: float = 0.99
    # The laptop under a drill is slow: this bounds what is broken, not what is good.
    p99_max_ms: int = 2_000
    during_success_min: float = 0.9
    # A payment may wait for a failover; its own deadline bounds it.
    during_p99_max_ms: int = 12_000
    abort_success_min: float = 0.2


@dataclass(frozen=True, slots=True)
class Spec:
    """What was asked for; two drills of one name are the same when these are equal."""

    name: str
    fault: Fault
    cell: str = ""
    other_cell: str = ""
    region: str = ""
    lease_s: int = 60
    observe_s: int = 10
    latency_ms: int = 0
    loss_ratio: float = 0.0
    clock_offset_s: int = 0
    times: int = 0
    check_s: int = 3
    probe_rate_per_s: int = 20
    hypothesis: Hypothesis = field(default_factory=Hypothesis)


@dataclass(frozen=True, slots=True)
class StateRecord:
    state: State
    # Unix ms: for people, and for the lease on one machine.
    time_ms: int
    note: str


@dataclass(frozen=True, slots=True)
class Check:
    """One measurement of the steady state, and what the hypothesis says to it."""

    phase: str
    payments: int
    success_ratio: float
    p99_ms: int
    # ok, broken or unreachable.
    books: str
    holds: bool
    why: str


class Remedy(StrEnum):
    """How to undo one thing. Each may be applied twice, and when nothing is left to undo."""

    # target: a process of the mesh that must run.
    START = "start"
    # target: PID, detail: when it started. SIGCONT, if it is still that process.
    CONTINUE = "continue"
    # target: a process that must run with the mesh's own environment again.
    RESTART = "restart"
    # detail: slot ranges and the owners they had.
    GIVE_BACK = "give_back"
    # target: a directory under which a tmpfs hides the real one.
    UNMOUNT = "unmount"


@dataclass(frozen=True, slots=True)
class Undo:
    remedy: Remedy
    target: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Drill:
    spec: Spec
    run: int
    actor: str
    reason: str
    state: State
    history: tuple[StateRecord, ...]
    checks: tuple[Check, ...] = ()
    # Written before the fault is done, applied in reverse.
    undo: tuple[Undo, ...] = ()
    # Why it was healed before its time; empty when it was not.
    cut_short: str = ""
    outage_ms: int = 0
    budget_burnt: float = 0.0
    verdict: str = ""

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def after(self, event: Event, *, time_ms: int, note: str = "") -> Drill:
        """The drill one event on. Raises IllegalEvent."""
        following = TRANSITIONS[self.state].get(event)
        if following is None:
            raise IllegalEvent(f"{self.spec.name}: {event} means nothing when {self.state}")
        record = StateRecord(following, time_ms, note)
        return replace(self, state=following, history=(*self.history, record))

    def time_of(self, state: State) -> int | None:
        """When it came to this state; None when it never did."""
        return next((item.time_ms for item in self.history if item.state == state), None)

    @property
    def lease_until_ms(self) -> int | None:
        """None before the injection."""
        injected = self.time_of(State.INJECTED)
        return None if injected is None else injected + self.spec.lease_s * 1000

    def to_json(self) -> str:
        return _ADAPTER.dump_json(self, indent=2).decode()

    @staticmethod
    def from_json(text: str | bytes) -> Drill:
        return _ADAPTER.validate_json(text)


_ADAPTER = TypeAdapter(Drill)


def plan(spec: Spec, run: int, actor: str, reason: str, *, time_ms: int) -> Drill:
    return Drill(
        spec, run, actor, reason, State.PLANNED, (StateRecord(State.PLANNED, time_ms, reason),)
    )
