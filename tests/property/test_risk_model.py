"""The runtime of trees against a walk by the book, and the training's features against memory's."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from cells.risk.memory import MemoryFeatures
from cells.risk.model import TreeModel
from cells.risk.training.past import Past
from router.risk.features import FeatureSet, Observation
from router.risk.trees import LEAF, Input, Model, Reference, Tree, dump, parse, rights
from tests.property.test_risk_features import OBSERVATIONS, features

NUMBERS = st.one_of(st.integers(-5, 5), st.floats(-5, 5, allow_nan=False))
INPUTS = (Input("a"), Input("b"), Input("c"))


@st.composite
def _nodes(draw: st.DrawFn, depth: int) -> list[tuple[int, float, float]]:
    value = draw(st.floats(-3, 3, allow_nan=False))
    if depth == 0 or draw(st.booleans()):
        return [(LEAF, 0.0, value)]
    split, at = draw(st.integers(0, 2)), float(draw(NUMBERS))
    return [(split, at, value), *draw(_nodes(depth - 1)), *draw(_nodes(depth - 1))]


@st.composite
def _models(draw: st.DrawFn) -> Model:
    trees = []
    for _ in range(draw(st.integers(0, 45))):
        split, at, value = zip(*draw(_nodes(3)), strict=True)
        trees.append(Tree(tuple(split), tuple(at), tuple(value)))
    return Model("v", INPUTS, draw(st.floats(-2, 2)), tuple(trees), Reference((), (1.0,)), {})


def _walk(tree: Tree, numbers: list[float], place: int = 0) -> tuple[float, int]:
    """By recursion over preorder: (the leaf's value, where the subtree ends)."""
    if tree.split[place] == LEAF:
        return tree.value[place], place + 1
    low, middle = _walk(tree, numbers, place + 1)
    high, end = _walk(tree, numbers, middle)
    assert rights(tree)[place] == middle
    return (low if numbers[tree.split[place]] <= tree.at[place] else high), end


@given(_models(), st.lists(NUMBERS, min_size=3, max_size=3))
def test_a_score_is_the_sum_of_the_leaves_that_a_walk_reaches(
    model: Model, values: list[float]
) -> None:
    facts = dict(zip("abc", values, strict=True))
    expected = model.base + sum(_walk(tree, values)[0] for tree in model.trees)
    found = TreeModel(model).score([facts])[0].value
    assert math.isclose(found, 1 / (1 + math.exp(-expected)), rel_tol=1e-9, abs_tol=1e-12)


@given(_models(), st.lists(NUMBERS, min_size=3, max_size=3))
def test_factors_and_roots_add_up_to_the_score(model: Model, values: list[float]) -> None:
    runtime = TreeModel(model)
    roots = model.base + sum(tree.value[0] for tree in model.trees)
    moved = sum(far for _, far in runtime.factors(values, count=3))
    assert math.isclose(roots + moved, runtime.log_odds(values), abs_tol=1e-3)


@given(_models())
def test_a_model_survives_its_text(model: Model) -> None:
    assert parse(dump(model)) == model


@given(features(), OBSERVATIONS)
def test_training_counts_the_past_as_memory_does(feature: object, seen: list[Observation]) -> None:
    document = FeatureSet((feature,))  # type: ignore[arg-type]
    past, memory = Past(document), MemoryFeatures()
    for item in sorted(seen, key=lambda item: item.at_ms):
        assert past.read(item) == memory.values(document, [item])[0]
        past.add(item)
        memory.add(document, [item])
