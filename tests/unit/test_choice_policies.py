"""Policies of channels and of their choice: what is valid, and where it is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cells.choice.terms import make_terms, terms_of
from router.policies.channels import Band, ChannelPolicy, ChoicePolicy
from router.policies.model import PolicyKind
from router.policies.rules import (
    InvalidPolicy,
    PolicySet,
    envelope,
    parse,
    policy_key,
    take,
)

TIERS = [{"fixed": 30, "rate_ppm": 29_000}]
GOOD: dict[str, Any] = {
    "channel": "bank-a",
    "amounts": {"USD": {"minimum": 100}},
    "fees": [{"currency": "USD", "tiers": TIERS}],
}


def _fields(kind: str, document: object) -> set[str]:
    with pytest.raises(InvalidPolicy) as caught:
        parse(PolicyKind(kind), json.dumps(document))
    return {item.field for item in caught.value.violations}


def test_a_channel_needs_a_name_what_it_takes_and_what_it_costs() -> None:
    parsed = parse(PolicyKind.CHANNELS, json.dumps(GOOD))
    assert isinstance(parsed, ChannelPolicy)
    assert (parsed.amounts, parsed.zone, parsed.blocked) == ({"USD": Band(100)}, "UTC", False)
    expected = {"document.channel", "document.amounts", "document.fees"}
    assert _fields("channels", {}) == expected
    assert _fields("channels", GOOD | {"amounts": {}, "fees": []}) == expected - {
        "document.channel"
    }


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"channel": "Bank A"}, {"document.channel"}),
        ({"wrong": 1}, {"document.wrong"}),
        ({"zone": "Europe/Nowhere"}, {"document.zone"}),
        ({"zone": "../../etc/passwd"}, {"document.zone"}),
        ({"amounts": {"USD": {"minimum": 5, "maximum": 4}}}, {"document.amounts.USD"}),
        ({"amounts": {"USD": {}, "EUR": {}}}, {"document.fees"}),
        ({"amounts": {"usd": {}}}, {"document.amounts.usd.[key]"}),
        ({"hours": [{"begin": "24:00"}]}, {"document.hours[0]"}),
        ({"hours": [{"days": [0]}, {"end": "25:00"}]},
         {"document.hours[0].days[0]", "document.hours[1].end"}),
        ({"banks": {"only": ["x"], "never": ["x"]}}, {"document.banks"}),
        ({"banks": {"must": ["x"], "never": ["x"]}}, {"document.banks.must"}),
        ({"quotas": {"per_minute": -1}}, {"document.quotas.per_minute"}),
        ({"commitments": [{"currency": "USD", "month_minimum": 1, "shortfall_ppm": 1}] * 2},
         {"document.commitments[1]"}),
        ({"fees": [{"currency": "USD", "tiers": []}]}, {"document.fees[0].tiers"}),
        ({"fees": [{"currency": "USD", "tiers": [{"fixed": 1.5}]}]},
         {"document.fees[0].tiers[0].fixed"}),
        ({"fees": [{"currency": "USD", "tiers": [{"from_volume": 1}]}]},
         {"document.fees[0].tiers[0].from_volume"}),
        ({"fees": [{"currency": "USD", "tiers": [{"minimum": 9, "maximum": 8}]}]},
         {"document.fees[0].tiers[0]"}),
        ({"fees": [{"currency": "USD", "tiers": [{}, {"from_volume": 0}]}]},
         {"document.fees[0].tiers[1].from_volume"}),
        ({"fees": [{"currency": "USD", "falling": True,
                    "tiers": [{"fixed": 1}, {"from_volume": 9, "fixed": 2, "rate_ppm": 1}]}]},
         {"document.fees[0].tiers[1].fixed", "document.fees[0].tiers[1].rate_ppm"}),
    ],
)  # fmt: skip
def test_a_wrong_channel_is_refused_with_every_field_that_is_wrong(
    change: dict[str, Any], fields: set[str]
) -> None:
    assert _fields("channels", GOOD | change) == fields


@pytest.mark.parametrize(
    ("document", "fields"),
    [
        ({"bands": {"USD": [100, 100]}}, {"document.bands.USD"}),
        ({"half_life_s": 86_400, "usual_half_life_s": 60}, {"document.usual_half_life_s"}),
        ({"prior_rate": 1, "channels_max": 0}, {"document.prior_rate", "document.channels_max"}),
    ],
)
def test_a_wrong_choice_is_refused_with_every_field_that_is_wrong(
    document: dict[str, Any], fields: set[str]
) -> None:
    assert _fields("choice", document) == fields


@pytest.mark.parametrize("dependency", ["channel:", "channel:Bank", "channel", "channel:a/b"])
def test_a_breaker_is_of_a_dependency_or_of_a_channel(dependency: str) -> None:
    assert _fields("breakers", {"dependency": dependency}) == {"document.dependency"}
    assert parse(PolicyKind.BREAKERS, '{"dependency": "channel:bank-a"}')


def _stored(documents: dict[str, tuple[dict[str, Any], int]]) -> PolicySet:
    return take(
        PolicySet(),
        {
            policy_key(*path.split("/")): (
                envelope(json.dumps(document), reason="r", actor="a", time_ms=1),
                revision,
            )
            for path, (document, revision) in documents.items()
        },
    )


def test_terms_are_those_of_the_cell_and_their_digest_names_every_revision() -> None:
    documents = {
        "channels/bank-a": (GOOD, 5),
        "channels/bank-b": (GOOD | {"channel": "bank-b", "cells": ["b"]}, 6),
        "choice/mesh": ({"approval_ppm": 7}, 4),
        "limits/all": ({}, 9),
    }
    terms = terms_of(_stored(documents), "a")
    assert list(terms.channels) == ["bank-a"]
    assert (terms.choice.approval_ppm, terms.revision) == (7, 5)
    assert list(terms_of(_stored(documents), "b").channels) == ["bank-a", "bank-b"]
    documents["channels/bank-a"] = (GOOD, 8)
    assert terms_of(_stored(documents), "a").digest != terms.digest


def test_without_policies_there_are_no_channels_and_the_default_choice() -> None:
    assert make_terms([], {}).channels == {}
    assert make_terms([], {}).choice == ChoicePolicy()
