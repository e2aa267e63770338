"""What a drill may be, what the steady state is, how a drill ends: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from control.drills.model import Check, Drill, Event, Fault, Hypothesis, Spec, State
from router.errors import Violation

LEASE_MAX_S = 3_600
LATENCY_MAX_MS = 60_000
TIMES_MAX = 20
RATE_MAX_PER_S = 200
NAME_CHARACTERS_MAX = 48
# Fewer finished payments than this say nothing yet.
_ABORT_SAMPLES_MIN = 20
ABORT_WINDOW_MS = 8_000
# The promise to merchants that the budget is counted against: 99.9 % over 30 days.
_SLO = 0.999
_BUDGET_MS = 30 * 86_400_000 * (1 - _SLO)

_NEEDS_CELL = frozenset(
    {Fault.CELL_LOSS, Fault.PAUSE, Fault.PARTITION, Fault.LATENCY, Fault.CLOCK_JUMP}
)
_MAY_HAVE_CELL = _NEEDS_CELL | {Fault.DATABASE_CONNECTION_LOSS, Fault.REDIS_LOSS}
_LATENCY_DEFAULT_MS = {Fault.LATENCY: 200, Fault.SLOW_CHANNEL: 3_000}
BOOKS_OK, BOOKS_BROKEN, BOOKS_UNREACHABLE = "ok", "broken", "unreachable"


class Sample(NamedTuple):
    """One probe payment. Times are ms of one clock of the probing process."""

    # Its payer's home when the drill began.
    cell: str
    began_ms: int
    ended_ms: int
    paid: bool


def violations_of(spec: Spec, cells: Mapping[str, str]) -> list[Violation]:
    """Everything that is wrong with it in a mesh of these cells (cell → region)."""
    found = [*_wrong_name(spec.name), *_wrong_targets(spec, cells)]
    ranges = (
        ("lease_s", spec.lease_s, 5, LEASE_MAX_S),
        ("observe_s", spec.observe_s, 1, spec.lease_s),
        ("check_s", spec.check_s, 1, 60),
        ("probe_rate_per_s", spec.probe_rate_per_s, 1, RATE_MAX_PER_S),
        ("latency_ms", spec.latency_ms, 0, LATENCY_MAX_MS),
        ("times", spec.times, 0, TIMES_MAX),
        ("loss_ratio", spec.loss_ratio, 0, 0.5),
        ("hypothesis.p99_max_ms", spec.hypothesis.p99_max_ms, 1, 600_000),
        ("hypothesis.during_p99_max_ms", spec.hypothesis.during_p99_max_ms, 1, 600_000),
        ("hypothesis.success_min", spec.hypothesis.success_min, 0, 1),
        ("hypothesis.during_success_min", spec.hypothesis.during_success_min, 0, 1),
        ("hypothesis.abort_success_min", spec.hypothesis.abort_success_min, 0, 1),
    )
    found += [
        Violation(f"spec.{name}", f"must be {low} to {high}")
        for name, value, low, high in ranges
        if not low <= value <= high
    ]
    return found


def _wrong_name(name: str) -> list[Violation]:
    fine = name and name.isascii() and name.replace("-", "").isalnum() and name == name.lower()
    if not fine or len(name) > NAME_CHARACTERS_MAX or name.startswith("-"):
        wanted = f"must be 1 to {NAME_CHARACTERS_MAX} lower case letters, digits and hyphens"
        return [Violation("spec.name", wanted)]
    return []


def _wrong_targets(spec: Spec, cells: Mapping[str, str]) -> list[Violation]:
    found = []
    known = ", ".join(sorted(cells))
    if spec.fault in _NEEDS_CELL and not spec.cell:
        found.append(Violation("spec.cell", f"{spec.fault} is about a cell: one of {known}"))
    elif spec.cell and spec.fault not in _MAY_HAVE_CELL:
        found.append(Violation("spec.cell", f"{spec.fault} is not about a cell"))
    elif spec.cell and spec.cell not in cells:
        found.append(Violation("spec.cell", f"there is no cell {spec.cell!r}; there are {known}"))
    if spec.fault == Fault.PARTITION:
        if spec.other_cell not in cells:
            found.append(Violation("spec.other_cell", f"must be one of {known}"))
        elif spec.other_cell == spec.cell:
            found.append(Violation("spec.other_cell", "must be another cell"))
    elif spec.other_cell:
        found.append(Violation("spec.other_cell", f"{spec.fault} has no other cell"))
    regions = sorted(set(cells.values()))
    if spec.fault == Fault.REGION_LOSS:
        if spec.region not in regions:
            found.append(Violation("spec.region", f"must be one of {', '.join(regions)}"))
        elif len(regions) < 2:
            found.append(Violation("spec.region", "it is the only region"))
    elif spec.region:
        found.append(Violation("spec.region", f"{spec.fault} is not about a region"))
    return found


def latency_ms_of(spec: Spec) -> int:
    return spec.latency_ms or _LATENCY_DEFAULT_MS.get(spec.fault, 0)


def touched_cells(spec: Spec, cells: Mapping[str, str]) -> frozenset[str]:
    """Cells whose slots may go elsewhere because of the fault, and are given back in the end."""
    if spec.fault == Fault.REGION_LOSS:
        return frozenset(cell for cell, region in cells.items() if region == spec.region)
    return frozenset({spec.cell, spec.other_cell} - {""})


@dataclass(frozen=True, slots=True)
class Figures:
    payments: int
    success_ratio: float
    p99_ms: int


def measure(samples: Sequence[Sample]) -> Figures:
    """Of payments that were not made the time counts too: somebody waited for nothing."""
    if not samples:
        return Figures(0, 0.0, 0)
    durations = sorted(sample.ended_ms - sample.began_ms for sample in samples)
    p99 = durations[min(len(durations) - 1, len(durations) * 99 // 100)]
    paid = sum(sample.paid for sample in samples)
    return Figures(len(samples), paid / len(samples), p99)


class Audited(NamedTuple):
    """What an audit of the books said; `broken`: the checks that do not hold."""

    books: str
    broken: tuple[str, ...] = ()


def judge(phase: str, samples: Sequence[Sample], audited: Audited, bound: Hypothesis) -> Check:
    """Does the steady state hold? While the fault lasts the books may be out of reach."""
    figures = measure(samples)
    during = phase == "during"
    success_min = bound.during_success_min if during else bound.success_min
    p99_max_ms = bound.during_p99_max_ms if during else bound.p99_max_ms
    wrong = []
    if not figures.payments:
        wrong.append("no payment was tried")
    if figures.success_ratio < success_min:
        wrong.append(f"{figures.success_ratio:.1%} of payments were made, not {success_min:.1%}")
    if figures.p99_ms > p99_max_ms:
        wrong.append(f"p99 was {figures.p99_ms} ms, more than {p99_max_ms} ms")
    books = audited.books
    if books == BOOKS_BROKEN or (books == BOOKS_UNREACHABLE and not during):
        which = f" ({', '.join(audited.broken)})" if audited.broken else ""
        wrong.append(f"the books are {books}{which}")
    return Check(
        phase, figures.payments, figures.success_ratio, figures.p99_ms, books,
        holds=not wrong, why="; ".join(wrong),
    )  # fmt: skip


def unproven(check: Check, seen: str) -> Check:
    """A steady state that nothing disturbed: it must not count as one that held."""
    why = f"the fault was not in force: {seen}"
    return replace(check, holds=False, why="; ".join(filter(None, (why, check.why))))


def breaks_badly(samples: Sequence[Sample], now_ms: int, bound: Hypothesis) -> str:
    """Why the drill must be aborted now; empty when it may go on."""
    recent = [sample for sample in samples if sample.ended_ms > now_ms - ABORT_WINDOW_MS]
    if len(recent) < _ABORT_SAMPLES_MIN:
        return ""
    ratio = measure(recent).success_ratio
    if ratio >= bound.abort_success_min:
        return ""
    return (
        f"{ratio:.1%} of the last {len(recent)} payments were made, "
        f"less than {bound.abort_success_min:.1%}"
    )


def outage_ms(samples: Sequence[Sample], since_ms: int, until_ms: int) -> Mapping[str, int]:
    """For each cell's users the longest time without a payment of theirs, less the usual pace."""
    result = {}
    for cell in sorted({sample.cell for sample in samples}):
        ours = [sample for sample in samples if sample.cell == cell and sample.paid]
        began = sorted(sample.began_ms for sample in samples if sample.cell == cell)
        pace = _widest(began) if len(began) > 1 else 0
        ends = sorted(s.ended_ms for s in ours if since_ms <= s.ended_ms <= until_ms)
        result[cell] = max(0, _widest([since_ms, *ends, until_ms]) - pace)
    return result


