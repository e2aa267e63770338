"""From a day's pool to its breaks: every pair, every half, every batch and fee is judged. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from cells.reconciliation.model import (
    Batch,
    BreakClass,
    Expectation,
    FeeDifference,
    Found,
    Guess,
    How,
    Ours,
    Outcome,
    Pool,
    Reason,
    Resolved,
    Sums,
    Theirs,
)
from cells.reconciliation.rules import (
    BOOKED,
    line_identity,
    of_ours,
    of_pair,
    of_surplus,
    of_theirs,
)
from cells.reconciliation.settings import ChannelPolicy


def judge(
    pool: Pool,
    sums: Sequence[Sums],
    policy: ChannelPolicy,
    *,
    lines: int,
    seconds: Mapping[str, float],
) -> Outcome:
    judged = _Judged()
    for oid, tid, how in pool.links:
        ours, theirs = pool.ours[oid], pool.theirs[tid]
        judged.settle(of_pair(ours, theirs), how, ours, theirs)
    _halves_of_ours(judged, pool)
    _halves_of_theirs(judged, pool)
    for batch in pool.batches:
        judged.settle(_of_batch(batch), How.BATCH, batch.line)
    judged.resolved.update((row[0], How.BATCH) for row in pool.in_batches)
    judged.found += _of_fees(pool.fees)
    if policy.fees and policy.fees_apart:
        judged.found += _of_fee_totals(sums)
    resolved = tuple(Resolved(*item) for item in sorted(judged.resolved.items()))
    unexplained = _unexplained(sums, [*judged.found, *judged.kept])
    return Outcome(
        tuple(judged.found), resolved, tuple(_guesses(pool)), tuple(sums), unexplained, lines,
        seconds,
    )  # fmt: skip


def _unexplained(sums: Sequence[Sums], breaks: Sequence[Found]) -> Mapping[str, int]:
    """Sums come from both sides' files, breaks from the pool: every cent between them must be some
    break's. The second half of "assert in pairs"."""
    left = Counter({of.currency: of.theirs_amount - of.ours_amount for of in sums})
    for item in breaks:
        if item.break_class == BreakClass.FEE:
            continue
        left[item.currency] -= item.amount
        if item.reason == Reason.OTHER_CURRENCY and item.theirs is not None:
            left[item.theirs.currency] -= item.theirs.amount
    return {currency: amount for currency, amount in sorted(left.items()) if amount}


class _Judged:
    def __init__(self) -> None:
        self.found: list[Found] = []
        # Of carried breaks: the difference as it is today.
        self.kept: list[Found] = []
        # Break of an earlier day → how it was explained.
        self.resolved: dict[str, str] = {}

    def settle(self, found: Found | None, how: str, *rows: Ours | Theirs) -> None:
        """A difference between carried rows that is of their break's class is that break still."""
        carriers = {row.carried: row.carried_class for row in rows if row.carried}
        if found is not None and found.break_class in carriers.values():
            same = found.break_class
            self.kept.append(found)
            found = None
            carriers = {name: kind for name, kind in carriers.items() if kind != same}
        self.resolved.update((name, str(how)) for name in carriers)
        if found is not None:
            self.found.append(found)


def _halves_of_ours(judged: _Judged, pool: Pool) -> None:
    linked = {oid for oid, _, _ in pool.links}
    left = {row.attempt_id: row for oid, row in sorted(pool.ours.items()) if oid not in linked}
    undone = {
        row.original_id
        for row in left.values()
        if row.kind == "void" and row.expect == Expectation.LINE
    }
    for row in left.values():
        if row.expect == Expectation.PAIR:
            absent = row.attempt_id in undone
        else:
            partner = left.get(row.original_id) if row.kind == "void" else None
            absent = partner is not None and partner.expect == Expectation.PAIR
        judged.settle(of_ours(row, partner_is_absent=absent), "nothing_moved", row)


def _halves_of_theirs(judged: _Judged, pool: Pool) -> None:
    linked = {tid for _, tid, _ in pool.links}
    left = [(tid, row) for tid, row in pool.theirs.items() if tid not in linked]
    alike: Counter[str] = Counter()
    for tid, row in sorted(left, key=lambda item: (item[1].line_no, item[0])):
        known = pool.known.get(tid)
        if known is not None and row.status == BOOKED:
            if known.expect == Expectation.NOTHING:
                judged.settle(of_pair(known, row), How.SHORT_REFERENCE, row)
                continue
            alike[known.attempt_id] += 1
            found = of_surplus(known.attempt_id, row, alike[known.attempt_id], Reason.LISTED_TWICE)
            judged.settle(found, "duplicate", row)
            continue
        identity = line_identity(row, 0)
        alike[identity] += 1
        judged.settle(of_theirs(row, alike[identity]), "not_booked", row)


def _of_batch(batch: Batch) -> Found | None:
    line = batch.line
    if line.amount == batch.amount:
        return None
    note = f"{batch.items} attempts sum to {batch.amount}"
    if batch.candidates:
        note += f"; of just the difference: {', '.join(batch.candidates)}"
    return Found(
        BreakClass.AMOUNT, Reason.BATCH_TOTAL, line_identity(line, 1), "",
        line.amount - batch.amount, line.currency, None, line, may_resolve=False, note=note,
    )  # fmt: skip


def _of_fees(fees: Iterable[FeeDifference]) -> Iterator[Found]:
    alike: Counter[str] = Counter()
    for item in fees:
        name = line_identity(item.line, 0) if item.line else f"{item.kind}/{item.currency}"
        alike[name] += 1
        yield _of_fee(item, alike[name])


def _of_fee(item: FeeDifference, number: int) -> Found:
    reason = Reason.FEE_OF_A_LINE if item.line else Reason.FEE_NOT_AGREED
    identity = line_identity(item.line, number) if item.line else f"{item.kind}/{item.currency}"
    note = f"{item.charged} charged, {item.expected} agreed"
    if item.line is None:
        note += f", of {item.lines} lines"
    return Found(
        BreakClass.FEE, reason, identity, "", item.expected - item.charged, item.currency, None,
        item.line, may_resolve=False, note=note,
    )  # fmt: skip


def _of_fee_totals(sums: Iterable[Sums]) -> list[Found]:
    return [
        Found(
            BreakClass.FEE, Reason.FEE_TOTAL, f"total/{of.currency}", "",
            of.fees_expected - of.fees_charged, of.currency, None, None, may_resolve=False,
            note=f"{of.fees_charged} charged, {of.fees_expected} agreed",
        )
        for of in sums
        if of.fees_expected != of.fees_charged
    ]  # fmt: skip


def _guesses(pool: Pool) -> Iterable[Guess]:
    for oid, tid, how in pool.links:
        if how is How.HEURISTIC:
            ours = pool.ours[oid]
            yield Guess(ours.attempt_id, pool.theirs[tid].line_no, ours.amount, ours.currency)
