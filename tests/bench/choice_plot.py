"""The simulated day as a picture for docs/channel-choice.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl

from tests.bench.choice_day import SCHEMES, Outage
from tests.bench.figures import ROOT

_HOURS = 24
# An hour's mean: a quarter of an hour at night has few charges.
_SMOOTH = 4


def draw(outcomes: Mapping[str, Any], troubles: Sequence[Outage]) -> None:
    """`outcomes`: by strategy (tests.bench.choice_sim.Outcome)."""
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "cellpay"
    from matplotlib import pyplot

    figure, (rates, shares, totals) = pyplot.subplots(
        3, 1, figsize=(10, 11), height_ratios=(3, 3, 2)
    )
    for name, outcome in outcomes.items():
        style = {"ours": "-", "oracle": "--"}.get(name, ":")
        rates.plot(*_rate(outcome), style, label=name, linewidth=2 if name == "ours" else 1.4)
    rates.set_ylabel("approved, % (an hour's mean)")
    rates.set_title("A day with outages: approvals by strategy")
    rates.legend(loc="lower left", ncols=5, fontsize=8)
    _shade(rates, troubles)
    _shares(shares, outcomes["ours"])
    _shade(shares, troubles)
    for axes in (rates, shares):
        axes.set_xlim(0, _HOURS)
        axes.set_xticks(range(0, _HOURS + 1, 3))
        axes.grid(alpha=0.3)
    shares.set_xlabel("hour of the day")
    _totals(totals, outcomes)
    figure.tight_layout()
    for kind in ("png", "svg"):
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(ROOT / "docs" / f"choice-day.{kind}", dpi=110, metadata=metadata)
    pyplot.close(figure)


def _rate(outcome: Any) -> tuple[list[float], list[float]]:
    hours, found = [], []
    for number in range(len(outcome.slices)):
        window = outcome.slices[max(0, number - _SMOOTH + 1) : number + 1]
        charges = sum(item.charges for item in window)
        if charges:
            hours.append((number + 1) * _HOURS / len(outcome.slices))
            found.append(100 * sum(item.approved for item in window) / charges)
    return hours, found


def _shares(axes: Any, outcome: Any) -> None:
    names = sorted(outcome.first)
    count = len(outcome.slices)
    totals = [max(sum(outcome.first[name][at] for name in names), 1) for at in range(count)]
    parts = [[100 * outcome.first[name][at] / totals[at] for at in range(count)] for name in names]
    axes.stackplot([at * _HOURS / count for at in range(count)], parts, labels=names, alpha=0.8)
    axes.set_ylim(0, 100)
    axes.set_ylabel("asked first by ours, %")
    axes.legend(loc="lower left", ncols=6, fontsize=8)


def _shade(axes: Any, troubles: Sequence[Outage]) -> None:
    for number, trouble in enumerate(troubles):
        begin, end = trouble.begin_s / 3600, trouble.end_s / 3600
        axes.axvspan(begin, end, color="#888888", alpha=0.15)
        which = "" if len(trouble.schemes) == len(SCHEMES) else f" {trouble.schemes[0]}"
        height = 0.98 - 0.07 * (number % 2)
        axes.text(
            begin, height, f"{trouble.channel} {trouble.trouble}{which}",
            transform=axes.get_xaxis_transform(), fontsize=6.5, va="top",
        )  # fmt: skip


def _totals(axes: Any, outcomes: Mapping[str, Any]) -> None:
    for name, outcome in outcomes.items():
        x, y = outcome.cost_ppm / 10_000, 100 * outcome.approval_rate
        axes.plot(x, y, "o", markersize=9 if name == "ours" else 6)
        axes.annotate(name, (x, y), textcoords="offset points", xytext=(8, -3), fontsize=9)
    axes.set_xlabel("cost, % of the approved volume")
    axes.set_ylabel("approved, %")
    axes.set_title("The whole day: up and to the left is better")
    axes.margins(0.15)
    axes.grid(alpha=0.3)
