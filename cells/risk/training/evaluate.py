"""How well requests are told apart: recall and precision at given rates of false positives.

A threshold is chosen on one set of requests and judged on others. False positives are counted per
honest request, recall per fraudulent one; what got away before an attack was first noticed is told
apart, because in life the rest of an attack does not come.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cells.risk.training.dataset import Array, Dataset

# Fraud is rarer in life than in the stream, and precision depends on how rare: one in a thousand.
LIFE = 0.001
NEVER = 2.0


class Point(NamedTuple):
    """One way to decide, at one threshold, on one set of requests."""

    way: str
    threshold: float
    false_positives: float
    recall: float
    precision: float

    @property
    def precision_in_life(self) -> float:
        caught, wrong = self.recall * LIFE, self.false_positives * (1 - LIFE)
        return caught / (caught + wrong) if caught + wrong else 1.0


class Pattern(NamedTuple):
    name: str
    requests: int
    attacks: int
    by_rules: float
    by_model: float
    by_both: float
    # Attacks noticed at all; and the share of their money that was asked for before they were.
    noticed: float
    away_before: float


def threshold_at(scores: Array, data: Dataset, rate: float, with_rules: bool) -> float:
    """The lowest score that, flagged, keeps honest requests under the rate. NEVER when rules alone
    are above it."""
    honest = ~data.fraud
    allowed = int(rate * honest.sum())
    if with_rules:
        allowed -= int((honest & data.ruled).sum())
        honest = honest & ~data.ruled
    if allowed <= 0:
        return NEVER
    ranked = np.sort(scores[honest])[::-1]
    return float(ranked[allowed]) + 1e-9 if allowed < len(ranked) else 0.0


def point(way: str, flagged: Array, data: Dataset, threshold: float) -> Point:
    honest = ~data.fraud
    wrong, right = int((flagged & honest).sum()), int((flagged & data.fraud).sum())
    return Point(
        way, threshold, wrong / int(honest.sum()), right / int(data.fraud.sum()),
        right / (right + wrong) if right + wrong else 1.0,
    )  # fmt: skip


def points(
    scores: Array, data: Dataset, chosen_on: tuple[Array, Dataset], rates: Sequence[float]
) -> list[Point]:
    """Rules alone, then model alone and both at each rate."""
    found = [point("rules only", data.ruled, data, NEVER)]
    for rate in rates:
        alone = threshold_at(*chosen_on, rate, with_rules=False)
        found.append(point("model only", scores >= alone, data, alone))
        both = threshold_at(*chosen_on, rate, with_rules=True)
        flagged = data.ruled | (scores >= both)
        found.append(point("rules and model", flagged, data, both))
    return found


def patterns(scores: Array, data: Dataset, alone: float, both: float) -> list[Pattern]:
    """In the order of names. `alone`, `both`: thresholds of the model by itself, with rules."""
    found = []
    for name in sorted({str(name) for name in data.pattern} - {""}):
        of = data.where(data.pattern == name)
        modelled, of_scores = scores[data.pattern == name] >= alone, scores[data.pattern == name]
        flagged = of.ruled | (of_scores >= both)
        episodes = sorted({int(number) for number in of.episode})
        spans = [flagged[of.episode == number] for number in episodes]
        amounts = [of.amount[of.episode == number] for number in episodes]
        before = sum(
            int(amount[: int(np.argmax(span)) if span.any() else len(span)].sum())
            for span, amount in zip(spans, amounts, strict=True)
        )
        found.append(
            Pattern(
                name, len(of.day), len(episodes), float(of.ruled.mean()), float(modelled.mean()),
                float(flagged.mean()), float(np.mean([span.any() for span in spans])),
                before / int(of.amount.sum()),
            )
        )  # fmt: skip
    return found


def curve(scores: Array, data: Dataset, with_rules: bool) -> tuple[Array, Array, Array]:
    """False positive rate, recall and precision as the threshold falls."""
    ranks = np.where(data.ruled, NEVER, scores) if with_rules else scores
    order = np.argsort(-ranks, kind="stable")
    fraud = data.fraud[order]
    right, wrong = np.cumsum(fraud), np.cumsum(~fraud)
    # Where scores are equal, only the last of them is a threshold.
    ends = np.append(np.diff(ranks[order]) != 0, True)
    right, wrong = right[ends], wrong[ends]
    return wrong / max(wrong[-1], 1), right / max(right[-1], 1), right / (right + wrong)
