"""A short day of the simulation: a bank that has healed is found again; the day is well spent."""

from __future__ import annotations

import pytest

from cells.choice.model import Exclusion
from router.policies.channels import Band, ChannelPolicy, Fees, Tier
from tests.bench.choice_day import CURRENCY, SCHEMES, Bank, Day, Outage, Trouble, outages
from tests.bench.choice_sim import BASELINES, Outcome, Run, oracle, ours, play

_HOUR_S = 3600


def _bank(name: str, rate_ppm: int, approves: float) -> Bank:
    fees = (Fees(CURRENCY, (Tier(0, 10, rate_ppm),)),)
    policy = ChannelPolicy(name, {CURRENCY: Band(1, 500_000)}, fees)
    return Bank(policy, dict.fromkeys(SCHEMES, approves), (0.0, 0.0, 0.0), 300)


# The better one costs no more: whoever knows asks it first.
_BANKS = (_bank("better", 15_000, 0.94), _bank("other", 16_000, 0.86))


def _first_of(outcome: Outcome, channel: str, begin: float, end: float) -> float:
    """Its share of the first requests, from one part of the day to another."""
    count = len(outcome.first[channel])
    span = slice(int(begin * count), int(end * count))
    asked = {name: sum(found[span]) for name, found in outcome.first.items()}
    return asked[channel] / sum(asked.values())


@pytest.mark.parametrize(
    ("trouble", "begin_h", "end_h"),
    [
        (Trouble.HARD, 2, 3),
        (Trouble.PARTIAL, 2, 3),
        (Trouble.SLOW, 2, 3),
        # When the first thing that was ever seen of it was that it is down.
        (Trouble.HARD, 0, 1.5),
    ],
)
def test_a_bank_in_trouble_is_left_and_found_again_when_it_has_healed(
    trouble: Trouble, begin_h: float, end_h: float
) -> None:
    schemes = SCHEMES if trouble is not Trouble.PARTIAL else ("visa", "mastercard")
    outage = Outage("better", trouble, int(begin_h * _HOUR_S), int(end_h * _HOUR_S), schemes)
    day = Day(3, 6000, (outage,), length_s=6 * _HOUR_S, banks=_BANKS)
    outcome = Run(day, ours).play(day.traffic())
    in_trouble = _first_of(outcome, "better", (begin_h + 0.5) / 6, end_h / 6)
    healed = _first_of(outcome, "better", 4.5 / 6, 1.0)
    assert in_trouble < 0.4
    assert healed > 0.75


def test_a_short_day_comes_close_to_the_oracles() -> None:
    day = Day(5, 4000, outages(0.25), length_s=6 * _HOUR_S)
    played = play(day, {"ours": ours, **BASELINES})
    own, best = played["ours"], played["oracle"]
    # A day of 4,000 charges begins with nothing known: the whole day's goal is 98 %.
    assert own.approval_rate > 0.95 * best.approval_rate
    assert own.approval_rate > played["round-robin"].approval_rate
    assert own.approval_rate > played["cost-only"].approval_rate
    assert own.cost_ppm < played["round-robin"].cost_ppm


def test_every_strategy_meets_the_same_day_with_the_same_luck() -> None:
    day = Day(7, 500, outages(0.25), length_s=6 * _HOUR_S)
    assert list(day.traffic()) == list(day.traffic())
    one, other = (Run(day, oracle).play(day.traffic()) for _ in range(2))
    assert one == other


def test_what_the_simulation_excludes_is_said_by_the_rules() -> None:
    day = Day(1, 200, ())
    run = Run(day, ours)
    charge = next(item for item in day.traffic() if item.facts.scheme == "visa")
    decision = run.chooser.choose(charge.facts)
    assert ("ember", Exclusion.SCHEME) in decision.excluded
