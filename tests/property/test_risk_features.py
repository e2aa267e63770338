"""Features mean what their page says: held against a definition that remembers everything."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from router.risk.features import (
    Aggregate,
    Entity,
    Feature,
    FeatureSet,
    Observation,
    additions,
    covered,
    faults,
    value_of,
)
from router.risk.model import Action

NAMES = st.sampled_from(["", "x", "y"])
OBSERVATIONS = st.lists(
    st.builds(
        Observation,
        at_ms=st.integers(0, 400_000),
        operation=st.sampled_from(["pay", "transfer"]),
        action=st.sampled_from(["allow", "deny"]),
        user=NAMES,
        payee=NAMES,
        device=NAMES,
        ip=NAMES,
        card=NAMES,
        amount=st.integers(1, 1000),
        currency=st.sampled_from(["USD", "JPY"]),
    ),
    max_size=30,
)


@st.composite
def features(draw: st.DrawFn) -> Feature:
    by = draw(st.sampled_from(list(Entity)))
    aggregate = draw(st.sampled_from(list(Aggregate)))
    others = [entity for entity in Entity if entity != by]
    return Feature(
        name="one",
        by=by,
        aggregate=aggregate,
        window_s=draw(st.sampled_from([60, 90, 100])),
        buckets=draw(st.sampled_from([2, 7, 10])),
        of=draw(st.sampled_from(others)) if aggregate == Aggregate.DISTINCT else None,
        operations=draw(st.sampled_from([(), ("pay",)])),
        actions=draw(st.sampled_from([(), (Action.DENY,)])),
        currency=draw(st.sampled_from(["", "USD"])),
    )


def by_definition(feature: Feature, seen: list[Observation], key: str, at_ms: int) -> int:
    length = feature.window_s * 1000 / feature.buckets
    assert length <= feature.bucket_ms < length + 1
    end = (at_ms // feature.bucket_ms + 1) * feature.bucket_ms
    begin = end - feature.buckets * feature.bucket_ms
    counted = [
        item
        for item in seen
        if begin <= item.at_ms < end
        and value_of(item, feature.by) == key
        and (feature.operations == () or item.operation in feature.operations)
        and (feature.actions == () or item.action in feature.actions)
        and (feature.currency in {"", item.currency})
    ]
    if feature.aggregate == Aggregate.COUNT:
        return len(counted)
    if feature.aggregate == Aggregate.SUM:
        return sum(item.amount for item in counted)
    assert feature.of is not None
    return len({value_of(item, feature.of) for item in counted} - {""})


@given(features(), OBSERVATIONS, st.sampled_from(["x", "y"]), st.integers(0, 500_000))
def test_buckets_give_what_the_definition_says_in_any_order(
    feature: Feature, seen: list[Observation], key: str, at_ms: int
) -> None:
    sums: dict[int, int] = defaultdict(int)
    members: dict[int, set[str]] = defaultdict(set)
    for item in reversed(seen):
        for addition in additions(FeatureSet((feature,)), item):
            if addition.key == key:
                sums[addition.bucket] += addition.value
                members[addition.bucket] |= {addition.member} - {""}
    buckets = covered(feature, at_ms)
    found = (
        len(set().union(*(members[bucket] for bucket in buckets)))
        if feature.aggregate == Aggregate.DISTINCT
        else sum(sums[bucket] for bucket in buckets)
    )
    assert found == by_definition(feature, seen, key, at_ms)


def test_features_that_make_no_sense_are_refused() -> None:
    count = Feature("a", Entity.USER, Aggregate.COUNT, 60)
    document = FeatureSet(
        (
            count,
            count,
            Feature("b", Entity.USER, Aggregate.DISTINCT, 60),
            Feature("c", Entity.USER, Aggregate.SUM, 60, of=Entity.IP),
            Feature("d", Entity.USER, Aggregate.DISTINCT, 60, of=Entity.USER),
        )
    )
    assert [field for field, _ in faults(document)] == [
        "features[1].name", "features[2].of", "features[3].of", "features[4].of",
    ]  # fmt: skip