def _widest(times: Sequence[int]) -> int:
    return max((later - earlier for earlier, later in pairwise(times)), default=0)


def budget_burnt(samples: Sequence[Sample], lasted_ms: int, late_ms: int) -> float:
    """The share of a month's error budget: the time that the fault lasted, by what then failed.

    A payment that was made too late failed whoever waited for it.
    """
    if not samples:
        return 0.0
    good = sum(item.paid and item.ended_ms - item.began_ms <= late_ms for item in samples)
    return (1 - good / len(samples)) * lasted_ms / _BUDGET_MS


def conclusion(drill: Drill) -> tuple[Event, str]:
    """How a drill that was checked after ends: the event and the verdict."""
    after = next((check for check in reversed(drill.checks) if check.phase == "after"), None)
    verdict = "held" if drill.checks and all(check.holds for check in drill.checks) else "broken"
    if after is None or after.books != BOOKS_OK:
        return Event.BOOKS_BROKEN, "broken"
    if drill.cut_short:
        return Event.CUT_SHORT, "broken"
    return Event.COMPLETED, verdict


class Resume(NamedTuple):
    """What a process does that takes a drill up from another, which died."""

    # From the beginning, nothing was done yet.
    refuse: bool
    heal: bool


def resumption(drill: Drill) -> Resume:
    """A fault does not go on without the process that watched it: it is healed."""
    if drill.state in {State.PLANNED, State.CHECKED_BEFORE} and not drill.undo:
        return Resume(refuse=True, heal=False)
    waits = drill.state in {State.CHECKED_BEFORE, State.INJECTED, State.CHECKED_DURING}
    return Resume(refuse=False, heal=waits)
