"""What reconciliation knows: runs, breaks, cases, and the tables of their states. Pure.

Amounts are minor units as seen from us, as in a statement's line: positive is what the bank owes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, TypeVar


class RunState(StrEnum):
    # The statement is not there, or nobody has looked yet.
    WAITING = "waiting"
    # The statement is not believed. A person must look; nothing of it was applied.
    QUARANTINED = "quarantined"
    # The breaks are written down; what follows from them is being posted.
    MATCHED = "matched"
    DONE = "done"


class RunEvent(StrEnum):
    REFUSE = "refuse"
    MATCH = "match"
    END = "end"
    # An operator asks for it anew: the bank has sent a corrected statement.
    REOPEN = "reopen"


RUN_TRANSITIONS: Mapping[RunState, Mapping[RunEvent, RunState]] = {
    RunState.WAITING: {
        RunEvent.REFUSE: RunState.QUARANTINED,
        RunEvent.MATCH: RunState.MATCHED,
        RunEvent.REOPEN: RunState.WAITING,
    },
    RunState.QUARANTINED: {RunEvent.REOPEN: RunState.WAITING},
    RunState.MATCHED: {RunEvent.END: RunState.DONE},
    RunState.DONE: {RunEvent.REOPEN: RunState.WAITING},
}


class BreakClass(StrEnum):
    # They have it, we do not.
    LONG = "long"
    # We have it, they do not.
    SHORT = "short"
    # Both have it, in another amount or currency.
    AMOUNT = "amount"
    # Both have it, and one of us says that it had no effect, or we do not know.
    STATUS = "status"
    # They have it more than once.
    DUPLICATE = "duplicate"
    # They keep another fee than was agreed.
    FEE = "fee"


class BreakState(StrEnum):
    # Found, and it may resolve by itself on a later day.
    OPEN = "open"
    # A later statement (or a corrected one, or our own recovery) explained it.
    MATCHED_LATER = "matched_later"
    # To be posted: by rule, or because a case was approved.
    ADJUSTING = "adjusting"
    ADJUSTED = "adjusted"
    # A person decides.
    CASE = "case"
    # A person decided that nothing is to be posted.
    CLOSED = "closed"


class BreakEvent(StrEnum):
    MATCH = "match"
    ADJUST = "adjust"
    ESCALATE = "escalate"
    APPROVE = "approve"
    DISMISS = "dismiss"
    POSTED = "posted"
    # A corrected statement no longer explains it.
    REOPEN = "reopen"


BREAK_TRANSITIONS: Mapping[BreakState, Mapping[BreakEvent, BreakState]] = {
    BreakState.OPEN: {
        BreakEvent.MATCH: BreakState.MATCHED_LATER,
        BreakEvent.ADJUST: BreakState.ADJUSTING,
        BreakEvent.ESCALATE: BreakState.CASE,
    },
    BreakState.CASE: {
        BreakEvent.MATCH: BreakState.MATCHED_LATER,
        BreakEvent.APPROVE: BreakState.ADJUSTING,
        BreakEvent.DISMISS: BreakState.CLOSED,
    },
    # The posting may be under way: it is not taken back when the line comes after all.
    BreakState.ADJUSTING: {BreakEvent.POSTED: BreakState.ADJUSTED},
    BreakState.MATCHED_LATER: {BreakEvent.REOPEN: BreakState.OPEN},
    BreakState.ADJUSTED: {},
    BreakState.CLOSED: {},
}
UNRESOLVED = (BreakState.OPEN, BreakState.CASE)

_State = TypeVar("_State", RunState, BreakState)
_Event = TypeVar("_Event", RunEvent, BreakEvent)


class IllegalEvent(Exception):
    """An event that the table does not know in this state."""


def after(table: Mapping[_State, Mapping[_Event, _State]], state: _State, event: _Event) -> _State:
    following = table[state].get(event)
    if following is None:
        raise IllegalEvent(f"{event} means nothing when {state}")
    return following


class CaseState(StrEnum):
    """Of a case. The transitions are the control plane's (control/reconciliation/model.py)."""

    OPENED = "opened"
    PROPOSED = "proposed"
    APPROVED = "approved"
    REJECTED = "rejected"
    # The break was matched before anybody decided.
    MOOT = "moot"


class How(StrEnum):
    """By what a line found its attempt."""

    REFERENCE = "reference"
    SHORT_REFERENCE = "short_reference"
    BANK_REFERENCE = "bank_reference"
    # A void or refund that names what it speaks of.
    ORIGINAL = "original"
    # One line for many attempts.
    BATCH = "batch"
    # No reference at all: the only candidate by amount and time. A guess, and marked as one.
    HEURISTIC = "heuristic"


class Expectation(StrEnum):
    """What our side makes us expect of the statement."""

    # A line: approved.
    LINE = "line"
    # A line, or none: undone on the same day, which some banks show and some do not.
    PAIR = "pair"
    # None: refused.
    NOTHING = "nothing"
    # We do not know yet.
    UNKNOWN = "unknown"


