"""A simulated stream as columns of numbers, with what the rules alone say of each request."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import TypeAdapter

from cells.risk.model import inputs_function
from cells.risk.training.simulate import Plan, simulate
from router.risk.facts import FEATURE_PREFIX, Value, schema
from router.risk.features import FeatureSet
from router.risk.model import Action, RuleSet
from router.risk.ruleset import Rules
from router.risk.trees import Input

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "risk"
Array = np.ndarray[Any, Any]
# What the model is asked beside the features: never an ID, which it would learn by heart.
_FACTS = (
    Input("amount"),
    Input("user.account_age_days"),
    Input("user.balance"),
    Input("time.hour"),
    Input("payee.is_merchant"),
    Input("operation", equals="transfer"),
    Input("operation", equals="withdraw"),
    Input("operation", equals="charge"),
    Input("device.id", equals=""),
    Input("ip.country", equals=""),
    Input("ip.country", differs="card.country"),
    # How much of the balance; how far above what the user usually pays; how old the habits are.
    Input("amount", over="user.balance"),
    Input("amount", times="f.user_count_30d", over="f.user_sum_30d"),
    Input("f.device_count_30d", over="f.user_count_30d"),
    Input("f.user_top_up_24h", over="user.balance"),
)


def read_features() -> FeatureSet:
    text = (EXAMPLES / "features.yaml").read_text(encoding="utf-8")
    return TypeAdapter(FeatureSet).validate_python(yaml.safe_load(text))


def read_rules() -> RuleSet:
    text = (EXAMPLES / "rules.yaml").read_text(encoding="utf-8")
    return TypeAdapter(RuleSet).validate_python(yaml.safe_load(text))


def inputs_of(features: FeatureSet) -> tuple[Input, ...]:
    return (*_FACTS, *(Input(FEATURE_PREFIX + item.name) for item in features.features))


@dataclass(frozen=True, slots=True)
class Dataset:
    inputs: tuple[Input, ...]
    # A row a request, in the order of time; a column an input.
    numbers: Array
    day: Array
    fraud: Array
    held_out: Array
    # A rule that does not ask the model says challenge, review or deny.
    ruled: Array
    amount: Array
    pattern: Array
    episode: Array

    def where(self, chosen: Array) -> Dataset:
        return Dataset(
            self.inputs, self.numbers[chosen], self.day[chosen], self.fraud[chosen],
            self.held_out[chosen], self.ruled[chosen], self.amount[chosen], self.pattern[chosen],
            self.episode[chosen],
        )  # fmt: skip


def make(plan: Plan, features: FeatureSet, document: RuleSet) -> Dataset:
    inputs = inputs_of(features)
    numbers_of = inputs_function(inputs)
    rules = rules_of(document, features)
    rows: list[tuple[float, ...]] = []
    about: list[tuple[int, bool, bool, bool, Value, str, int]] = []
    for event in simulate(plan, features):
        rows.append(numbers_of(event.facts))
        action = rules.decide(event.facts, lambda _name, _value: False).action
        about.append((
            event.day, event.fraud, event.held_out, action != Action.ALLOW, event.facts["amount"],
            event.pattern, event.episode,
        ))  # fmt: skip
    day, fraud, held_out, ruled, amount, pattern, episode = (
        np.array(column) for column in zip(*about, strict=True)
    )
    numbers = np.array(rows, dtype=np.float64)
    return Dataset(inputs, numbers, day, fraud, held_out, ruled, amount, pattern, episode)


def rules_of(document: RuleSet, features: FeatureSet) -> Rules:
    types = schema(features.types())
    return Rules(document, types, frozenset(), version=0, now=datetime.now(UTC))
