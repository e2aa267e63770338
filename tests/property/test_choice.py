"""The choice of channels, whatever the policies, the facts and the statistics are."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cells.breakers.board import Board
from cells.channels.model import Answer, AnswerReason, Verdict
from cells.choice.beliefs import (
    NOTHING,
    added,
    believing,
    digamma,
    drawn,
    faded,
    trigamma,
    uniform,
)
from cells.choice.chooser import Chooser
from cells.choice.document import NoDecision, decode, encode, replay, under
from cells.choice.fees import fee, tier_of
from cells.choice.model import Facts, Level, Snapshot, Usage
from cells.choice.rules import decide, exclusion
from cells.choice.statistics import KEYS_PER_CHANNEL_MAX
from cells.choice.terms import Terms, make_terms
from router.policies.channels import (
    Band,
    Banks,
    ChannelPolicy,
    ChoicePolicy,
    Commitment,
    Fees,
    Hours,
    Only,
    Quotas,
    Rounding,
    Tier,
)
from router.policies.rules import InvalidPolicy, parse

_AMOUNT = st.integers(0, 10**9)
_NAMES = [f"bank-{letter}" for letter in "abcdefgh"]
_SCHEMES = st.sampled_from(["visa", "jcb", "amex"])
_WHO = st.lists(st.sampled_from(["x", "y", "z"]), max_size=2, unique=True).map(tuple)
_SOME_SCHEMES = st.lists(_SCHEMES, max_size=2, unique=True).map(tuple)
_CLOCK = st.sampled_from(["00:00", "07:30", "12:00", "23:59"])
_AT_MS = st.integers(1_600_000_000_000, 1_900_000_000_000)


@st.composite
def tiers(draw: Any, falling: bool = False) -> tuple[Tier, ...]:
    volumes = sorted(draw(st.sets(st.integers(1, 10**9), max_size=3)))
    found: list[Tier] = []
    for volume in [0, *volumes]:
        low, high = sorted((draw(_AMOUNT), draw(_AMOUNT)))
        tier = Tier(volume, draw(_AMOUNT), draw(st.integers(0, 1_000_000)), low, high)
        if falling and found:
            last = found[-1]
            tier = Tier(
                volume, min(tier.fixed, last.fixed), min(tier.rate_ppm, last.rate_ppm),
                min(tier.minimum, last.minimum), min(tier.maximum, last.maximum),
            )  # fmt: skip
        found.append(tier)
    return tuple(found)


@st.composite
def channels(draw: Any, name: str) -> ChannelPolicy:
    low, high = sorted((draw(_AMOUNT), draw(_AMOUNT)))
    limit = st.none() | st.integers(0, 5)
    hours = st.builds(Hours, begin=_CLOCK, end=st.sampled_from(["06:00", "12:30", "24:00"]))
    return ChannelPolicy(
        name,
        {"USD": Band(low, high)},
        (Fees("USD", draw(tiers()), draw(_SOME_SCHEMES), attempt=draw(st.integers(0, 10))),),
        blocked=draw(st.sampled_from([False, False, False, True])),
        schemes=draw(_SOME_SCHEMES),
        banks=Banks(only=draw(_WHO), must=draw(_WHO)),
        merchants=Only(never=draw(_WHO)),
        zone=draw(st.sampled_from(["UTC", "Asia/Shanghai", "America/New_York"])),
        hours=tuple(draw(st.lists(hours, max_size=2))),
        quotas=Quotas(draw(limit), draw(limit), draw(st.dictionaries(st.just("USD"), _AMOUNT))),
        commitments=draw(st.just(()) | st.just((Commitment("USD", 10**9, 5_000),))),
        preference_ppm=draw(st.integers(-1000, 1000)),
    )


@st.composite
def terms(draw: Any) -> Terms:
    names = draw(st.lists(st.sampled_from(_NAMES), unique=True, max_size=8))
    choice = ChoicePolicy(channels_max=draw(st.integers(1, 8)))
    documents = [draw(channels(name)) for name in names]
    return make_terms([*documents, choice], {name: draw(st.integers(1, 99)) for name in names})


@st.composite
def some_facts(draw: Any) -> Facts:
    return Facts(
        draw(st.text(min_size=1, max_size=30)),
        draw(_AMOUNT),
        "USD",
        draw(_AT_MS),
        merchant=draw(st.sampled_from(["x", "y", "z", ""])),
        scheme=draw(_SCHEMES),
        bank=draw(st.sampled_from(["x", "y", "z", ""])),
        must_use=draw(st.sampled_from(["", "", "", "bank-a"])),
    )


_STANDING = st.builds(
    believing,
    st.floats(0, 5000), st.floats(0, 5000), st.floats(0, 60_000), st.floats(0, 300),
    st.sampled_from(Level),
)  # fmt: skip
_USAGE = st.builds(Usage, st.integers(0, 6), st.integers(0, 6), _AMOUNT, _AMOUNT)


@st.composite
def snapshots(draw: Any) -> Snapshot:
    order = draw(st.permutations(_NAMES))
    away = draw(st.sets(st.sampled_from(_NAMES), max_size=2))
    usages = draw(st.dictionaries(st.sampled_from(_NAMES), _USAGE))
    return Snapshot({name: draw(_STANDING) for name in order}, usages, frozenset(away))


@given(tiers(), st.sampled_from(Rounding), _AMOUNT, _AMOUNT)
def test_a_fee_is_never_negative_and_never_below_its_minimum_or_above_its_cap(
    made: tuple[Tier, ...], rounding: Rounding, amount: int, volume: int
) -> None:
    number = tier_of(tuple(tier.from_volume for tier in made), volume)
    charged = fee(Fees("USD", made, rounding=rounding), number, amount)
    assert 0 <= made[number].minimum <= charged <= made[number].maximum
    assert made[number].from_volume <= volume


@given(tiers(falling=True), _AMOUNT, _AMOUNT, _AMOUNT)
def test_where_it_is_promised_more_volume_never_costs_more(
    made: tuple[Tier, ...], amount: int, one: int, other: int
) -> None:
    table = Fees("USD", made, falling=True)
    low, high = sorted((one, other))
    volumes = tuple(tier.from_volume for tier in made)
    after, before = (fee(table, tier_of(volumes, volume), amount) for volume in (high, low))
    assert after <= before


@given(terms(), some_facts(), snapshots())
def test_every_channel_is_in_the_order_or_left_out_once_and_none_that_may_not_be_asked_is_in_it(
    made: Terms, facts: Facts, snapshot: Snapshot
) -> None:
    decision = decide(facts, made, snapshot)
    left_out = [item.channel for item in decision.excluded]
    assert sorted([*decision.order, *left_out]) == sorted(made.channels)
    assert len(decision.order) <= made.choice.channels_max
    utilities = [item.utility for item in decision.ranked]
    assert utilities == sorted(utilities, reverse=True)
    field = made.field_of(facts)
    claimed = any(facts.bank in item.banks.must for item in made.channels.values()
                  if item.channel in field.candidates)  # fmt: skip
    for name in decision.order:
        policy = made.channels[name]
        usage = snapshot.usages.get(name, Usage())
        assert not policy.blocked
        assert not policy.schemes or facts.scheme in policy.schemes
        assert policy.amounts["USD"].minimum <= facts.amount <= policy.amounts["USD"].maximum
        assert facts.merchant not in policy.merchants.never
        assert not policy.banks.only or facts.bank in policy.banks.only
        assert not claimed or facts.bank in policy.banks.must
        assert facts.must_use in {"", name}
        assert name not in snapshot.away
        for limit, used in ((policy.quotas.per_minute, usage.minute),
                            (policy.quotas.per_day, usage.day)):  # fmt: skip
            assert limit is None or used < limit
        assert exclusion(field.candidates[name], facts, usage, claimed) is None


@given(terms(), some_facts(), snapshots(), st.randoms(use_true_random=False))
def test_the_order_of_the_policies_and_of_the_asking_changes_nothing(
    made: Terms, facts: Facts, snapshot: Snapshot, chance: random.Random
) -> None:
    shuffled = list(made.channels.values())
    chance.shuffle(shuffled)
    other = make_terms([*shuffled, made.choice], made.revisions)
    assert decide(facts, other, snapshot) == decide(facts, made, snapshot)


@given(terms(), some_facts(), snapshots())
def test_a_decision_is_replayed_from_its_document_and_another_charge_draws_otherwise(
    made: Terms, facts: Facts, snapshot: Snapshot
) -> None:
    decision = decide(facts, made, snapshot)
    read = decode(encode(decision))
    again = replay(read, made)
    assert again.is_same, again.differences
    assert encode(again.decision) == encode(decision)
    under(read, made)
    other = decide(replace(facts, owner_id=facts.owner_id + "'"), made, snapshot)
    drawn_before = {item.channel: item.drawn for item in decision.ranked}
    assert all(
        drawn_before[item.channel] != item.drawn
        for item in other.ranked
        if 0.01 < item.drawn < 0.99
    )


@given(terms(), some_facts(), snapshots(), st.data())
def test_a_decision_that_was_tampered_with_is_not_the_same_when_replayed(
    made: Terms, facts: Facts, snapshot: Snapshot, data: Any
) -> None:
    decision = decide(facts, made, snapshot)
    if not decision.ranked:
        return
    place = data.draw(st.integers(0, len(decision.ranked) - 1))
    forged = list(decision.ranked)
    forged[place] = forged[place]._replace(fee=forged[place].fee + 1)
    assert not replay(replace(decision, ranked=tuple(forged)), made).is_same
    fewer = decision.ranked[:place] + decision.ranked[place + 1 :]
    assert not replay(replace(decision, ranked=fewer), made).is_same


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_what_is_no_decision_is_refused(text: str) -> None:
    with pytest.raises(NoDecision):
        decode(text)


@given(st.lists(st.tuples(st.integers(0, 90_000), st.integers(1, 500)), max_size=60),
       st.integers(0, 4), st.integers(0, 8), st.integers(0, 2000))  # fmt: skip
def test_quotas_are_kept_whatever_is_chosen(
    charges: list[tuple[int, int]], per_minute: int, per_day: int, amount_per_day: int
) -> None:
    quotas = Quotas(per_minute, per_day, {"USD": amount_per_day})
    table = (Fees("USD", (Tier(),)),)
    documents = [ChannelPolicy(name, {"USD": Band()}, table, quotas=quotas) for name in _NAMES[:2]]
    now = [0.0]
    chooser = Chooser(Board(lambda: now[0]), lambda: now[0])
    chooser.use(make_terms(documents, {}))
    minutes: dict[tuple[str, int], int] = {}
    days: dict[tuple[str, int], list[int]] = {}
    at_ms = 1_700_000_000_000
    for number, (later_ms, amount) in enumerate(charges):
        at_ms += later_ms
        now[0] = at_ms / 1000
        facts = Facts(f"chg_{number}", amount, "USD", at_ms)
        for name in chooser.choose(facts).order:
            assert chooser.take(facts, name), "what was chosen may be asked"
            minute, day = (name, at_ms // 60_000), (name, at_ms // 86_400_000)
            minutes[minute] = minutes.get(minute, 0) + 1
            days.setdefault(day, []).append(amount)
            verdict = Verdict.FAILED if number % 3 == 0 else Verdict.APPROVED
            chooser.note(facts, name, Answer(verdict, AnswerReason.UNSUPPORTED), 10)
            if verdict is Verdict.APPROVED:
                break
    assert all(count <= per_minute for count in minutes.values())
    assert all(len(day) <= per_day and sum(day) <= amount_per_day for day in days.values())


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 90_000)), max_size=80))
def test_observations_never_weigh_more_than_their_limit_nor_less_than_nothing(
    story: list[tuple[bool, float]],
) -> None:
    choice = ChoicePolicy(weight_max=20, usual_weight_max=30)
    seen = NOTHING
    for good, elapsed_s in story:
        seen = added(faded(seen, elapsed_s, choice), int(good), int(not good), 100.0, choice)
        assert 0 < seen.good + seen.bad <= 20 + 1e-9
        assert 0 < seen.usual_good + seen.usual_bad <= 30 + 1e-9
        assert min(seen) >= 0
        assert 99 < seen.latency_ms / (seen.good + seen.bad) < 101


@given(st.floats(0.5, 1e5))
def test_the_gamma_functions_derivatives_keep_their_recurrences(x: float) -> None:
    assert digamma(x + 1) - digamma(x) == pytest.approx(1 / x, rel=1e-6, abs=1e-9)
    assert trigamma(x) - trigamma(x + 1) == pytest.approx(1 / (x * x), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(("alpha", "beta"), [(18, 2), (3, 3), (250, 30), (2, 20), (1, 1)])
def test_draws_are_spread_as_a_beta_distribution_is(alpha: float, beta: float) -> None:
    believed = believing(alpha, beta, 0, 0, Level.BAND)
    ours = sorted(drawn(believed, uniform(number * 7919, 12345)) for number in range(4000))
    chance = random.Random(1)
    exact = sorted(chance.betavariate(alpha, beta) for _ in range(4000))
    for part in (0.1, 0.25, 0.5, 0.75, 0.9):
        place = int(part * 4000)
        assert ours[place] == pytest.approx(exact[place], abs=0.035)


def test_uniform_draws_are_uniform_and_never_0_or_1() -> None:
    found = sorted(uniform(owner << 40, 99) for owner in range(10_000))
    assert found[0] > 0
    assert found[-1] < 1
    worst = max(abs(value - place / 10_000) for place, value in enumerate(found))
    # Kolmogorov and Smirnov at a level of one in ten thousand.
    assert worst < 2.23 / 100


def test_what_is_kept_has_an_end_whatever_schemes_come() -> None:
    chooser = Chooser(Board())
    chooser.use(make_terms([ChannelPolicy("a", {"USD": Band()}, (Fees("USD", (Tier(),)),))], {}))
    for number in range(2 * KEYS_PER_CHANNEL_MAX):
        facts = Facts("chg_1", 10, "USD", 1_700_000_000_000, scheme=f"s{number}")
        chooser.choose(facts)
        chooser.note(facts, "a", Answer(Verdict.APPROVED), 10)
    assert len(chooser.statistics.take_unsent()) <= KEYS_PER_CHANNEL_MAX


@given(channels("bank-a"))
def test_a_channel_that_is_made_is_valid_or_named_as_wrong(made: ChannelPolicy) -> None:
    from pydantic import TypeAdapter

    from router.policies.model import PolicyKind

    text = TypeAdapter(ChannelPolicy).dump_json(made).decode()
    try:
        assert parse(PolicyKind.CHANNELS, text) == made
    except InvalidPolicy as error:
        assert all(item.field.startswith("document") for item in error.violations)
