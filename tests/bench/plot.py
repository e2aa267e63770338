"""Group size against latency, as a picture for docs/performance.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl

from tests.bench.figures import ROOT


def groups(ladder: Sequence[Mapping[str, float]]) -> None:
    """`ladder`: for a number of callers, the mean group, latencies (ms) and payments a second."""
    mpl.use("Agg")
    from matplotlib import pyplot

    sizes = [step["group"] for step in ladder]
    figure, left = pyplot.subplots(figsize=(8, 4.5))
    left.plot(sizes, [step["p50_ms"] for step in ladder], "o-", color="#1f77b4", label="p50")
    left.plot(sizes, [step["p99_ms"] for step in ladder], "s--", color="#1f77b4", label="p99")
    left.set_xscale("log", base=2)
    left.set_yscale("log")
    left.set_xlabel("payments in a group (mean)")
    left.set_ylabel("latency, ms")
    right = left.twinx()
    right.plot(sizes, [step["per_s"] for step in ladder], "^-", color="#d62728", label="payments/s")
    right.set_ylabel("payments/s of one lane")
    right.set_ylim(bottom=0)
    left.set_title("One lane: what a larger group costs, and what it gives")
    handles = [*left.get_lines(), *right.get_lines()]
    left.legend(handles, [str(handle.get_label()) for handle in handles], loc="upper left")
    left.grid(alpha=0.3)
    figure.tight_layout()
    for kind in ("png", "svg"):
        # Without the date an SVG of the same figures is the same file.
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(ROOT / "docs" / f"group-commit.{kind}", dpi=120, metadata=metadata)
    pyplot.close(figure)
