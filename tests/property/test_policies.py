"""Policies, whatever is written into them."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from router.policies.model import Criticality, Degradation, Feature, Mode, PolicyKind
from router.policies.rules import (
    CLASSES,
    InvalidPolicy,
    PolicySet,
    envelope,
    modes_at,
    parse,
    policy_key,
    take,
)

_HARM = (Mode.ON, Mode.DEFERRED, Mode.OFF)
_MODES = st.tuples(*[st.sampled_from(Mode)] * 3)
_FEATURES = st.dictionaries(st.sampled_from(Feature), _MODES)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def _valid(features: dict[Feature, tuple[Mode, ...]]) -> Degradation | None:
    try:
        document = parse(PolicyKind.DEGRADATION, json.dumps({"features": features}))
    except InvalidPolicy:
        return None
    assert isinstance(document, Degradation)
    return document


@given(st.lists(_FEATURES, min_size=1, max_size=3))
def test_what_a_class_loses_every_lower_class_has_lost_before(
    written: list[dict[Feature, tuple[Mode, ...]]],
) -> None:
    documents = [item for item in map(_valid, written) if item is not None]
    order = list(Criticality)
    for level in range(4):
        modes = modes_at(documents, level)
        touched = [order.index(CLASSES[item]) for item, mode in modes.items() if mode != Mode.ON]
        spared = [order.index(CLASSES[item]) for item, mode in modes.items() if mode == Mode.ON]
        assert not touched or not spared or min(touched) >= max(spared)


@given(_FEATURES)
def test_a_higher_level_gives_nothing_back_and_events_are_never_lost(
    written: dict[Feature, tuple[Mode, ...]],
) -> None:
    document = _valid(written)
    if document is None:
        return
    levels = [modes_at([document], level) for level in range(4)]
    for feature in Feature:
        harms = [_HARM.index(modes[feature]) for modes in levels]
        assert harms == sorted(harms)
    assert levels[3][Feature.NOTIFICATION] != Mode.OFF


@given(st.sampled_from(PolicyKind), _JSON)
def test_whatever_stands_in_etcd_is_taken_or_named_as_wrong_and_never_raises(
    kind: PolicyKind, document: object
) -> None:
    key = policy_key(kind, "x")
    value = envelope(json.dumps(document), reason="", actor="", time_ms=0)
    for stored in (value, json.dumps(document)):
        taken = take(PolicySet(), {key: (stored, 7)})
        assert len(taken.applied) == 1
        assert bool(taken.applied[0].alarm) != (key in taken.policies)
