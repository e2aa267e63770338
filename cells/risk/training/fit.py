"""LightGBM's trees from a dataset, and the artefact from LightGBM's trees. The same data and seed
give the same bytes on the same kind of processor: one thread, no sampling by time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightgbm
import numpy as np

from cells.risk.model import TreeModel
from cells.risk.training.dataset import Array, Dataset
from router.risk.trees import LEAF, Input, Model, Reference, Tree

# Shown by drift: the inputs that carry most of the model.
_REFERENCES = 12
_QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Shape:
    trees: int = 160
    leaves: int = 20
    rate: float = 0.06
    rows_a_leaf: int = 30
    seed: int = 1


def fit(data: Dataset, shape: Shape, version: str) -> Model:
    """Without references and notes: those want scores of data that it was not fitted on."""
    parameters = {
        "objective": "binary",
        "num_leaves": shape.leaves,
        "max_depth": 10,
        "learning_rate": shape.rate,
        "min_data_in_leaf": shape.rows_a_leaf,
        "feature_fraction": 0.5,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "lambda_l2": 5.0,
        "use_missing": False,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "seed": shape.seed,
        "verbose": -1,
    }
    columns = lightgbm.Dataset(data.numbers, data.fraud.astype(np.int8))
    booster = lightgbm.train(parameters, columns, shape.trees)
    dumped = booster.dump_model()["tree_info"]
    whole = [_is_whole(data.numbers[:, place]) for place in range(len(data.inputs))]
    trees = tuple(_tree(item["tree_structure"], whole) for item in dumped)
    nothing = Reference((), (1.0,))
    return Model(version, data.inputs, 0.0, trees, nothing, {})


def scores_of(model: Model, numbers: Array) -> Array:
    """By the runtime of the path, not LightGBM's."""
    runtime = TreeModel(model)
    log_odds = np.array([runtime.log_odds(row) for row in numbers.tolist()])
    scores: Array = 1.0 / (1.0 + np.exp(-log_odds))
    return scores


def gains(model: Model, data: Dataset) -> Sequence[tuple[Input, float]]:
    """How far each input moves the log-odds of a request, on average, largest first."""
    moved = np.zeros(len(model.inputs))
    runtime = TreeModel(model)
    names = {item.told: place for place, item in enumerate(model.inputs)}
    for row in data.numbers.tolist():
        for name, far in runtime.factors(row, count=len(model.inputs)):
            moved[names[name]] += abs(far)
    order = np.argsort(-moved, kind="stable")
    return [(model.inputs[at], float(moved[at] / len(data.numbers))) for at in order]


def references(
    model: Model, data: Dataset, scores: Array, largest: Sequence[Input]
) -> tuple[Reference, Mapping[int, Reference]]:
    places = [model.inputs.index(item) for item in largest[:_REFERENCES]]
    found = {place: _reference(data.numbers[:, place]) for place in sorted(places)}
    return _reference(scores), found


def _reference(values: Array) -> Reference:
    edges = sorted({_short(float(edge)) for edge in np.quantile(values, _QUANTILES)})
    counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
    return Reference(tuple(edges), tuple(round(float(n) / len(values), 5) for n in counts))


def _is_whole(column: Array) -> bool:
    return bool((column == np.floor(column)).all())


def _tree(root: Mapping[str, Any], whole: Sequence[bool]) -> Tree:
    split: list[int] = []
    at: list[float] = []
    value: list[float] = []

    def add(node: Mapping[str, Any]) -> tuple[float, float]:
        """(what the node expects, its weight), once all below it stands."""
        place = len(split)
        split.append(LEAF)
        at.append(0.0)
        value.append(0.0)
        if "left_child" in node:
            asked = node["split_feature"]
            split[place] = asked
            threshold = node["threshold"]
            # Between two whole numbers, the lower says the same and is shorter.
            at[place] = math.floor(threshold) if whole[asked] else _short(threshold)
            (low, low_weight), (high, high_weight) = (
                add(node["left_child"]), add(node["right_child"])
            )  # fmt: skip
            weight = low_weight + high_weight
            expected = (low * low_weight + high * high_weight) / weight
        else:
            # A tree of one leaf has no count.
            expected, weight = float(node["leaf_value"]), float(node.get("leaf_count", 1))
        value[place] = round(expected, 5)
        return expected, weight

    add(root)
    return Tree(tuple(split), tuple(at), tuple(value))


def _short(number: float) -> float:
    return float(f"{number:.6g}")
