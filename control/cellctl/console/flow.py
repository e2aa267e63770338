"""What flows through cells, ranges of slots and channels, from the counters that cells tell. Pure.

A counter only grows, until its process ends: what matters is by how much it grew between two looks.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grpc

# Of all that a cell tells, what is read here.
CALLS = "cellpay_slot_requests_total"
DURATIONS = "cellpay_slot_request_duration_seconds_bucket"
PAYMENTS = "cellpay_payments_total"
ANSWERS = "cellpay_bank_answers_total"
# Every process tells it, whatever it does: that it was heard at all.
STARTED = "process_start_time_seconds"
NAMES = (CALLS, DURATIONS, PAYMENTS, ANSWERS, STARTED)
# How far back rates look: what happens now, and what is seldom (a bank's answers).
WINDOW_S = 10.0
LONG_WINDOW_S = 60.0
# As router/tally.py counts: what the rules refuse is a success of the cell.
_FAULTS = frozenset(
    code.name
    for code in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )
)
_APPROVED = "approved"
# Of the bank's own making, or of the way to it: what a decline is not.
_BAD_VERDICTS = frozenset({"failed", "unknown"})


class Series(NamedTuple):
    """One counter's name and labels."""

    name: str
    labels: tuple[tuple[str, str], ...]

    def label(self, name: str) -> str:
        return dict(self.labels).get(name, "")


class Look(NamedTuple):
    """All cells' counters at a moment, by the clock of who looked."""

    at_s: float
    # A cell that did not answer is not in it.
    cells: Mapping[str, Mapping[Series, float]]


def wanted(page: str) -> str:
    """The lines of a page of metrics that are read here: the rest costs too much to parse."""
    return "\n".join(line for line in page.splitlines() if line.startswith(NAMES)) + "\n"


def grown(before: Mapping[Series, float], after: Mapping[Series, float]) -> dict[Series, float]:
    """By how much each counter grew. Of a process that was not seen before, nothing is known; one
    that began anew has counted from nothing."""
    processes = {series.label("process") for series in before}
    found = {}
    for series, value in after.items():
        if series.name != STARTED and series.label("process") in processes:
            old = before.get(series, 0.0)
            found[series] = value - old if value >= old else value
    return found


def between(looks: Sequence[Look], window_s: float) -> tuple[Look, Look] | None:
    """The newest look, and the oldest one that is within the window before it; None of one look.
    `looks`: oldest first."""
    if len(looks) < 2:
        return None
    last = looks[-1]
    since = [look for look in looks[:-1] if last.at_s - look.at_s <= window_s]
    return (since[0] if since else looks[-2]), last


def flow_document(looks: Sequence[Look], cells: Sequence[str]) -> dict[str, Any]:
    """JSON-ready: what each cell and each range of slots does now. Figures of what has not been
    looked at twice are null."""
    span = between(looks, WINDOW_S)
    growth = _growth(span)
    by_range: dict[str, Counter[Series]] = defaultdict(Counter)
    owners: dict[str, set[str]] = defaultdict(set)
    for cell, series in growth.items():
        for one, value in series.items():
            slots = one.label("slots")
            if slots:
                by_range[slots][one] += value  # type: ignore[assignment]
                if value and one.name == CALLS:
                    owners[slots].add(cell)
    seconds = span[1].at_s - span[0].at_s if span else 0.0
    return {
        "window_s": round(seconds, 1),
        "cells": [_cell(cell, growth.get(cell), looks, seconds) for cell in cells],
        "ranges": [
            {"slots": _slots(name), "cells": sorted(owners[name]), **_red(series, seconds)}
            for name, series in sorted(by_range.items())
        ],
    }


def answers_document(looks: Sequence[Look]) -> dict[str, dict[str, Any]]:
    """Channel → what its bank answered: in the last minute, and since the cells' start."""
    span = between(looks, LONG_WINDOW_S)
    minute = _answers(_growth(span).values())
    total = _answers(looks[-1].cells.values() if looks else ())
    seconds = span[1].at_s - span[0].at_s if span else 0.0
    found = {}
    for channel, counts in total.items():
        now = minute.get(channel, Counter())
        found[channel] = {
            "window_s": round(seconds, 1),
            "answers": now.total(),
            "approved_percent": _percent(now[_APPROVED], now.total()),
            "sound_percent": _percent(
                now.total() - sum(now[verdict] for verdict in _BAD_VERDICTS), now.total()
            ),
            "answers_since_start": counts.total(),
            "verdicts_since_start": dict(sorted(counts.items())),
        }
    return found


def _growth(span: tuple[Look, Look] | None) -> dict[str, dict[Series, float]]:
    if span is None:
        return {}
    first, last = span
    return {
        cell: grown(first.cells[cell], after)
        for cell, after in last.cells.items()
        if cell in first.cells
    }


def _cell(
    cell: str, series: Mapping[Series, float] | None, looks: Sequence[Look], seconds: float
) -> dict[str, Any]:
    silent = bool(looks) and cell not in looks[-1].cells
    if series is None:
        nothing = dict.fromkeys(("requests_per_s", "success_percent", "p99_ms", "payments_per_s"))
        return {"cell": cell, "silent": silent, **nothing}
    payments = sum(
        value
        for one, value in series.items()
        if one.name == PAYMENTS and one.label("outcome") == "accepted"
    )
    rate = round(payments / seconds, 1) if seconds else None
    return {"cell": cell, "silent": silent, **_red(series, seconds), "payments_per_s": rate}


def _red(series: Mapping[Series, float], seconds: float) -> dict[str, Any]:
    """Rate, errors, duration."""
    calls = failed = 0.0
    buckets: Counter[float] = Counter()
    for one, value in series.items():
        if one.name == CALLS:
            calls += value
            failed += value if one.label("code") in _FAULTS else 0.0
        elif one.name == DURATIONS:
            buckets[float(one.label("le"))] += value  # type: ignore[assignment]
    return {
        "requests_per_s": round(calls / seconds, 1) if seconds else None,
        "success_percent": _percent(calls - failed, calls),
        "p99_ms": _quantile_ms(buckets, 0.99),
    }


def _quantile_ms(buckets: Mapping[float, float], part: float) -> float | None:
    """An upper bound of it: that of the bucket in which it lies, or the last bound there is.
    `buckets`: bound in seconds → how many took no longer."""
    bounds = sorted(buckets)
    if not bounds or not buckets[bounds[-1]]:
        return None
    rank = part * buckets[bounds[-1]]
    reached = next(bound for bound in bounds if buckets[bound] >= rank)
    finite = [bound for bound in bounds if bound != float("inf")]
    return round(min(reached, finite[-1]) * 1000, 1) if finite else None


def _answers(cells: Iterable[Mapping[Series, float]]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for channel, verdict, value in _verdicts(cells):
        found[channel][verdict] += value
    return dict(found)


def _verdicts(cells: Iterable[Mapping[Series, float]]) -> Iterator[tuple[str, str, int]]:
    for series in cells:
        for one, value in series.items():
            if one.name == ANSWERS:
                yield one.label("channel"), one.label("verdict"), round(value)


def _percent(part: float, whole: float) -> float | None:
    """Of nothing there is none."""
    return round(100 * part / whole, 2) if whole else None


def _slots(label: str) -> str:
    """`0064-0127` as everywhere else: 64-127."""
    first, _, last = label.partition("-")
    return f"{int(first)}-{int(last or first)}"
