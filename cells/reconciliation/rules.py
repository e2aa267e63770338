"""What a pair, or half of one, means; what may be done about a break. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from enum import StrEnum
from typing import NamedTuple

from cells.reconciliation.model import (
    BreakClass,
    Expectation,
    Found,
    Ours,
    Reason,
    Theirs,
)
from cells.reconciliation.settings import FeeTier, Limits
from router.ids import Kind, derive, slot_of_id
from router.slots import slot_of_user

BOOKED, PENDING = "booked", "pending"
# States of an attempt → what its day's statement should show.
EXPECTATIONS: Mapping[str, Expectation] = {
    "approved": Expectation.LINE,
    "reversed": Expectation.PAIR,
    "declined": Expectation.NOTHING,
    "failed": Expectation.NOTHING,
    "sent": Expectation.UNKNOWN,
    "pending": Expectation.UNKNOWN,
    "unknown": Expectation.UNKNOWN,
}
# Operations that move money → the line's kind and the sign of its amount, as seen from us. A void's
# sign is against what it undoes: nearly always a purchase.
MOVES: Mapping[str, tuple[str, int]] = {
    "authorise": ("purchase", 1),
    "capture": ("purchase", 1),
    "void": ("void", -1),
    "refund": ("refund", -1),
    "payout": ("payout", -1),
}


def agrees(ours: Ours, theirs: Theirs) -> bool:
    """Both say the same: the same money moved, or none."""
    if ours.expect in {Expectation.LINE, Expectation.PAIR}:
        return theirs.status == BOOKED and (
            (ours.amount, ours.currency) == (theirs.amount, theirs.currency)
        )
    return ours.expect == Expectation.NOTHING and theirs.status not in {BOOKED, PENDING}


def of_pair(ours: Ours, theirs: Theirs) -> Found | None:
    """What is wrong between an attempt and its line."""
    if agrees(ours, theirs):
        return None
    booked = theirs.status == BOOKED
    if ours.expect in {Expectation.LINE, Expectation.PAIR}:
        if booked:
            return _of_amount(ours, theirs)
        if theirs.status == PENDING:
            return _pair(
                BreakClass.SHORT, Reason.PENDING_AT_BANK, ours, theirs, -ours.amount, wait=True
            )
        return _pair(BreakClass.STATUS, Reason.REJECTED_BY_BANK, ours, theirs, -ours.amount)
    if ours.expect == Expectation.NOTHING:
        amount = theirs.amount if booked else 0
        return _pair(BreakClass.STATUS, Reason.REFUSED_BY_US, ours, theirs, amount, wait=not booked)
    amount = theirs.amount if booked else 0
    return _pair(BreakClass.STATUS, Reason.OUTCOME_UNKNOWN, ours, theirs, amount, wait=True)


def _of_amount(ours: Ours, theirs: Theirs) -> Found:
    if ours.currency != theirs.currency:
        note = f"the line is of {theirs.amount} {theirs.currency}"
        found = _pair(BreakClass.AMOUNT, Reason.OTHER_CURRENCY, ours, theirs, -ours.amount)
        return found._replace(note=note)
    difference = theirs.amount - ours.amount
    return _pair(BreakClass.AMOUNT, Reason.OTHER_AMOUNT, ours, theirs, difference)


def of_ours(ours: Ours, *, partner_is_absent: bool) -> Found | None:
    """An attempt without a line. `partner_is_absent`: so is the other half of its reversal."""
    match ours.expect:
        case Expectation.LINE | Expectation.PAIR if partner_is_absent:
            return None
        case Expectation.LINE:
            return _single(BreakClass.SHORT, Reason.NOT_IN_STATEMENT, ours)
        case Expectation.PAIR:
            return _single(BreakClass.SHORT, Reason.HALF_OF_A_REVERSAL, ours)
        case Expectation.UNKNOWN:
            found = _single(BreakClass.STATUS, Reason.OUTCOME_UNKNOWN, ours)
            return found._replace(amount=0)
    return None


def of_theirs(theirs: Theirs, ordinal: int) -> Found | None:
    """A line that found no attempt. `ordinal`: among lines that say the same."""
    if theirs.status != BOOKED:
        return None
    return Found(
        BreakClass.LONG, Reason.NOT_OURS, line_identity(theirs, ordinal), "", theirs.amount,
        theirs.currency, None, theirs, may_resolve=True,
    )  # fmt: skip


def of_surplus(attempt_id: str, theirs: Theirs, ordinal: int, reason: Reason) -> Found:
    """One more line of an attempt that has its line."""
    return Found(
        BreakClass.DUPLICATE, reason, f"{attempt_id}/{ordinal}", attempt_id, theirs.amount,
        theirs.currency, None, theirs, may_resolve=False,
    )  # fmt: skip


def line_identity(theirs: Theirs, ordinal: int) -> str:
    """Names a line though a corrected statement may number it anew."""
    at = theirs.happened_at.isoformat() if theirs.happened_at else ""
    parts = (
        theirs.reference, theirs.short_reference, theirs.bank_reference, theirs.kind,
        str(theirs.amount), theirs.currency, at, str(ordinal),
    )  # fmt: skip
    return "\x1e".join(parts)


def _pair(
    kind: BreakClass, reason: Reason, ours: Ours, theirs: Theirs, amount: int, *, wait: bool = False
) -> Found:
    return Found(
        kind, reason, ours.attempt_id, ours.attempt_id, amount, ours.currency, ours, theirs, wait
    )


def _single(kind: BreakClass, reason: Reason, ours: Ours) -> Found:
    return Found(
        kind, reason, ours.attempt_id, ours.attempt_id, -ours.amount, ours.currency, ours, None,
        may_resolve=True,
    )  # fmt: skip


class Elsewhere(NamedTuple):
    """An attempt that a line names and that this day does not have."""

    attempt_id: str
    channel: str
    day: date
    # A break of it was adjusted or closed.
    adjusted: bool


def of_elsewhere(found: Found, known: Elsewhere | None, channel: str, day: date) -> Found:
    """A line without an attempt of the day, once the database was asked for its reference."""
    if known is None:
        return found
    found = found._replace(attempt_id=known.attempt_id)
    if known.channel != channel:
        note = f"the attempt went to {known.channel}"
        return found._replace(reason=Reason.OF_ANOTHER_CHANNEL, may_resolve=False, note=note)
    if known.adjusted:
        return found._replace(reason=Reason.AFTER_ITS_ADJUSTMENT, may_resolve=False)
    if known.day > day:
        return found._replace(reason=Reason.OF_A_LATER_DAY, note=f"ours counts it for {known.day}")
    assert found.theirs is not None, "only lines are long"
    surplus = of_surplus(known.attempt_id, found.theirs, 1, Reason.LISTED_ON_AN_EARLIER_DAY)
    return surplus._replace(note=f"ours counts it for {known.day}")


def channel_slot(channel: str) -> int:
    """Where what belongs to no user is posted: fees, lines of nobody."""
    return slot_of_user(f"channel:{channel}")


def break_slot(found: Found, channel: str) -> int:
    return slot_of_id(found.attempt_id) if found.attempt_id else channel_slot(channel)


def break_id(found: Found, channel: str, day: date) -> str:
    """The same at every run of the day."""
    slot = break_slot(found, channel)
    return derive(Kind.BREAK, slot, channel, day.isoformat(), found.break_class, found.identity)


def fee_of(amount: int, kind: str, tiers: Iterable[FeeTier]) -> int:
    """What was agreed for a line; `matching` has the same as SQL."""
    amount = abs(amount)
    for tier in tiers:
        if kind in tier.kinds and (tier.up_to is None or amount <= tier.up_to):
            fee = (amount * tier.basis_points + 5_000) // 10_000 + tier.fixed
            fee = max(fee, tier.at_least)
            return fee if tier.at_most is None else min(fee, tier.at_most)
    return 0


class Verdict(StrEnum):
    CARRY = "carry"
    ADJUST = "adjust"
    CASE = "case"


def decide(
    break_class: BreakClass,
    amount: int,
    *,
    may_resolve: bool,
    by_rule: bool,
    age_days: int,
    adjusted_today: int,
    limits: Limits,
) -> Verdict:
    """What becomes of an open break. `adjusted_today`: by rule, for its channel, day, currency."""
    rule = limits.rules[break_class]
    if may_resolve and age_days < rule.carry_days:
        return Verdict.CARRY
    within = by_rule and 0 < abs(amount) <= rule.adjust_max
    if within and adjusted_today + abs(amount) <= limits.adjust_day_max:
        return Verdict.ADJUST
    return Verdict.CASE


class Side(StrEnum):
    """Of an adjustment, by the names of cells.adjustments."""

    CHANNEL = "channel"
    FEES = "fees"
    SUSPENSE = "suspense"


class Posting(NamedTuple):
    """What the slot's home is asked to post; the same `break_id` is the same posting."""

    slot: int
    break_id: str
    channel: str
    source: Side
    target: Side
    amount: int
    currency: str
    subject_id: str
    reason: str
    approved_by: str


def posting_of(
    break_id: str,
    break_class: BreakClass,
    channel: str,
    amount: int,
    currency: str,
    subject_id: str,
    reason: str,
    approved_by: str,
) -> Posting:
    """The bank owes us `amount` more: the channel account falls by it (router.ids.Purpose)."""
    assert amount, "nothing to post"
    other = Side.FEES if break_class == BreakClass.FEE else Side.SUSPENSE
    source, target = (Side.CHANNEL, other) if amount > 0 else (other, Side.CHANNEL)
    return Posting(
        slot_of_id(break_id), break_id, channel, source, target, abs(amount), currency,
        subject_id or break_id, reason, approved_by,
    )  # fmt: skip


def is_implausible(differences: int, rows: int, limits: Limits) -> bool:
    return differences > max(limits.implausible_min, int(rows * limits.implausible_ratio))
