"""What scoring a request takes, by the path's runtime and numpy → bench/results/risk_model.json."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from cells.risk.drift import Drift
from cells.risk.model import TreeModel
from cells.risk.training.dataset import EXAMPLES, read_features
from cells.risk.training.simulate import Plan, simulate
from router.risk.artefact import RiskModel, text_of
from router.risk.trees import LEAF, Model, parse, rights
from tests.bench.figures import RESULTS, Figures

_REQUESTS = 500
_GROUPS = (1, 16, 64)


def main() -> None:
    document = TypeAdapter(RiskModel).validate_json((EXAMPLES / "model.json").read_bytes())
    model = parse(text_of(document))
    began = time.perf_counter()
    runtime = TreeModel(model)
    figures = Figures()
    figures.add("compile_ms", "ms", [1000 * (time.perf_counter() - began)])
    stream = simulate(Plan(seed=9, users=100, days=15), read_features())
    facts = [event.facts for event in stream][-_REQUESTS:]
    numbers = [runtime.numbers(item) for item in facts]
    for size in _GROUPS:
        groups = [facts[at : at + size] for at in range(0, len(facts), size)]
        figures.add(f"score_us_{size}", "µs a request", _times(runtime.score, groups, size))
    figures.add("trees_alone_us", "µs a request", _times(runtime.log_odds, numbers, 1))
    figures.add("factors_us", "µs a request", _times(runtime.factors, numbers, 1))
    drift = Drift(model)
    figures.add("drift_us", "µs a request", _times(lambda row: drift.note(0, row, 0.1), numbers, 1))
    vectors = _Vectors(model)
    for size in _GROUPS:
        rows = [np.array(numbers[at : at + size]) for at in range(0, len(numbers), size)]
        figures.add(f"numpy_us_{size}", "µs a request", _times(vectors.log_odds, rows, size))
    figures.notes = {"model": model.version, "trees": len(model.trees), "requests": len(facts)}
    figures.write(RESULTS / "risk_model.json")


def _times(function: Callable[[Any], Any], items: list[Any], size: int) -> list[float]:
    """Microseconds of processor time a request, of five runs."""
    found = []
    for _ in range(5):
        began = time.thread_time()
        for item in items:
            function(item)
        found.append(1e6 * (time.thread_time() - began) / (len(items) * size))
    return found


class _Vectors:
    """The same trees in numpy: all rows and trees a level at a time."""

    def __init__(self, model: Model) -> None:
        split: list[int] = []
        at: list[float] = []
        value: list[float] = []
        below: list[tuple[int, int]] = []
        self._roots = []
        for tree in model.trees:
            offset = len(split)
            self._roots.append(offset)
            for place, (asked, right) in enumerate(zip(tree.split, rights(tree), strict=True)):
                leaf = asked == LEAF
                split.append(0 if leaf else asked)
                below.append((offset + place, offset + (place if leaf else right)))
                if not leaf:
                    below[-1] = (offset + place + 1, offset + right)
            at += tree.at
            value += tree.value
        self._split, self._at, self._value = np.array(split), np.array(at), np.array(value)
        self._below = np.array(below).ravel()
        self._depth = max(_depth(tree.split) for tree in model.trees)

    def log_odds(self, rows: Any) -> Any:
        place = np.tile(self._roots, (len(rows), 1))
        flat, begin = rows.ravel(), (np.arange(len(rows)) * rows.shape[1])[:, None]
        for _ in range(self._depth):
            asked = flat.take(begin + self._split.take(place))
            place = self._below.take(2 * place + (asked > self._at.take(place)))
        return self._value.take(place).sum(axis=1)


def _depth(split: tuple[int, ...]) -> int:
    waiting, deepest = [1], 0
    for asked in split:
        depth = waiting.pop()
        deepest = max(deepest, depth)
        if asked != LEAF:
            waiting += [depth + 1, depth + 1]
    return deepest


if __name__ == "__main__":
    main()
