"""A set of rules: what it decides, what is refused at upload, and how fast it is compiled."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from router.risk.facts import Type, Value, schema
from router.risk.model import STRICTNESS, Action, Case, Mode, Rule, RuleSet
from router.risk.ruleset import Rules, complete, faults

TYPES = schema({"user_pays_1h": Type.INT, "user_sum_1d": Type.DOUBLE})
LISTS = frozenset({"stolen-devices"})
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
LARGE = Rule("large", "amount > 100000", Action.CHALLENGE, "LARGE_AMOUNT")
BURST = Rule("burst", "f.user_pays_1h > 20", Action.DENY, "TOO_MANY")
STOLEN = Rule("stolen", 'in_list("stolen-devices", device.id)', Action.DENY, "DEVICE_STOLEN")
TRUSTED = Rule("trusted", 'user.id == "vip"', Action.ALLOW, "TRUSTED", priority=900)


def _decide(rules: list[Rule], facts: dict[str, Value], now: datetime = NOW) -> Any:
    made = Rules(RuleSet(tuple(rules)), TYPES, LISTS, version=7, now=now)
    return made.decide(complete(facts, TYPES), lambda _list, value: value == "phone-1")


def test_what_no_rule_matches_is_allowed() -> None:
    decision = _decide([LARGE, BURST], {"amount": 5})
    assert (decision.action, decision.hits, decision.version) == (Action.ALLOW, (), 7)


def test_the_strictest_of_the_highest_priority_decides_and_says_why() -> None:
    facts: dict[str, Value] = {"amount": 200_000, "f.user_pays_1h": 21, "device.id": "phone-1"}
    decision = _decide([LARGE, BURST, STOLEN, TRUSTED], facts)
    assert decision.action == Action.DENY
    assert decision.reasons == ("TOO_MANY", "DEVICE_STOLEN")
    assert {hit.rule for hit in decision.hits} == {"large", "burst", "stolen"}
    trusted = _decide([LARGE, BURST, STOLEN, TRUSTED], facts | {"user.id": "vip"})
    assert (trusted.action, trusted.reasons) == (Action.ALLOW, ("TRUSTED",))


def test_a_rule_in_the_shadow_counts_and_decides_nothing() -> None:
    decision = _decide([replace(BURST, mode=Mode.SHADOW)], {"f.user_pays_1h": 21})
    assert decision.action == Action.ALLOW
    assert [(hit.rule, hit.shadow) for hit in decision.hits] == [("burst", True)]
    assert not _decide([replace(BURST, mode=Mode.OFF)], {"f.user_pays_1h": 21}).hits


def test_a_rule_holds_only_while_it_is_effective() -> None:
    hour = timedelta(hours=1)
    rule = replace(LARGE, effective_from=NOW, effective_until=NOW + hour)
    facts: dict[str, Value] = {"amount": 200_000}
    found = [_decide([rule], facts, NOW + n * hour / 2).action for n in (-1, 0, 1, 2)]
    assert found == [Action.ALLOW, Action.CHALLENGE, Action.CHALLENGE, Action.ALLOW]
    made = Rules(RuleSet((rule,)), TYPES, LISTS, version=1, now=NOW - hour)
    assert made.changes_at == NOW
    assert Rules(RuleSet((rule,)), TYPES, LISTS, version=1, now=NOW).changes_at == NOW + hour
    assert Rules(RuleSet((rule,)), TYPES, LISTS, version=1, now=NOW + hour).changes_at is None


ACTIONS = st.sampled_from(list(Action))


@given(st.lists(st.tuples(ACTIONS, st.integers(0, 3), st.booleans()), max_size=12))
def test_the_decision_is_the_strictest_of_the_highest(
    drawn: list[tuple[Action, int, bool]],
) -> None:
    rules = [
        Rule(f"r{number}", "amount > 1" if matches else "amount > 9", action, "R", "", priority)
        for number, (action, priority, matches) in enumerate(drawn)
    ]
    live = [(priority, STRICTNESS[action], action) for action, priority, hit in drawn if hit]
    expected = max(live)[2] if live else Action.ALLOW
    assert _decide(rules, {"amount": 5}).action == expected


@pytest.mark.parametrize(
    ("rule", "field", "says"),
    [
        (replace(LARGE, when="amount >"), "rules[0].when", "ends too early"),
        (replace(LARGE, when="amuont > 3"), "rules[0].when", "is it amount?"),
        (replace(LARGE, when="f.unheard > 3"), "rules[0].when", "unknown"),
        (replace(LARGE, when='in_list("no", user.id)'), "rules[0].when", "no list"),
        (
            replace(LARGE, effective_from=datetime(2026, 1, 1)),  # noqa: DTZ001
            "rules[0].effective_from",
            "offset",
        ),
        (
            replace(LARGE, effective_from=NOW, effective_until=NOW),
            "rules[0].effective_until",
            "later",
        ),
        (replace(LARGE, cases=(Case({"amount": 5}, True),)), "rules[0].cases[0]", "should match"),
        (replace(LARGE, cases=(Case({"amount": 10**6}, False),)), "rules[0].cases[0]", "not match"),
        (replace(LARGE, cases=(Case({"amuont": 5}, True),)), "rules[0].cases[0].facts.amuont",
         "no fact"),
        (replace(LARGE, cases=(Case({"amount": "5"}, True),)), "rules[0].cases[0].facts.amount",
         "no int"),
        (replace(LARGE, cases=(Case({"amount": True}, True),)), "rules[0].cases[0].facts.amount",
         "no int"),
    ],
)  # fmt: skip
def test_a_broken_rule_set_is_refused_with_the_place(rule: Rule, field: str, says: str) -> None:
    (fault,) = faults(RuleSet((rule,)), TYPES, LISTS)
    assert fault.field == field
    assert says in fault.message


def test_all_faults_are_told_at_once_and_good_cases_pass() -> None:
    broken = RuleSet((replace(LARGE, when="x"), replace(BURST, when="y"), BURST, BURST))
    assert [fault.field for fault in faults(broken, TYPES, LISTS)] == [
        "rules[0].when", "rules[1].when", "rules[2].name", "rules[3].name",
    ]  # fmt: skip
    tested = replace(
        STOLEN,
        cases=(
            Case({"device.id": "d"}, True, lists={"stolen-devices": ("d",)}),
            Case({"device.id": "d"}, False),
        ),
    )
    assert not faults(RuleSet((tested,)), TYPES, LISTS)


@pytest.mark.parametrize(
    "document",
    [
        {"rules": [{"name": "A", "when": "true", "action": "deny", "reason": "X"}]},
        {"rules": [{"name": "a", "when": "true", "action": "burn", "reason": "X"}]},
        {"rules": [{"name": "a", "when": "true", "action": "deny", "reason": "x"}]},
        {"rules": [{"name": "a", "when": "true", "action": "deny", "reason": "X", "hue": 1}]},
        {"rules": [{"name": "a", "when": "", "action": "deny", "reason": "X"}]},
    ],
)
def test_a_document_of_the_wrong_shape_is_refused(document: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(RuleSet).validate_python(document)


def test_two_thousand_rules_are_one_set() -> None:
    rules = [
        Rule(f"r{number}", f"amount > {number} && f.user_sum_1d > {number % 50}.0", Action.REVIEW,
             f"R{number}")
        for number in range(2000)
    ]  # fmt: skip
    decision = _decide(rules, {"amount": 1500, "f.user_sum_1d": 25.5})
    expected = sum(number < 1500 and number % 50 < 25.5 for number in range(2000))
    assert len(decision.hits) == expected
