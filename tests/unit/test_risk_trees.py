"""A model's text is refused where it is wrong, whatever it says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cells.risk.model import TreeModel
from router.risk.facts import FACTS
from router.risk.ruleset import complete
from router.risk.trees import BadModel, Model, facts_of, parse

LEAF: dict[str, Any] = {"split": [-1], "at": [0], "value": [0.5]}
STUMP: dict[str, Any] = {"split": [0, -1, -1], "at": [10, 0, 0], "value": [0, -1, 1]}
GOOD: dict[str, Any] = {
    "version": "v1",
    "inputs": [{"fact": "amount"}],
    "base": 0.0,
    "trees": [STUMP],
    "score": {"edges": [0.5], "shares": [0.9, 0.1]},
    "inputs_reference": {},
}


def _parsed(**changed: Any) -> Model:
    return parse(json.dumps({**GOOD, **changed}), FACTS)


def test_a_small_model_scores() -> None:
    model = TreeModel(_parsed(trees=[STUMP, LEAF]))
    low, high = model.score([complete({"amount": amount}, FACTS) for amount in (10, 11)])
    assert (round(low.value, 4), round(high.value, 4)) == (0.3775, 0.8176)
    assert low.factors == (("amount", -1.0),)
    assert high.factors == (("amount", 1.0),)


def test_factors_are_told_of_high_scores_alone() -> None:
    model = TreeModel(_parsed(), explain_from=0.5)
    low, high = model.score([complete({"amount": amount}, FACTS) for amount in (10, 11)])
    assert (low.factors, bool(high.factors)) == ((), True)


@pytest.mark.parametrize(
    ("given", "facts", "number"),
    [
        ({"fact": "amount"}, {"amount": 7}, 7),
        ({"fact": "payee.is_merchant"}, {"payee.is_merchant": True}, 1),
        ({"fact": "operation", "equals": "pay"}, {"operation": "pay"}, 1),
        ({"fact": "operation", "equals": "pay"}, {"operation": "charge"}, 0),
        ({"fact": "operation", "equals": ""}, {}, 1),
        ({"fact": "ip.country", "differs": "card.country"}, {"ip.country": "DE"}, 0),
        (
            {"fact": "ip.country", "differs": "card.country"},
            {"ip.country": "DE", "card.country": "FR"},
            1,
        ),
        (
            {"fact": "ip.country", "differs": "card.country"},
            {"ip.country": "DE", "card.country": "DE"},
            0,
        ),
        ({"fact": "amount", "over": "user.balance"}, {"amount": 5, "user.balance": 9}, 0.5),
        ({"fact": "amount", "over": "user.balance"}, {"amount": 5, "user.balance": -1}, 5),
        (
            {"fact": "amount", "times": "time.hour", "over": "user.balance"},
            {"amount": 5, "time.hour": 4, "user.balance": 9},
            2,
        ),
    ],
)
def test_an_input_is_made_of_facts(
    given: dict[str, str], facts: dict[str, Any], number: float
) -> None:
    model = TreeModel(_parsed(inputs=[given]))
    assert model.numbers(complete(facts, FACTS)) == (number,)
    assert {*facts} <= {*facts_of(model.model)}


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"version": "V 1"}, "version"),
        ({"more": 1}, "more"),
        ({"base": "much"}, "base"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [{"fact": "amuont"}]}, "inputs[0].fact"),
        ({"inputs": [{"fact": "operation"}]}, "inputs[0].fact"),
        ({"inputs": [{"fact": "amount", "equals": "x"}]}, "inputs[0].fact"),
        ({"inputs": [{"fact": "amount", "over": "operation"}]}, "inputs[0].fact"),
        ({"inputs": [{"fact": "operation", "equals": "x", "differs": "ip.country"}]}, "inputs[0]"),
        ({"trees": [{**STUMP, "split": [1, -1, -1]}]}, "trees[0]"),
        ({"trees": [{**STUMP, "split": [-2, -1, -1]}]}, "trees[0]"),
        ({"trees": [{**STUMP, "at": [1]}]}, "trees[0]"),
        ({"trees": [{"split": [0, -1], "at": [0, 0], "value": [0, 0]}]}, "trees[0]"),
        ({"trees": [{"split": [-1, -1], "at": [0, 0], "value": [0, 0]}]}, "trees[0]"),
        ({"trees": [{"split": [], "at": [], "value": []}]}, "trees[0]"),
        ({"trees": [{"split": [-1] * 512, "at": [0] * 512, "value": [0] * 512}]}, "trees[0]"),
        ({"trees": [LEAF] * 1001}, "trees"),
        ({"score": {"edges": [0.5], "shares": [1]}}, "score.shares"),
        ({"score": {"edges": [0.5, 0.5], "shares": [1, 0, 0]}}, "score.edges"),
        ({"inputs_reference": {"1": {"edges": [], "shares": [1]}}}, "inputs_reference[1]"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(changed: dict[str, Any], where: str) -> None:
    with pytest.raises(BadModel) as caught:
        _parsed(**changed)
    assert caught.value.field == where


def test_a_tree_that_is_a_long_vine_is_refused() -> None:
    """Python's parser would give up on it in the path."""
    split = [0, -1] * 40 + [-1]
    with pytest.raises(BadModel, match="deeper"):
        _parsed(trees=[{"split": split, "at": [0] * 81, "value": [0] * 81}])


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version": NaN}', "1e999"])
def test_a_text_that_is_no_model_is_refused(text: str) -> None:
    with pytest.raises(BadModel):
        parse(text)
