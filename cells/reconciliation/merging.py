"""What a run's outcome makes of the breaks that are there. Pure, and the same at every repetition.

A run that is done again finds its own breaks: those that it finds again stay, those that it does
not are explained by the corrected statement, and nothing that was posted is posted twice.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from cells.reconciliation.model import (
    BREAK_TRANSITIONS,
    UNRESOLVED,
    Break,
    BreakClass,
    BreakEvent,
    BreakState,
    Found,
    Ours,
    Outcome,
    Reason,
    Reported,
    Theirs,
    after,
)
from cells.reconciliation.rules import (
    Elsewhere,
    Verdict,
    break_id,
    channel_slot,
    decide,
    of_elsewhere,
)
from cells.reconciliation.settings import Limits
from router.ids import Kind, derive

BY_RULE = "rule"


@dataclass(frozen=True, slots=True)
class Change:
    """A break that is another now; `before`: the state that it must still have."""

    row: Break
    before: str
    # What was proposed for it was proposed for another amount.
    other_amount: bool = False


@dataclass(frozen=True, slots=True)
class Changes:
    fresh: tuple[Break, ...]
    changed: tuple[Change, ...]

    @property
    def to_people(self) -> list[Break]:
        """Breaks that become cases."""
        rows = [*self.fresh, *(item.row for item in self.changed if item.before != "case")]
        return [row for row in rows if row.state == BreakState.CASE]

    @property
    def reopened(self) -> list[Break]:
        """Cases whose proposal a corrected statement has overtaken."""
        kept = (item.row for item in self.changed if item.other_amount)
        return [row for row in kept if row.state == BreakState.CASE]

    @property
    def moot(self) -> list[Break]:
        """Breaks whose case nobody need decide any more."""
        return [
            item.row
            for item in self.changed
            if item.before == BreakState.CASE and item.row.state != BreakState.CASE
        ]


def merge(
    channel: str,
    day: date,
    outcome: Outcome,
    today: Sequence[Break],
    earlier: Sequence[Break],
    limits: Limits,
) -> Changes:
    """`today`: all breaks of the day. `earlier`: unresolved ones, and those that the day's run
    resolved when it ran before."""
    rows = {row.break_id: row for row in (*earlier, *today)}
    before = {name: row.state for name, row in rows.items()}
    original = dict(rows)
    found = {break_id(item, channel, day): item for item in outcome.found}
    resolved = {item.break_id: item.how for item in outcome.resolved}
    for name, item in found.items():
        rows[name] = _found_again(rows.get(name), _fresh(name, item, channel, day), day)
    for row in today:
        if row.break_id not in found and row.state in UNRESOLVED:
            rows[row.break_id] = _explained(row, day, "not in the corrected statement")
    for row in earlier:
        how = resolved.get(row.break_id)
        if how is not None and row.state in UNRESOLVED:
            rows[row.break_id] = _explained(row, day, how)
        elif how is None and row.state == BreakState.MATCHED_LATER:
            rows[row.break_id] = _reopened(row)
    for row in _agreed_fees(channel, day, outcome, today):
        rows[row.break_id] = row
    _decide(rows, day, limits)
    return Changes(
        tuple(row for name, row in rows.items() if name not in before),
        tuple(
            Change(row, before[name], row.amount != original[name].amount)
            for name, row in rows.items()
            if name in before and row != original[name]
        ),
    )


def _fresh(name: str, item: Found, channel: str, day: date) -> Break:
    return Break(
        channel, day.isoformat(), name, item.break_class, item.reason, BreakState.OPEN,
        item.attempt_id, item.amount, item.currency, item.may_resolve, to_json(item.ours),
        to_json(item.theirs), item.note,
    )  # fmt: skip


def _found_again(known: Break | None, fresh: Break, day: date) -> Break:
    if known is None:
        return fresh
    if known.state == BreakState.MATCHED_LATER and known.resolved_on == day.isoformat():
        return fresh
    if known.state in UNRESOLVED:
        return fresh._replace(state=known.state)
    return known


def _explained(row: Break, day: date, how: str) -> Break:
    state = after(BREAK_TRANSITIONS, BreakState(row.state), BreakEvent.MATCH)
    return row._replace(state=state, resolved_on=day.isoformat(), resolution=how)


def _reopened(row: Break) -> Break:
    state = after(BREAK_TRANSITIONS, BreakState(row.state), BreakEvent.REOPEN)
    return row._replace(state=state, resolved_on="", resolution="")


def _agreed_fees(channel: str, day: date, outcome: Outcome, today: Iterable[Break]) -> list[Break]:
    """What was agreed is posted by rule; a corrected statement posts the difference."""
    agreed: dict[str, int] = defaultdict(int)
    for of in outcome.sums:
        agreed[of.currency] += of.fees_charged
    for item in outcome.found:
        if item.break_class == BreakClass.FEE:
            agreed[item.currency] += item.amount
    count = 0
    for row in today:
        if row.reason == Reason.AGREED_FEES:
            agreed[row.currency] += row.amount
            count += 1
    return [
        Break(
            channel, day.isoformat(),
            derive(Kind.BREAK, channel_slot(channel), channel, day.isoformat(), "fees", currency,
                   str(count)),
            BreakClass.FEE, Reason.AGREED_FEES, BreakState.ADJUSTING, "", -amount, currency,
            False, "", "", "", day.isoformat(), f"{BY_RULE}: agreed fees",
        )
        for currency, amount in sorted(agreed.items())
        if amount
    ]  # fmt: skip


def _decide(rows: dict[str, Break], day: date, limits: Limits) -> None:
    """In one order, so that the day's limit is used up by the same ones at every repetition."""
    adjusted: dict[str, int] = defaultdict(int)
    for row in rows.values():
        by_rule = row.resolution.startswith(BY_RULE) and row.resolved_on == day.isoformat()
        if by_rule and row.reason != Reason.AGREED_FEES:
            adjusted[row.currency] += abs(row.amount)
    for name in sorted(rows, key=lambda name: (rows[name].clearing_date, name)):
        row = rows[name]
        if row.state != BreakState.OPEN:
            continue
        verdict = decide(
            BreakClass(row.break_class),
            row.amount,
            may_resolve=row.waits,
            # A foreign amount cannot be compared with a limit.
            by_rule=row.reason != Reason.OTHER_CURRENCY,
            age_days=(day - date.fromisoformat(row.clearing_date)).days,
            adjusted_today=adjusted[row.currency],
            limits=limits,
        )
        if verdict == Verdict.ADJUST:
            adjusted[row.currency] += abs(row.amount)
            state = after(BREAK_TRANSITIONS, BreakState.OPEN, BreakEvent.ADJUST)
            most = limits.rules[BreakClass(row.break_class)].adjust_max
            rows[name] = row._replace(
                state=state, resolved_on=day.isoformat(),
                resolution=f"{BY_RULE}: {row.break_class} up to {most}",
            )  # fmt: skip
        elif verdict == Verdict.CASE:
            state = after(BREAK_TRANSITIONS, BreakState.OPEN, BreakEvent.ESCALATE)
            rows[name] = row._replace(state=state)


