"""Double 11 in miniature as a picture for docs/elasticity.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl

from tests.bench.figures import ROOT

_SLICE_S = 1.0


def draw(found: Mapping[str, Any], curve: Any) -> None:
    """`found`: by run (tests.bench.double11.Seen)."""
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "cellpay"
    from matplotlib import pyplot

    figure, (rates, sizes, latencies) = pyplot.subplots(3, 1, figsize=(9, 9), sharex=True)
    moments = [number * 0.1 for number in range(int(curve.length_s * 10))]
    rates.plot(moments, [curve.per_s(at) for at in moments], color="#888888", label="due")
    for name, seen in found.items():
        rates.plot(*_answered(seen), ".", markersize=4, label=f"paid ({name})")
        sizes.step(*zip(*seen.sizes, strict=True), where="post", label=name)
        latencies.plot(*_worst_ms(seen), label=name)
    rates.set_ylabel("payments a second")
    rates.set_title("A step of twenty times: no call fails, the cell's processes follow")
    sizes.set_ylabel("processes of the cell")
    sizes.yaxis.get_major_locator().set_params(integer=True)
    latencies.set_ylabel("slowest payment of a second, ms")
    latencies.set_yscale("log")
    latencies.set_xlabel("s")
    for axes in (rates, sizes, latencies):
        axes.axvline(curve.quiet_s, color="#cc0000", alpha=0.4, linewidth=1)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right", fontsize=8)
    figure.tight_layout()
    for kind in ("png", "svg"):
        # Without the date an SVG of the same figures is the same file.
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(ROOT / "docs" / f"double11.{kind}", dpi=110, metadata=metadata)
    pyplot.close(figure)


def _answered(seen: Any) -> tuple[list[float], list[float]]:
    """By when they were answered."""
    counts: dict[int, int] = {}
    for due, latency, outcome in seen.payments:
        if outcome == "paid":
            number = int((due + latency) / _SLICE_S)
            counts[number] = counts.get(number, 0) + 1
    return [number * _SLICE_S for number in sorted(counts)], [
        counts[number] / _SLICE_S for number in sorted(counts)
    ]


def _worst_ms(seen: Any) -> tuple[list[float], list[float]]:
    """By when they were due."""
    worst: dict[int, float] = {}
    for due, latency, _ in seen.payments:
        number = int(due / _SLICE_S)
        worst[number] = max(worst.get(number, 0.0), 1000 * latency)
    return [number * _SLICE_S for number in sorted(worst)], [worst[n] for n in sorted(worst)]
