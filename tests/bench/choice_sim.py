"""A day of traffic with outages, under five ways to choose a bank → bench/results/choice_day.json
and docs/choice-day.{png,svg}.

    ours          the rules, statistics and breakers of cells/choice, from nothing known at midnight
    oracle        the same rules, told what is true at each moment
    best-single   the one bank that would have earned most over the day, known in hindsight; no
                  second one is asked
    round-robin   each in turn, then the next
    cost-only     the cheapest first, then the next
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count

import structlog

from cells.breakers.board import Board
from cells.channels.model import Verdict
from cells.choice.beliefs import certain
from cells.choice.chooser import Chooser
from cells.choice.fees import PPM, fee, tier_of
from cells.choice.model import Snapshot, Usage
from cells.choice.rules import decide, exclusion
from cells.choice.terms import make_terms
from router.policies.model import Breakers, Forced, dependency_of_channel
from tests.bench.choice_day import CURRENCY, CUSTOMER_DECLINES, Charge, Day, outages
from tests.bench.choice_plot import draw
from tests.bench.figures import RESULTS, Figures

ATTEMPTS_MAX = 3
_REFRESH_S = 15.0
_SLICES = 96


@dataclass
class Slice:
    """A quarter of an hour."""

    charges: int = 0
    approved: int = 0


@dataclass
class Outcome:
    charges: int = 0
    approved: int = 0
    unknown: int = 0
    volume: int = 0
    cost: int = 0
    latency_ms: float = 0.0
    utility: float = 0.0
    slices: list[Slice] = field(default_factory=lambda: [Slice() for _ in range(_SLICES)])
    # Channel → slice → charges that it was asked for first.
    first: dict[str, list[int]] = field(default_factory=dict)

    @property
    def approval_rate(self) -> float:
        return self.approved / self.charges

    @property
    def cost_ppm(self) -> float:
        """Of the approved volume."""
        return self.cost * PPM / self.volume if self.volume else 0.0


Strategy = Callable[["Run", Charge], Iterable[str]]


class Run:
    """One strategy through one day."""

    def __init__(self, day: Day, strategy: Strategy) -> None:
        self.day = day
        self._strategy = strategy
        self.now_s = 0.0
        board = Board(lambda: self.now_s)
        self.chooser = Chooser(board, lambda: self.now_s)
        self.chooser.use(make_terms(day.documents, {}))
        if strategy is not ours:
            # Breakers are a part of ours.
            board.apply(
                [
                    Breakers(dependency_of_channel(bank.policy.channel), force=Forced.CLOSED)
                    for bank in day.banks
                ]
            )
        self.turn = count()
        self.outcome = Outcome()

    def play(self, traffic: Iterable[Charge]) -> Outcome:
        started = False
        refreshed_s = 0.0
        for charge in traffic:
            self.now_s = charge.at_s
            if not started:
                started = True
                for channel, volume in self.day.month_volumes.items():
                    at_ms = charge.facts.at_ms
                    self.chooser.statistics.settle(channel, CURRENCY, volume, at_ms)
            if self.now_s - refreshed_s >= _REFRESH_S:
                refreshed_s = self.now_s
                self.chooser.refresh()
            self._charge(charge)
        return self.outcome

    def _charge(self, charge: Charge) -> None:
        found, facts = self.outcome, charge.facts
        piece = min(int(charge.at_s / self.day.length_s * _SLICES), _SLICES - 1)
        found.charges += 1
        found.slices[piece].charges += 1
        candidates = self.chooser.terms.field_of(facts).candidates
        tried = 0
        for channel in self._strategy(self, charge):
            if tried == ATTEMPTS_MAX:
                break
            usage = self.usage(channel, charge)
            if not self.chooser.take(facts, channel):
                continue
            if not tried:
                found.first.setdefault(channel, [0] * _SLICES)[piece] += 1
            tried += 1
            answer, latency_ms = self.day.answer(charge, channel)
            self.chooser.note(facts, channel, answer, latency_ms)
            table = candidates[channel].fees
            found.cost += table.attempt
            found.latency_ms += latency_ms
            if answer.verdict is Verdict.APPROVED:
                tier = tier_of(candidates[channel].from_volumes, usage.month_amount)
                found.cost += fee(table, tier, facts.amount)
                found.approved += 1
                found.slices[piece].approved += 1
                found.volume += facts.amount
            found.unknown += answer.verdict is Verdict.UNKNOWN
            if answer.verdict is not Verdict.FAILED:
                break

    def usage(self, channel: str, charge: Charge) -> Usage:
        return self.chooser.statistics.usage(channel, CURRENCY, charge.facts.at_ms)

    def eligible(self, charge: Charge) -> list[str]:
        candidates = self.chooser.terms.field_of(charge.facts).candidates
        return [
            name
            for name, candidate in candidates.items()
            if exclusion(candidate, charge.facts, self.usage(name, charge), False) is None
        ]


def ours(run: Run, charge: Charge) -> Iterable[str]:
    return run.chooser.choose(charge.facts).order


def oracle(run: Run, charge: Charge) -> Iterable[str]:
    facts, chooser = charge.facts, run.chooser
    candidates = chooser.terms.field_of(facts).candidates
    standings = {}
    for name in candidates:
        odds = run.day.odds(name, facts.scheme, facts.amount, charge.at_s)
        standings[name] = certain(odds.approved * (1 - CUSTOMER_DECLINES), odds.latency_ms)
    usages = {name: run.usage(name, charge) for name in candidates}
    return decide(facts, chooser.terms, Snapshot(standings, usages)).order


def round_robin(run: Run, charge: Charge) -> Iterable[str]:
    eligible = run.eligible(charge)
    begin = next(run.turn) % len(eligible) if eligible else 0
    return eligible[begin:] + eligible[:begin]


def cost_only(run: Run, charge: Charge) -> Iterable[str]:
    candidates = run.chooser.terms.field_of(charge.facts).candidates

    def cost(name: str) -> int:
        candidate = candidates[name]
        tier = tier_of(candidate.from_volumes, run.usage(name, charge).month_amount)
        return fee(candidate.fees, tier, charge.facts.amount) + candidate.fees.attempt

    return sorted(run.eligible(charge), key=lambda name: (cost(name), name))


def single(channel: str) -> Strategy:
    def only(run: Run, charge: Charge) -> Iterable[str]:
        return [channel] if channel in run.eligible(charge) else []

    return only


def worth(outcome: Outcome, day: Day) -> float:
    """What a day came to, by the measure that ours and the oracle go by."""
    choice = make_terms(day.documents, {}).choice
    return outcome.volume * choice.approval_ppm / PPM - outcome.cost


def play(day: Day, strategies: Mapping[str, Strategy]) -> dict[str, Outcome]:
    traffic = list(day.traffic())
    return {name: Run(day, strategy).play(traffic) for name, strategy in strategies.items()}


BASELINES: Mapping[str, Strategy] = {
    "oracle": oracle,
    "round-robin": round_robin,
    "cost-only": cost_only,
}


def play_all(day: Day) -> dict[str, Outcome]:
    """With the best of the single banks, by what the day came to with it."""
    singles = {bank.policy.channel: single(bank.policy.channel) for bank in day.banks}
    alone = play(day, singles)
    best = max(alone, key=lambda name: worth(alone[name], day))
    return {**play(day, {"ours": ours, **BASELINES}), "best-single": alone[best]}


def report(figures: Figures, days: Iterable[Mapping[str, Outcome]]) -> Mapping[str, Outcome]:
    """The last day, for the plot."""
    runs: dict[str, list[Outcome]] = {}
    for number, played in enumerate(days):
        for name, outcome in played.items():
            runs.setdefault(name, []).append(outcome)
        print(f"  day {number} is over", flush=True)
    for name, found in runs.items():
        label = name.replace("-", "_")
        figures.add(f"approval_percent_{label}", "%", [100 * item.approval_rate for item in found])
        figures.add(f"cost_ppm_{label}", "ppm", [item.cost_ppm for item in found])
        figures.add(
            f"latency_mean_ms_{label}", "ms", [item.latency_ms / item.charges for item in found]
        )
    pairs = list(zip(runs["ours"], runs["oracle"], strict=True))
    approvals = [100 * one.approval_rate / other.approval_rate for one, other in pairs]
    costs = [100 * one.cost_ppm / other.cost_ppm for one, other in pairs]
    figures.add("choice_approval_vs_oracle", "%", approvals, min(approvals))
    figures.add("choice_cost_vs_oracle", "%", costs, max(costs))
    return {name: found[-1] for name, found in runs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.choice_sim")
    # The defaults of ChoicePolicy were chosen on the days of seeds 0 and 1.
    parser.add_argument("--first-seed", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--charges", type=int, default=100_000, help="Of a day.")
    parser.add_argument("--no-plot", action="store_true")
    given = parser.parse_args()
    # A breaker's story is in the plot.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    figures = Figures()
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    figures.notes = {"seeds": list(seeds), "charges_a_day": given.charges}
    days = (play_all(Day(seed, given.charges, outages())) for seed in seeds)
    last = report(figures, days)
    figures.write(RESULTS / "choice_day.json")
    if not given.no_plot:
        draw(last, outages())


if __name__ == "__main__":
    main()