class Reason(StrEnum):
    """Why a difference is one, in words that a finance person can look up."""

    NOT_IN_STATEMENT = "NOT_IN_STATEMENT"
    PENDING_AT_BANK = "PENDING_AT_BANK"
    HALF_OF_A_REVERSAL = "HALF_OF_A_REVERSAL"
    NOT_OURS = "NOT_OURS"
    # The attempt exists and counts for a later day (a cut-off) …
    OF_A_LATER_DAY = "OF_A_LATER_DAY"
    # … or was adjusted away before the line came.
    AFTER_ITS_ADJUSTMENT = "AFTER_ITS_ADJUSTMENT"
    OF_ANOTHER_CHANNEL = "OF_ANOTHER_CHANNEL"
    OTHER_AMOUNT = "OTHER_AMOUNT"
    OTHER_CURRENCY = "OTHER_CURRENCY"
    BATCH_TOTAL = "BATCH_TOTAL"
    REJECTED_BY_BANK = "REJECTED_BY_BANK"
    REFUSED_BY_US = "REFUSED_BY_US"
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
    LISTED_TWICE = "LISTED_TWICE"
    LISTED_ON_AN_EARLIER_DAY = "LISTED_ON_AN_EARLIER_DAY"
    FEE_OF_A_LINE = "FEE_OF_A_LINE"
    FEE_NOT_AGREED = "FEE_NOT_AGREED"
    FEE_TOTAL = "FEE_TOTAL"
    # No difference: what was agreed, posted by rule in the same way.
    AGREED_FEES = "AGREED_FEES"


class Ours(NamedTuple):
    """An attempt as matching sees it."""

    attempt_id: str
    owner_id: str
    original_id: str
    short_reference: str
    bank_reference: str
    kind: str
    # Signed as in a statement.
    amount: int
    currency: str
    expect: str
    state: str
    happened_at: datetime | None
    # The break that carries it from an earlier day, and that break's class; else empty.
    carried: str = ""
    carried_class: str = ""


class Theirs(NamedTuple):
    """A line as matching sees it."""

    line_no: int
    reference: str
    short_reference: str
    bank_reference: str
    kind: str
    amount: int
    fee: int
    currency: str
    status: str
    happened_at: datetime | None
    batch: str = ""
    carried: str = ""
    carried_class: str = ""


class Found(NamedTuple):
    """A difference as matching found it; `identity` names it the same at every run."""

    break_class: BreakClass
    reason: Reason
    identity: str
    # Our attempt; empty when we have none.
    attempt_id: str
    # What it changes of what the bank owes us, were we to believe the bank.
    amount: int
    currency: str
    ours: Ours | None
    theirs: Theirs | None
    # Whether a later day may explain it: a cut-off, an outcome that is not known yet.
    may_resolve: bool
    # For people: what else may help.
    note: str = ""


class Run(NamedTuple):
    """One channel, one clearing date."""

    channel: str
    clearing_date: str
    version: int
    state: str
    reason: str
    statement_sha256: str
    lines: int
    # JSON.
    sums: str
    guesses: str
    requested_by: str


class Break(NamedTuple):
    """A row of the table; `clearing_date` is the day on which it was found."""

    channel: str
    clearing_date: str
    break_id: str
    break_class: str
    reason: str
    state: str
    attempt_id: str
    amount: int
    currency: str
    waits: bool
    ours: str
    theirs: str
    note: str
    resolved_on: str = ""
    resolution: str = ""
    adjustment_id: str = ""


class Reported(NamedTuple):
    """An outcome that we learn of from a statement."""

    channel: str
    attempt_id: str
    bank_reference: str
    clearing_date: str


class Resolved(NamedTuple):
    """A break of an earlier day that this day explains."""

    break_id: str
    how: str


class Guess(NamedTuple):
    """A match without a reference, for a person to look over."""

    attempt_id: str
    line_no: int
    amount: int
    currency: str


@dataclass(frozen=True, slots=True)
class Sums:
    """A run in figures, of one currency."""

    currency: str
    # Attempts that expect a line, and booked lines but for fees.
    ours: int = 0
    ours_amount: int = 0
    theirs: int = 0
    theirs_amount: int = 0
    # Of them, lines of earlier days that were carried into this one.
    carried: int = 0
    carried_amount: int = 0
    matched_exactly: int = 0
    matched_exactly_amount: int = 0
    matched_heuristically: int = 0
    matched_heuristically_amount: int = 0
    # Attempts behind batch lines.
    matched_in_batches: int = 0
    matched_in_batches_amount: int = 0
    fees_expected: int = 0
    fees_charged: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one day's matching says."""

    found: tuple[Found, ...]
    resolved: tuple[Resolved, ...]
    guesses: tuple[Guess, ...]
    sums: tuple[Sums, ...]
    # What the bank's sums are above ours and no break, new or carried, explains. By currency; what
    # is zero is left out. Anything here is our bug.
    unexplained: Mapping[str, int]
    # Lines of the statement, fees and all.
    lines: int = 0
    # Steps and the seconds that they took.
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """A line for many attempts. `candidates`: those whose amount is the difference."""

    line: Theirs
    items: int
    amount: int
    candidates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FeeDifference:
    """Of one line, or (`line` is None) of all lines of a kind."""

    line: Theirs | None
    kind: str
    currency: str
    expected: int
    charged: int
    lines: int = 1


@dataclass(slots=True)
class Pool:
    """What did not simply agree, matched as far as it can be. Rows by number."""

    ours: dict[int, Ours] = field(default_factory=dict)
    theirs: dict[int, Theirs] = field(default_factory=dict)
    # Of ours, of theirs, how.
    links: list[tuple[int, int, How]] = field(default_factory=list)
    # Lines left over whose attempt agreed with another line, or was refused: line → attempt.
    known: dict[int, Ours] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)
    # Breaks of attempts that a batch line of today explains.
    in_batches: list[tuple[str]] = field(default_factory=list)
    # Kind, currency → expected and charged, of lines with another fee than agreed.
    fees: list[FeeDifference] = field(default_factory=list)


class Implausible(Exception):
    """So many differences that the statement itself must be wrong; nothing of it is applied."""
