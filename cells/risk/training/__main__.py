"""Trains the example model → examples/risk/model.json, and says what it is worth in
docs/risk-model.md and docs/risk-model.svg."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from cells.risk.training import evaluate
from cells.risk.training.dataset import (
    EXAMPLES,
    Array,
    Dataset,
    make,
    read_features,
    read_rules,
)
from cells.risk.training.evaluate import Pattern, Point, patterns, points, threshold_at
from cells.risk.training.fit import Shape, fit, gains, references, scores_of
from cells.risk.training.plot import draw
from cells.risk.training.simulate import Plan
from router.risk.artefact import ModelMode, RiskModel, pack
from router.risk.trees import Input, Model, dump, facts_of

_ROOT = EXAMPLES.parents[1]
_PAGE = _ROOT / "docs" / "risk-model.md"
RATES = (0.003, 0.005, 0.01)
GOAL_RATE = 0.005
# Days of a stream before which windows of 30 days are too empty to learn from.
WARM_UP_DAYS = 20
TRAINED_UNTIL_DAY = 55
_FRESH_FROM_DAY = 30
_UNSEEN = ("collusive_merchant", "slow_drain")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cells.risk.training")
    parser.add_argument("--version", default="2026-11-29.1", help="Of the model.")
    parser.add_argument("--out", type=Path, default=EXAMPLES / "model.json")
    parser.add_argument("--no-docs", action="store_true")
    given = parser.parse_args()
    features, rules = read_features(), read_rules()
    began = time.process_time()
    stream = make(Plan(seed=1, users=2000, days=80), features, rules)
    trained_on, chosen_on, judged_on = split(stream)
    fresh = _joined(
        [make(Plan(seed, users=900, days=60, unseen=True), features, rules) for seed in (2, 3)]
    )
    model = fit(trained_on, Shape(), given.version)
    model = annotated(model, chosen_on, {"requests_trained_on": len(trained_on.day), "seed": 1})
    written = write(model, given.out)
    took_s = time.process_time() - began
    print(f"{given.out}: {written} bytes; {took_s:.0f} s of processor time")
    told = tell(model, chosen_on, judged_on, fresh)
    print(told)
    if given.no_docs:
        return
    begin, end = "<!-- found -->", "<!-- end of found -->"
    page = _PAGE.read_text(encoding="utf-8")
    page = f"{page.split(begin)[0]}{begin}\n{told}\n{end}{page.split(end)[1]}"
    _PAGE.write_text(page, encoding="utf-8")
    draw(scores_of(model, judged_on.numbers), judged_on, _PAGE.with_suffix(".svg"))


def write(model: Model, path: Path) -> int:
    """As the policy's document, in the shadow: it goes live by an operator's hand. Its size."""
    packed = pack(dump(model).encode(), model.version, ModelMode.SHADOW, facts_of(model))
    document = replace(packed, description="Trained on a simulated stream: docs/risk-model.md.")
    text = TypeAdapter(RiskModel).dump_json(document, indent=1).decode() + "\n"
    path.write_text(text, encoding="utf-8")
    return len(text)


def split(stream: Dataset, until_day: int = TRAINED_UNTIL_DAY) -> tuple[Dataset, Dataset, Dataset]:
    """What is learnt from; later, of the same users, for thresholds; later, of users held out."""
    early = (stream.day >= WARM_UP_DAYS) & (stream.day < until_day)
    later = stream.day >= until_day
    return (
        stream.where(early & ~stream.held_out),
        stream.where(later & ~stream.held_out),
        stream.where(later & stream.held_out),
    )


def annotated(model: Model, chosen_on: Dataset, notes: dict[str, str | int | float]) -> Model:
    """With what drift is measured against, and the thresholds."""
    scores = scores_of(model, chosen_on.numbers)
    sample = chosen_on.where(np.arange(len(chosen_on.day)) % 20 == 0)
    largest = [item for item, _ in gains(model, sample)]
    of_scores, of_inputs = references(model, chosen_on, scores, largest)
    thresholds = {
        f"threshold_with_rules_at_{rate:g}": round(
            threshold_at(scores, chosen_on, rate, with_rules=True), 4
        )
        for rate in RATES
    }
    return replace(
        model, score=of_scores, inputs_reference=dict(of_inputs), notes={**notes, **thresholds}
    )


def tell(model: Model, chosen_on: Dataset, judged_on: Dataset, fresh: Dataset) -> str:
    """Both tables and the factors, for the page."""
    chosen = (scores_of(model, chosen_on.numbers), chosen_on)
    fresh = fresh.where(fresh.day >= _FRESH_FROM_DAY)
    known = fresh.where(~np.isin(fresh.pattern, _UNSEEN))
    lines = []
    for title, data in (("Held-out users, later time", judged_on), ("Two other worlds", known)):
        found = points(scores_of(model, data.numbers), data, chosen, RATES)
        lines += [f"{title}: {_counts(data)}.", "", *_points_table(found), ""]
    alone = threshold_at(*chosen, GOAL_RATE, with_rules=False)
    both = threshold_at(*chosen, GOAL_RATE, with_rules=True)
    everything = patterns(scores_of(model, fresh.numbers), fresh, alone, both)
    lines += [
        "By pattern, in the two other worlds, at the thresholds for 0.5 %. The last two patterns"
        " were never trained on.",
        "", *_patterns_table(everything), "",
        "What moves scores most (mean of absolute log-odds): "
        + ", ".join(f"`{item.told}` {far:.2f}" for item, far in _largest(model, judged_on)) + ".",
    ]  # fmt: skip
    return "\n".join(lines)


def _largest(model: Model, data: Dataset) -> list[tuple[Input, float]]:
    return list(gains(model, data.where(np.arange(len(data.day)) % 10 == 0))[:8])


def _counts(data: Dataset) -> str:
    attacks = len({int(number) for number in data.episode[data.fraud]})
    return (
        f"{int((~data.fraud).sum()):,} honest requests, {int(data.fraud.sum()):,} fraudulent ones"
        f" of {attacks} attacks"
    )


def _points_table(found: list[Point]) -> list[str]:
    lines = [
        "| | score from | false positives, % | recall, % | precision, %"
        " | precision, %, were 1 in 1,000 fraud |",
        "|---|---|---|---|---|---|",
    ]
    for item in found:
        threshold = "" if item.threshold >= evaluate.NEVER else f"{item.threshold:.3f}"
        lines.append(
            f"| {item.way} | {threshold} | {100 * item.false_positives:.2f}"
            f" | {100 * item.recall:.1f} | {100 * item.precision:.1f}"
            f" | {100 * item.precision_in_life:.1f} |"
        )
    return lines


def _patterns_table(found: list[Pattern]) -> list[str]:
    lines = [
        "| pattern | requests | attacks | rules, % | model, % | both, % | attacks noticed, %"
        " | asked for before, % of the money |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for item in sorted(found, key=lambda item: (item.name in _UNSEEN, item.name)):
        name = f"**{item.name}** (unseen)" if item.name in _UNSEEN else item.name
        shares = (item.by_rules, item.by_model, item.by_both, item.noticed, item.away_before)
        cells = " | ".join(f"{100 * share:.0f}" for share in shares)
        lines.append(f"| {name} | {item.requests} | {item.attacks} | {cells} |")
    return lines


def _joined(parts: list[Dataset]) -> Dataset:
    """Attacks of different worlds are different attacks."""
    columns: dict[str, Array] = {}
    for name in Dataset.__slots__[1:]:
        columns[name] = np.concatenate([getattr(part, name) for part in parts])
    apart = np.concatenate([part.episode + 1_000_000 * number for number, part in enumerate(parts)])
    return Dataset(parts[0].inputs, **{**columns, "episode": apart})


if __name__ == "__main__":
    main()
