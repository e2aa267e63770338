"""Policies: what is valid, what is in force after which change, what goes first."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router.policies.model import (
    Breakers,
    Degradation,
    Dependency,
    Feature,
    Limits,
    Mode,
    PolicyKind,
    Traffic,
)
from router.policies.rules import (
    DOCUMENT_BYTES_MAX,
    InvalidPolicy,
    PolicySet,
    envelope,
    modes_at,
    parse,
    parse_name,
    policy_key,
    take,
)


def _value(document: dict[str, Any]) -> str:
    return envelope(json.dumps(document), reason="r", actor="a", time_ms=1)


def _fields(kind: str, document: object) -> set[str]:
    text = document if isinstance(document, str) else json.dumps(document)
    with pytest.raises(InvalidPolicy) as caught:
        parse(PolicyKind(kind), text)
    return {item.field for item in caught.value.violations}


@pytest.mark.parametrize(
    ("kind", "document", "expected"),
    [
        ("traffic", {}, Traffic()),
        ("breakers", {"dependency": "nats"}, Breakers(Dependency.NATS)),
        ("degradation", {"level": 2, "cells": ["a"]}, Degradation(("a",), 2)),
        ("limits", {}, Limits()),
    ],
)
def test_what_a_document_does_not_say_is_the_default(
    kind: str, document: object, expected: object
) -> None:
    assert parse(PolicyKind(kind), json.dumps(document)) == expected


@pytest.mark.parametrize(
    ("kind", "document", "fields"),
    [
        ("traffic", "no JSON", {"document"}),
        ("traffic", [], {"document"}),
        ("traffic", {"wrong": 1, "timeout_ms": 0}, {"document.wrong", "document.timeout_ms"}),
        ("traffic", {"methods": ["a.B/C", "/a.B/C"]}, {"document.methods[1]"}),
        (
            "traffic",
            {"methods": ["a.B/C"], "circuit_breaker": {"requests_max": 1}, "outlier_detection": {}},
            {"document.circuit_breaker", "document.outlier_detection"},
        ),
        (
            "traffic",
            {"methods": ["a.B/C"], "retry": {"codes": ["internal"], "budget_percent": 1}},
            {"document.retry.budget_percent"},
        ),
        (
            "traffic",
            {"fault": {"delay_percent": 1, "abort_percent": 1}},
            {"document.fault.delay_ms", "document.fault.abort_code"},
        ),
        ("traffic", {"fault": {"abort_percent": 101}}, {"document.fault.abort_percent"}),
        (
            "traffic",
            {"retry": {"codes": ["unavailable"], "backoff_base_ms": 19, "backoff_cap_ms": 18}},
            {"document.retry.backoff_cap_ms"},
        ),
        ("breakers", {}, {"document.dependency"}),
        ("breakers", {"dependency": "etcd", "force": "ajar"},
         {"document.dependency", "document.force"}),
        ("degradation", {"level": 4}, {"document.level"}),
        ("degradation", {"level": 2, "level_max": 1}, {"document.level"}),
        ("degradation", {"features": {"payments": ["off"] * 3}},
         {"document.features.payments.[key]"}),
        ("degradation", {"features": {"points": ["off", "on", "off"]}},
         {"document.features.points"}),
        ("degradation", {"features": {"notification": ["deferred", "deferred", "off"]}},
         {"document.features.notification"}),
        ("degradation", {"features": {"refunds": ["off", "off", "off"]}},
         {"document.features.refunds"}),
        ("degradation", {"pressure": {"cpu_percent": [90, 80, 95]}},
         {"document.pressure.cpu_percent"}),
        ("limits", {"concurrency": {"minimum": 10, "initial": 5}}, {"document.concurrency"}),
        ("limits", {"rates": [{"by": "user", "per_s": 0, "burst": 0}]},
         {"document.rates[0].per_s", "document.rates[0].burst"}),
    ],
)  # fmt: skip
def test_a_wrong_document_is_refused_with_every_field_that_is_wrong(
    kind: str, document: object, fields: set[str]
) -> None:
    assert _fields(kind, document) == fields


def test_a_document_has_an_end() -> None:
    assert _fields("traffic", " " * (DOCUMENT_BYTES_MAX + 1)) == {"document"}


@pytest.mark.parametrize(
    ("kind", "name"), [("x", "a"), ("limits", ""), ("limits", "A"), ("limits", "a/b"), ("", "-")]
)
def test_a_name_that_would_be_another_key_is_refused(kind: str, name: str) -> None:
    with pytest.raises(InvalidPolicy):
        parse_name(kind, name)


KEY = policy_key("degradation", "mesh")
GOOD = _value({"level": 1})


def _levels(policies: PolicySet) -> list[int]:
    return [item.level for item in policies.of(Degradation)]


@pytest.mark.parametrize(
    "bad", ["", "null", "[]", "{}", '{"document": null}', '{"document": {"level": 9}}']
)
def test_a_bad_document_leaves_the_last_good_one_in_force_with_an_alarm(bad: str) -> None:
    before = take(PolicySet(), {KEY: (GOOD, 1)})
    after = take(before, {KEY: (bad, 2)})
    assert _levels(after) == [1]
    assert [(item.revision, bool(item.alarm)) for item in after.applied] == [(2, True)]
    # A process that starts now has no good one: the defaults hold.
    assert _levels(take(PolicySet(), {KEY: (bad, 2)})) == []
    mended = take(after, {KEY: (_value({"level": 3}), 3)})
    assert _levels(mended) == [3]
    assert not mended.applied[0].alarm


def test_a_deleted_policy_is_in_force_no_more_and_other_keys_are_not_ours() -> None:
    before = take(PolicySet(), {KEY: (GOOD, 1), "/cellpay/policies/failover": ("{}", 1)})
    assert len(before.applied) == 1
    assert take(before, {}) == PolicySet()


def test_a_policy_of_unknown_kind_is_an_alarm_and_hurts_nobody() -> None:
    stored = {policy_key("weather", "x"): (GOOD, 1), KEY: (GOOD, 2)}
    after = take(PolicySet(), stored)
    assert _levels(after) == [1]
    assert [bool(item.alarm) for item in after.applied] == [False, True]


def test_documents_are_of_the_cells_that_they_name() -> None:
    stored = {
        policy_key("degradation", "a"): (_value({"level": 1, "cells": ["a"]}), 1),
        policy_key("degradation", "all"): (_value({"level": 2}), 2),
    }
    after = take(PolicySet(), stored)
    assert [item.level for item in after.of(Degradation, "a")] == [1, 2]
    assert [item.level for item in after.of(Degradation, "b")] == [2]


def test_level_0_switches_nothing_off_and_without_a_policy_nothing_is() -> None:
    assert set(modes_at([Degradation()], 0).values()) == {Mode.ON}
    assert set(modes_at([], 3).values()) == {Mode.ON}


def test_of_two_documents_the_one_that_takes_more_wins() -> None:
    harsher = Degradation(features={Feature.POINTS: (Mode.OFF, Mode.OFF, Mode.OFF)})
    assert modes_at([Degradation(), harsher], 1)[Feature.POINTS] == Mode.OFF
