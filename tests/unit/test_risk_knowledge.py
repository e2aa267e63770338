"""What a process knows of risk: compiled beside its work, again when a rule begins or ends."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client.core import Metric

from cells.risk.knowledge import Knowing, Knowledge, knowledge_of
from router.policies.model import RISK_REVISION_KEY, PolicyKind
from router.policies.risk import rulebook_of
from router.policies.rules import PolicySet, envelope, policy_key, take
from router.risk.compiling import Compiling
from router.risk.facts import Type, Value
from router.risk.model import Action
from router.risk.ruleset import complete

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
LARGE = {"name": "large", "when": "amount > 100", "action": "deny", "reason": "LARGE"}
STOLEN = {
    "name": "stolen", "when": 'in_list("stolen", device.id) || f.pays_1h > 3', "action": "review",
    "reason": "STOLEN",
}  # fmt: skip
FEATURES = {"features": [{"name": "pays_1h", "aggregate": "count", "by": "user", "window_s": 3600}]}


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now.timestamp() * 1000


def _policies(*documents: tuple[str, str, Any], risk_revision: int = 0) -> PolicySet:
    stored = {
        policy_key(kind, name): (envelope(json.dumps(text), reason="", actor="", time_ms=0), 7)
        for kind, name, text in documents
    }
    if risk_revision:
        stored[RISK_REVISION_KEY] = ("{}", risk_revision)
    return take(PolicySet(), stored)


def _rules(*rules: dict[str, Any]) -> tuple[str, str, Any]:
    return PolicyKind.RISK_RULES, "main", {"rules": list(rules)}


def _action(knowledge: Knowledge | None, facts: dict[str, Value]) -> Action:
    assert knowledge is not None
    known = complete(facts, knowledge.types)
    return knowledge.rules.decide(known, knowledge.lists.contains).action


@asynccontextmanager
async def _following(knowing: Knowing) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(knowing.run())
        yield
        task.cancel()


async def _next(knowing: Knowing, policies: PolicySet) -> None:
    changed = knowing.changed
    knowing.apply(policies)
    await changed.wait()


async def test_documents_of_all_kinds_and_names_are_one_knowledge() -> None:
    knowing = Knowing(Clock())
    assert knowing.now is None, "nobody knows yet whether there are rules"
    async with _following(knowing):
        await _next(
            knowing,
            _policies(
                _rules(LARGE),
                (PolicyKind.RISK_RULES, "others", {"rules": [STOLEN]}),
                (PolicyKind.RISK_LISTS, "stolen", {"entries": [{"value": "phone-1"}]}),
                (PolicyKind.RISK_FEATURES, "main", FEATURES),
                risk_revision=9,
            ),
        )
    found = knowing.now
    assert found is not None
    assert (found.version, found.rules.version, len(found.rules)) == (9, 9, 2)
    assert found.types["f.pays_1h"] == Type.INT
    assert [feature.name for feature in found.features.features] == ["pays_1h"]
    assert _action(found, {"amount": 101}) == Action.DENY
    assert _action(found, {"device.id": "phone-1"}) == Action.REVIEW
    assert _action(found, {"f.pays_1h": 4}) == Action.REVIEW
    assert _action(found, {}) == Action.ALLOW


async def test_without_documents_there_is_nothing_to_screen() -> None:
    knowing = Knowing(Clock())
    async with _following(knowing):
        await _next(knowing, PolicySet())
        assert knowing.now is not None
        assert knowing.now.is_empty
        await _next(knowing, _policies(_rules(LARGE)))
        assert not knowing.now.is_empty


async def test_a_rule_begins_at_its_time_though_no_policy_changes() -> None:
    clock = Clock()
    knowing = Knowing(clock)
    begins = NOW + timedelta(milliseconds=50)
    async with _following(knowing):
        await _next(knowing, _policies(_rules({**LARGE, "effective_from": begins.isoformat()})))
        assert _action(knowing.now, {"amount": 101}) == Action.ALLOW
        changed = knowing.changed
        clock.now = begins
        await changed.wait()
        assert _action(knowing.now, {"amount": 101}) == Action.DENY


async def test_what_is_not_valid_leaves_what_was_in_force_and_raises_an_alarm() -> None:
    knowing = Knowing(Clock())
    async with _following(knowing):
        await _next(knowing, _policies(_rules(LARGE)))
        before = knowing.now
        # Written past the service: there is no such list.
        knowing.apply(_policies(_rules(STOLEN)))
        while not knowing.alarm:
            await asyncio.sleep(0)
            await asyncio.sleep(0.005)
        assert knowing.now is before
        assert _metric(knowing, "cellpay_risk_alarm") == 1
        await _next(knowing, _policies(_rules({**LARGE, "when": "amount > 200"})))
        assert not knowing.alarm
        assert _action(knowing.now, {"amount": 101}) == Action.ALLOW


async def test_other_policies_and_the_same_again_compile_nothing() -> None:
    knowing = Knowing(Clock())
    async with _following(knowing):
        await _next(knowing, _policies(_rules(LARGE)))
        before = knowing.now
        knowing.apply(_policies(_rules(LARGE), ("limits", "x", {})))
        await asyncio.sleep(0.02)
        assert knowing.now is before


async def test_rules_are_compiled_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    knowing = Knowing(Clock())
    threads: set[int] = set()
    original = knowing._compiling.expression

    def noting(*arguments: Any) -> Any:
        threads.add(threading.get_ident())
        return original(*arguments)

    monkeypatch.setattr(knowing._compiling, "expression", noting)
    async with _following(knowing):
        await _next(knowing, _policies(_rules(LARGE)))
    assert threads
    assert threading.get_ident() not in threads


def test_an_edit_of_one_rule_compiles_one_rule() -> None:
    breaths = [0]

    def breathe() -> None:
        breaths[0] += 1

    compiling = Compiling(breathe)
    many = [{**LARGE, "name": f"r{n}", "when": f"amount > {n}"} for n in range(300)]
    knowledge_of(rulebook_of(_policies(_rules(*many))), NOW, compiling)
    first = breaths[0]
    assert first >= 300
    many[150] = {**LARGE, "name": "r150", "when": "amount > 1000000"}
    edited = knowledge_of(rulebook_of(_policies(_rules(*many))), NOW, compiling)
    # The rule, and the function that it is a part of.
    assert breaths[0] - first == 2
    facts = complete({"amount": 200}, edited.types)
    hits = {hit.rule for hit in edited.rules.decide(facts, edited.lists.contains).hits}
    assert hits == {f"r{n}" for n in range(200) if n != 150}


def test_what_was_compiled_is_compiled_anew_when_a_name_changes_its_type() -> None:
    compiling = Compiling()
    lists = frozenset({"it"})
    one = compiling.expression("x > 1", {"x": Type.INT}, lists)
    assert compiling.expression("x > 1", {"x": Type.INT, "y": Type.BOOL}, lists) is one
    assert compiling.expression("x > 1", {"x": Type.DOUBLE}, lists) is not one


async def test_hits_are_counted_by_rule_and_mode_and_forgotten_with_their_rule() -> None:
    knowing = Knowing(Clock())
    shadow = {**LARGE, "name": "shadow", "mode": "shadow"}
    async with _following(knowing):
        await _next(knowing, _policies(_rules(LARGE, shadow)))
        assert knowing.now is not None
        facts = complete({"amount": 101}, knowing.now.types)
        for _ in range(3):
            knowing.hits.note(knowing.now.rules.decide(facts, knowing.now.lists.contains))
        assert _hits(knowing) == {("large", "live"): 3, ("shadow", "shadow"): 3}
        await _next(knowing, _policies(_rules(shadow)))
        assert _hits(knowing) == {("shadow", "shadow"): 3}


async def test_a_follower_that_fails_does_not_stop_the_others() -> None:
    knowing = Knowing(Clock())
    heard: list[int] = []

    def fails(_: Knowledge) -> None:
        raise RuntimeError("broken")

    knowing.followers += [fails, lambda made: heard.append(len(made.rules))]
    async with _following(knowing):
        await _next(knowing, _policies(_rules(LARGE)))
    assert heard == [1]


def _metric(knowing: Knowing, name: str) -> float:
    (family,) = (family for family in knowing() if family.name == name)
    return float(family.samples[0].value)


def _hits(knowing: Knowing) -> dict[tuple[str, str], float]:
    family: Metric = next(iter(knowing.hits()))
    return {(item.labels["rule"], item.labels["mode"]): item.value for item in family.samples}
