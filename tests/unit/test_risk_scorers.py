"""Models come and go while requests are scored; invalid ones change nothing; drift is seen."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

from cells.risk.drift import HOURS, REQUESTS_MIN, SCORE, Drift, stability
from cells.risk.knowledge import Knowledge, knowledge_of
from cells.risk.scorers import Scorers
from router.policies.risk import Rulebook
from router.risk.artefact import ModelMode, RiskModel, pack
from router.risk.compiling import Compiling
from router.risk.facts import FACTS
from router.risk.ruleset import complete
from router.risk.trees import Input, Model, Reference, Tree, dump

QUARTERS = Reference((1.0, 2.0, 3.0), (0.25, 0.25, 0.25, 0.25))
HALVES = Reference((0.5,), (0.5, 0.5))
ASKED = [complete({"amount": 5}, FACTS)]


def _model(version: str, high: float) -> Model:
    tree = Tree((0, -1, -1), (2.0, 0.0, 0.0), (0.0, -high, high))
    return Model(version, (Input("amount"),), 0.0, (tree,), HALVES, {0: QUARTERS})


def _document(version: str, mode: ModelMode, high: float = 1.0) -> RiskModel:
    return pack(dump(_model(version, high)).encode(), version, mode, ("amount",))


def _knowledge(*documents: RiskModel) -> Knowledge:
    book = Rulebook(models={item.version: item for item in documents})
    return knowledge_of(book, datetime.now(UTC), Compiling())


class Clock:
    def __init__(self) -> None:
        self.hour = 0.0

    def __call__(self) -> float:
        return self.hour * 3600


@asynccontextmanager
async def _running(scorers: Scorers) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(scorers.run())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _use(scorers: Scorers, *documents: RiskModel) -> None:
    changed = scorers.changed
    scorers.hear(_knowledge(*documents))
    await asyncio.wait_for(changed.wait(), 30)


async def test_a_model_leaves_the_shadow_without_a_restart() -> None:
    scorers = Scorers()
    async with _running(scorers):
        await _use(
            scorers, _document("a", ModelMode.LIVE), _document("b", ModelMode.SHADOW, high=2.0)
        )
        assert scorers.live is not None
        assert [item.version for item in (scorers.live, *scorers.shadows)] == ["a", "b"]
        shadow = scorers.shadows[0]
        assert round(shadow.score(ASKED)[0].value, 3) == 0.881
        await _use(
            scorers, _document("a", ModelMode.SHADOW), _document("b", ModelMode.LIVE, high=2.0)
        )
        # The same object: nothing was compiled, and its drift goes on.
        assert scorers.live is shadow
        assert shadow.drift.requests == 1
        assert [item.version for item in scorers.shadows] == ["a"]
        await _use(scorers)
        left = [item for item in (scorers.live, *scorers.shadows) if item is not None]
        assert left == []


async def test_models_that_are_not_valid_leave_those_in_force() -> None:
    scorers = Scorers()
    async with _running(scorers):
        await _use(scorers, _document("a", ModelMode.LIVE))
        before = scorers.live
        for text, version in ((b"{}", "b"), (dump(_model("b", 1.0)).encode(), "c")):
            scorers.hear(_knowledge(pack(text, version, ModelMode.LIVE)))
            async with asyncio.timeout(30):
                while not scorers.alarm:
                    await asyncio.sleep(0.01)
            assert scorers.live is before
            told = {sample.name: sample.value for family in scorers() for sample in family.samples}
            assert told["cellpay_risk_model_alarm"] == 1
            await _use(scorers, _document("a", ModelMode.LIVE))
            assert scorers.live is before
            assert not scorers.alarm


def test_what_is_spread_as_in_training_has_no_index_and_what_moved_has_one() -> None:
    assert stability((0.5, 0.5), (500, 500)) == 0
    assert round(stability((0.5, 0.5), (800, 200)), 3) == 0.416
    assert stability((0.5, 0.5), (0, 0)) == 0
    assert stability((1.0, 0.0), (0, 100)) > 5


def test_drift_is_told_of_the_last_day_and_not_of_a_few_requests() -> None:
    chance = random.Random(1)
    drift = Drift(_model("a", 1.0))
    assert list(drift.indices(0)) == []
    for _ in range(REQUESTS_MIN):
        drift.note(0, (chance.uniform(0, 4),), chance.random())
    found = dict(drift.indices(0))
    assert set(found) == {SCORE, "amount"}
    assert max(found.values()) < 0.05
    for _ in range(REQUESTS_MIN):
        drift.note(5, (chance.uniform(2, 4),), chance.random())
    found = dict(drift.indices(5))
    assert found["amount"] > 0.1
    assert found[SCORE] < 0.05
    # The first hour falls out: all that is left came from above.
    assert dict(drift.indices(HOURS))["amount"] > 2
    assert list(drift.indices(5 + HOURS)) == []


async def test_scorers_tell_the_drift_of_every_model_in_force() -> None:
    clock = Clock()
    scorers = Scorers(clock)
    async with _running(scorers):
        await _use(scorers, _document("a", ModelMode.LIVE), _document("b", ModelMode.SHADOW))
        assert scorers.live is not None
        scorers.live.score(ASKED * REQUESTS_MIN)
        told = {
            (sample.labels["model"], sample.labels["of"]): sample.value
            for family in scorers()
            for sample in family.samples
            if sample.name == "cellpay_risk_model_psi"
        }
        assert set(told) == {("a", SCORE), ("a", "amount")}
        assert told["a", "amount"] > 1
        clock.hour = 30
        assert not [sample for family in scorers() for sample in family.samples if sample.labels]