def look_elsewhere(
    outcome: Outcome, known: Mapping[str, Elsewhere], channel: str, day: date
) -> Outcome:
    """Lines of nobody, once the database was asked for the attempts that they name."""
    alike: dict[str, int] = defaultdict(int)

    def looked_up(item: Found) -> Found:
        if item.break_class != BreakClass.LONG or item.theirs is None:
            return item
        judged = of_elsewhere(item, known.get(item.theirs.reference), channel, day)
        if judged.break_class != BreakClass.DUPLICATE:
            return judged
        alike[judged.attempt_id] += 1
        number = alike[judged.attempt_id]
        return judged._replace(identity=f"{judged.attempt_id}/earlier/{number}")

    return replace(outcome, found=tuple(looked_up(item) for item in outcome.found))


def to_json(row: Ours | Theirs | None) -> str:
    return json.dumps(row._asdict(), default=str) if row is not None else ""


def carried_theirs(row: Break) -> Theirs | None:
    """The line that an unresolved break keeps in view: one that moved money."""
    if not row.theirs:
        return None
    values: dict[str, Any] = json.loads(row.theirs)
    values["happened_at"] = values["happened_at"] or None
    line = Theirs(**values)
    if line.status != "booked":
        return None
    return line._replace(carried=row.break_id, carried_class=row.break_class)


def outcome_of(row: Break) -> Reported | None:
    """What a line says of an attempt that is unknown to us: booked, and for the amount asked for.
    Anything else is for people."""
    if row.reason != Reason.OUTCOME_UNKNOWN or row.state != BreakState.OPEN:
        return None
    theirs = carried_theirs(row)
    if theirs is None:
        return None
    ours: dict[str, Any] = json.loads(row.ours)
    if (ours["amount"], ours["currency"]) != (theirs.amount, theirs.currency):
        return None
    return Reported(row.channel, row.attempt_id, theirs.bank_reference, row.clearing_date)
