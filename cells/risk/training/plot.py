"""The curves of docs/risk-model.md."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

from cells.risk.training.dataset import Array, Dataset
from cells.risk.training.evaluate import curve, point

GOAL = (0.005, 0.85)


def draw(scores: Array, data: Dataset, path: Path) -> None:
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "cellpay"
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5))
    for name, with_rules, style in (("model only", False, "--"), ("rules and model", True, "-")):
        wrong, recall, precision = curve(scores, data, with_rules)
        left.step(100 * wrong, 100 * recall, style, where="post", label=name)
        right.step(100 * recall, 100 * precision, style, where="pre", label=name)
    alone = point("rules only", data.ruled, data, 0)
    left.plot(100 * alone.false_positives, 100 * alone.recall, "o", label=alone.way)
    right.plot(100 * alone.recall, 100 * alone.precision, "o", label=alone.way)
    left.plot(100 * GOAL[0], 100 * GOAL[1], "k+", markersize=12, label="goal")
    left.set_xscale("log")
    left.set_xlim(0.02, 20)
    left.set_ylim(0, 101)
    left.set_xlabel("false positives, % of honest requests")
    left.set_ylabel("recall, % of fraudulent requests")
    left.set_title("ROC (false positives in logarithm)")
    right.set_xlim(0, 101)
    right.set_ylim(0, 101)
    right.set_xlabel("recall, %")
    right.set_ylabel("precision, % (at the stream's share of fraud)")
    right.set_title("Precision and recall")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(loc="lower left" if axes is right else "lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
