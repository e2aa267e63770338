"""Training in the small, and the committed model's worth on a stream that nothing was tuned on.

The model itself is trained by `make risk-model`, never here.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import lightgbm
import numpy as np
import pytest
from pydantic import TypeAdapter

from cells.risk.model import TreeModel
from cells.risk.training.__main__ import annotated, split, write
from cells.risk.training.dataset import EXAMPLES, Dataset, make, read_features, read_rules
from cells.risk.training.evaluate import point, threshold_at
from cells.risk.training.fit import Shape, fit, scores_of
from cells.risk.training.fraud import PATTERNS
from cells.risk.training.simulate import Plan, simulate
from control.risk.files import check_files, read_files
from router.risk.artefact import RiskModel, text_of
from router.risk.facts import schema
from router.risk.model import Action
from router.risk.trees import Model, dump, facts_of, parse

SMALL = Plan(seed=77, users=250, days=34, unseen=True)
SHAPE = Shape(trees=15)


@pytest.fixture(scope="module")
def small() -> Dataset:
    return make(SMALL, read_features(), read_rules())


@pytest.fixture(scope="module")
def committed() -> RiskModel:
    return TypeAdapter(RiskModel).validate_json((EXAMPLES / "model.json").read_bytes())


@pytest.fixture(scope="module")
def model(committed: RiskModel) -> Model:
    return parse(text_of(committed), schema(read_features().types()))


def test_the_same_seed_makes_the_same_stream_and_a_longer_plan_the_same_beginning() -> None:
    """Nothing of later days is in a request's facts."""
    features = read_features()
    plan = Plan(seed=5, users=60, days=12)
    first, again = (list(simulate(plan, features)) for _ in range(2))
    longer = list(islice(simulate(replace(plan, days=25), features), len(first)))
    assert first == again == longer
    assert list(simulate(replace(plan, seed=6), features)) != first
    times = [event.observation.at_ms for event in first]
    assert times == sorted(times)


def test_a_request_is_not_in_its_own_past() -> None:
    seen: set[str] = set()
    for event in simulate(Plan(seed=5, users=60, days=5), read_features()):
        device = event.observation.device
        if device and device not in seen:
            assert event.facts["f.device_count_30d"] == 0
            seen.add(device)
    assert len(seen) > 50


def test_what_is_learnt_from_is_earlier_and_of_other_users_than_what_is_judged() -> None:
    stream = make(Plan(seed=8, users=80, days=40), read_features(), read_rules())
    learnt, chosen, judged = split(stream, until_day=30)
    assert learnt.day.max() < judged.day.min()
    assert learnt.day.max() < chosen.day.min()
    assert judged.held_out.all()
    assert not learnt.held_out.any()
    assert min(len(part.day) for part in (learnt, chosen, judged)) > 100


def test_ids_are_not_what_a_model_learns_from(model: Model) -> None:
    read = {*facts_of(model)}
    assert not read & {"user.id", "payee.id", "ip.address", "card.token"}
    # Whether there is one, not which.
    assert all(item.equals == "" for item in model.inputs if "device.id" in item.facts)


def test_a_training_repeats_to_the_byte(small: Dataset, tmp_path: Path) -> None:
    texts = []
    for number in range(2):
        made = annotated(fit(small, SHAPE, "tiny"), small, {"seed": 1})
        write(made, tmp_path / f"{number}.json")
        texts.append((tmp_path / f"{number}.json").read_text())
    assert texts[0] == texts[1]
    other = annotated(fit(small, replace(SHAPE, seed=2), "tiny"), small, {"seed": 1})
    assert dump(other) != dump(made)


def test_the_runtime_says_what_lightgbm_says(
    small: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thresholds are shortened; what they part is not."""
    boosters = []
    real = lightgbm.train

    def train(*given: object, **named: object) -> lightgbm.Booster:
        boosters.append(real(*given, **named))
        return boosters[-1]

    monkeypatch.setattr(lightgbm, "train", train)
    made = fit(small, SHAPE, "tiny")
    expected = boosters[0].predict(small.numbers, raw_score=True, num_threads=1)
    runtime = TreeModel(made)
    found = np.array([runtime.log_odds(row) for row in small.numbers.tolist()])
    # A ratio that lies within a millionth of a threshold may fall to its other side.
    assert (np.abs(found - expected) < 1e-3).mean() > 0.999


def test_a_tiny_training_learns_something(small: Dataset) -> None:
    learnt = small.where(~small.held_out)
    judged = small.where(small.held_out)
    scores = scores_of(fit(learnt, SHAPE, "tiny"), judged.numbers)
    assert scores[judged.fraud].mean() > 5 * scores[~judged.fraud].mean()


def test_the_stream_has_every_pattern_and_honest_people_beyond_measure(small: Dataset) -> None:
    found = {str(name) for name in small.pattern} - {""}
    assert found <= {*PATTERNS}
    assert len(found) >= len(PATTERNS) - 2
    assert 0.005 < small.fraud.mean() < 0.08


def test_the_examples_can_be_applied_as_they_stand(committed: RiskModel) -> None:
    checked = check_files(read_files([EXAMPLES]))
    assert {item.file.name for item in checked} >= {"features", "rules", "model"}
    assert [list(item.violations) for item in checked] == [[]] * len(checked)
    assert len(committed.data) * 3 / 4 < 200 * 1024
    assert len(read_features().features) == 30


def test_the_committed_model_and_rules_find_what_the_page_says(
    small: Dataset, model: Model
) -> None:
    """At the goal's rate of false positives, on users, attackers and days of another world."""
    judged = small.where((small.day >= 14) & ~np.isin(small.pattern, PATTERNS[-2:]))
    scores = scores_of(model, judged.numbers)
    at_goal = threshold_at(scores, judged, 0.005, with_rules=True)
    found = point("both", judged.ruled | (scores >= at_goal), judged, at_goal)
    assert found.false_positives <= 0.005
    assert found.recall >= 0.8
    alone = point("rules", judged.ruled, judged, 0)
    assert alone.recall < found.recall
    # With the threshold that was chosen elsewhere.
    chosen = float(model.notes["threshold_with_rules_at_0.005"])
    elsewhere = point("both", judged.ruled | (scores >= chosen), judged, chosen)
    assert elsewhere.false_positives < 0.015
    assert elsewhere.recall >= 0.8


def test_the_example_rules_ask_the_model_at_the_number_it_was_chosen_for(model: Model) -> None:
    chosen = float(model.notes["threshold_with_rules_at_0.005"])
    asked = next(rule for rule in read_rules().rules if rule.name == "model-is-doubtful")
    assert asked.action == Action.CHALLENGE
    assert float(asked.when.split(">=")[1]) == pytest.approx(chosen, abs=0.005)
