"""The model in the path: boosted trees made into Python, as rules are (router.risk.expressions).

A tree is a nested conditional, so a request costs a comparison a level and no call into a library;
docs/risk-model.md compares this with LightGBM's own predictor, numpy and onnxruntime. Scores are
those of the artefact to the last bit, which a runtime in 32-bit floats cannot promise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cells.risk.interface import Score
from router.risk.facts import Value
from router.risk.trees import LEAF, Input, Model, Tree, rights

# Below it nobody asks why; the walk that tells costs more than the score.
EXPLAIN_FROM = 0.3
FACTORS_MAX = 5
# One function of all trees would take the compiler long; each of these, some milliseconds.
_TREES_A_FUNCTION = 20
_Numbers = tuple[float, ...]
_LOG_ODDS_MAX = 500.0


class TreeModel:
    """A Scorer (cells.risk.interface). Made off the event loop: it compiles for 100 ms."""

    def __init__(self, model: Model, explain_from: float = EXPLAIN_FROM) -> None:
        self.version = model.version
        self.model = model
        self.facts = frozenset(name for item in model.inputs for name in item.facts)
        self._explain_from = explain_from
        self._numbers = inputs_function(model.inputs)
        self._functions = [
            _trees_function(model.trees[start : start + _TREES_A_FUNCTION], len(model.inputs))
            for start in range(0, len(model.trees), _TREES_A_FUNCTION)
        ]
        self._rights = [rights(tree) for tree in model.trees]

    def score(self, facts: Sequence[Mapping[str, Value]]) -> Sequence[Score]:
        return [self.of(self._numbers(item)) for item in facts]

    def numbers(self, facts: Mapping[str, Value]) -> _Numbers:
        """What the trees are asked: one number an input."""
        return self._numbers(facts)

    def of(self, numbers: _Numbers) -> Score:
        value = probability(self.log_odds(numbers))
        return Score(value, self.factors(numbers) if value >= self._explain_from else ())

    def log_odds(self, numbers: Sequence[float]) -> float:
        total = self.model.base
        for function in self._functions:
            total += function(numbers)
        return total

    def factors(
        self, numbers: Sequence[float], count: int = FACTORS_MAX
    ) -> tuple[tuple[str, float], ...]:
        """By how much each input moved the log-odds, largest first.

        Along each tree's path, what a node expects less what its parent did, put down to the input
        that was asked (Saabas 2014, treeinterpreter). With the base and the roots they sum to the
        score exactly.
        """
        moved: dict[int, float] = {}
        for tree, right in zip(self.model.trees, self._rights, strict=True):
            place, split = 0, tree.split[0]
            while split != LEAF:
                below = place + 1 if numbers[split] <= tree.at[place] else right[place]
                moved[split] = moved.get(split, 0.0) + tree.value[below] - tree.value[place]
                place, split = below, tree.split[below]
        largest = sorted(moved.items(), key=lambda item: (-abs(item[1]), item[0]))
        inputs = self.model.inputs
        return tuple((inputs[at].told, round(far, 4)) for at, far in largest[:count])


def probability(log_odds: float) -> float:
    bounded = max(-_LOG_ODDS_MAX, min(_LOG_ODDS_MAX, log_odds))
    return 1.0 / (1.0 + math.exp(-bounded))


def inputs_function(inputs: Sequence[Input]) -> Callable[[Mapping[str, Value]], _Numbers]:
    """Of complete facts, one number an input: training and the path share it."""
    lines = ["def numbers(facts):", "    return ("]
    lines += [f"        {_input_python(item)}," for item in inputs]
    lines.append("    )")
    function: Callable[[Mapping[str, Value]], _Numbers] = _define("numbers", lines)
    return function


def _input_python(item: Input) -> str:
    fact = f"facts[{item.fact!r}]"
    if item.equals is not None:
        return f"{fact} == {item.equals!r}"
    if item.differs:
        other = f"facts[{item.differs!r}]"
        return f'{fact} != {other} and {fact} != "" and {other} != ""'
    times = f" * facts[{item.times!r}]" if item.times else ""
    # Never by nothing; a balance may be negative.
    over = f" / (1 + max(0, facts[{item.over!r}]))" if item.over else ""
    return fact + times + over


def _trees_function(trees: Sequence[Tree], inputs: int) -> Callable[[Sequence[float]], float]:
    names = "".join(f"x{number}, " for number in range(inputs))
    lines = ["def trees(numbers):", f"    {names} = numbers", "    return ("]
    lines += [f"        + {_tree_python(tree)}" for tree in trees]
    lines.append("    )")
    function: Callable[[Sequence[float]], float] = _define("trees", lines)
    return function


def _tree_python(tree: Tree) -> str:
    right = rights(tree)

    def of(place: int) -> str:
        split = tree.split[place]
        if split == LEAF:
            return f"({tree.value[place]!r})"
        low, high = of(place + 1), of(right[place])
        return f"({low} if x{split} <= {tree.at[place]!r} else {high})"

    return of(0)


def _define(name: str, lines: Sequence[str]) -> Any:
    """All that is in the source is ours, but for checked numbers and quoted names."""
    scope: dict[str, Any] = {}
    exec(compile("\n".join(lines), "<model>", "exec"), scope)
    return scope[name]
