"""A day of charges, and banks that are unlike, fail and heal: what really happens, by the seed.

Every strategy meets the same day: the same charges, and for each charge and bank the same luck, so
what differs between two strategies is their choice alone (common random numbers).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from math import exp, pi, sin
from typing import NamedTuple

from cells.channels.model import Answer, AnswerReason, Verdict
from cells.choice.model import Facts
from router.ids import Kind, derive
from router.policies.channels import (
    Band,
    ChannelPolicy,
    ChoicePolicy,
    Commitment,
    Fees,
    Only,
    Quotas,
    Tier,
)

DAY_S = 86_400
CURRENCY = "USD"
BAND_ENDS = (2_000, 20_000)
SCHEMES = ("visa", "mastercard", "unionpay")
_SCHEME_WEIGHTS = (5, 3, 2)
# Wednesday 2026-07-15, midnight: half a month's volume is behind.
MIDNIGHT_MS = 1_784_073_600_000
# Refused wherever it goes: no money on the account.
CUSTOMER_DECLINES = 0.03
_DRIFT = 0.015


class Trouble(StrEnum):
    # It refuses connections.
    HARD = "hard"
    # Its link to one scheme is broken; the others go on.
    PARTIAL = "partial"
    # It answers late, and often too late.
    SLOW = "slow"


@dataclass(frozen=True)
class Outage:
    channel: str
    trouble: Trouble
    begin_s: int
    end_s: int
    schemes: tuple[str, ...] = SCHEMES


class Odds(NamedTuple):
    """What happens to a request at a moment; what is left is a refusal by the bank."""

    approved: float
    failed: float
    unknown: float
    latency_ms: float


@dataclass(frozen=True)
class Bank:
    policy: ChannelPolicy
    # Of a sound request, by scheme; and what each amount band adds.
    approves: Mapping[str, float]
    by_band: tuple[float, float, float]
    latency_ms: float
    failed: float = 0.015
    unknown: float = 0.005


class Charge(NamedTuple):
    at_s: float
    facts: Facts
    # Of the customer, and for each bank.
    customer_luck: float
    luck: Mapping[str, float]


def _policy(
    name: str,
    rate_ppm: int,
    fixed: int,
    schemes: tuple[str, ...] = (),
    quotas: Quotas | None = None,
    commitments: tuple[Commitment, ...] = (),
    second_tier: Tier | None = None,
    merchants: Only | None = None,
) -> ChannelPolicy:
    tiers = (Tier(0, fixed, rate_ppm, minimum=fixed),) + ((second_tier,) if second_tier else ())
    return ChannelPolicy(
        name,
        {CURRENCY: Band(50, 500_000)},
        (Fees(CURRENCY, tiers, falling=True, attempt=1),),
        schemes=schemes,
        quotas=quotas or Quotas(),
        commitments=commitments,
        merchants=merchants or Only(),
    )


def _rates(visa: float, mastercard: float, unionpay: float) -> Mapping[str, float]:
    return dict(zip(SCHEMES, (visa, mastercard, unionpay), strict=True))


BANKS: tuple[Bank, ...] = (
    # Dear and good, cheaper past a volume that it reaches in the afternoon.
    Bank(
        _policy("alpine", 26_000, 25, second_tier=Tier(1_200_000_000, 20, 24_000, 20)),
        _rates(0.95, 0.94, 0.90), (0.0, 0.0, -0.01), 420,
    ),
    Bank(_policy("borealis", 22_000, 20), _rates(0.93, 0.88, 0.86), (0.0, 0.01, -0.02), 380),
    # Cheap; poor with large amounts.
    Bank(
        _policy("cobalt", 15_000, 10, quotas=Quotas(per_minute=240)),
        _rates(0.89, 0.87, 0.80), (0.02, 0.0, -0.14), 650,
    ),
    # Its volume is promised, and lags.
    Bank(
        _policy("delta", 20_000, 15, commitments=(Commitment(CURRENCY, 2_400_000_000, 4_000),)),
        _rates(0.90, 0.93, 0.84), (-0.01, 0.01, 0.0), 500,
    ),
    # One scheme's own.
    Bank(
        _policy("ember", 14_000, 10, schemes=("unionpay",)),
        _rates(0.0, 0.0, 0.95), (0.0, 0.0, -0.02), 300,
    ),
    # Cheapest and worst.
    Bank(
        _policy("fjord", 11_000, 5),
        _rates(0.78, 0.75, 0.70), (0.0, -0.02, -0.10), 900, 0.05, 0.02,
    ),
)  # fmt: skip
# What the month brought before today, in minor units.
_MONTH_VOLUMES = {"alpine": 1_198_000_000, "delta": 1_050_000_000}


def outages(scale: float = 1.0) -> tuple[Outage, ...]:
    """`scale`: 1 is a day."""
    hours = 3600 * scale
    return (
        Outage("cobalt", Trouble.HARD, int(3 * hours), int(4.5 * hours)),
        Outage("ember", Trouble.HARD, int(8 * hours), int(9 * hours)),
        Outage("borealis", Trouble.PARTIAL, int(10 * hours), int(12 * hours), ("visa",)),
        Outage("delta", Trouble.SLOW, int(11 * hours), int(13 * hours)),
        Outage("cobalt", Trouble.PARTIAL, int(14 * hours), int(15 * hours), ("mastercard",)),
        Outage("alpine", Trouble.HARD, int(17 * hours), int(17.75 * hours)),
        Outage("cobalt", Trouble.SLOW, int(19 * hours), int(20 * hours)),
    )


@dataclass(frozen=True)
class Day:
    seed: int
    charges: int
    troubles: tuple[Outage, ...]
    length_s: int = DAY_S
    banks: tuple[Bank, ...] = BANKS

    @cached_property
    def documents(self) -> Sequence[ChannelPolicy | ChoicePolicy]:
        choice = ChoicePolicy(bands={CURRENCY: BAND_ENDS})
        return [*(bank.policy for bank in self.banks), choice]

    @cached_property
    def _by_name(self) -> Mapping[str, Bank]:
        return {bank.policy.channel: bank for bank in self.banks}

    @property
    def month_volumes(self) -> Mapping[str, int]:
        return _MONTH_VOLUMES

    def traffic(self) -> Iterator[Charge]:
        """Few at night, a hill at noon and a higher one in the evening."""
        chance = random.Random(self.seed)
        moments = sorted(self._moment(chance) for _ in range(self.charges))
        for number, at_s in enumerate(moments):
            amount = min(max(int(exp(chance.gauss(8.4, 1.2))), 100), 400_000)
            facts = Facts(
                derive(Kind.CHARGE, number % 1024, str(self.seed), str(number)),
                amount,
                CURRENCY,
                MIDNIGHT_MS + int(at_s * 1000),
                f"merchant-{number % 50}",
                scheme=chance.choices(SCHEMES, _SCHEME_WEIGHTS)[0],
            )
            luck = {bank.policy.channel: chance.random() for bank in self.banks}
            yield Charge(at_s, facts, chance.random(), luck)

    def _moment(self, chance: random.Random) -> float:
        while True:
            part = chance.random()
            hour = part * 24
            noon, evening = exp(-(((hour - 12.5) / 2.5) ** 2)), exp(-(((hour - 20) / 2) ** 2))
            if chance.random() < (0.12 + 0.7 * noon + evening) / 1.2:
                return part * self.length_s

    def odds(self, channel: str, scheme: str, amount: int, at_s: float) -> Odds:
        bank = self._by_name[channel]
        band = sum(amount > end for end in BAND_ENDS)
        # Every bank has better and worse hours, each its own.
        wave = sin(2 * pi * (at_s / self.length_s + len(channel) * 0.37 + band * 0.11))
        quality = bank.approves[scheme] + bank.by_band[band] + _DRIFT * wave
        failed, unknown, latency_ms = bank.failed, bank.unknown, bank.latency_ms
        for trouble in self.troubles:
            if trouble.channel != channel or not trouble.begin_s <= at_s < trouble.end_s:
                continue
            match trouble.trouble:
                case Trouble.HARD:
                    failed, unknown, latency_ms = 0.96, 0.04, 50.0
                case Trouble.PARTIAL if scheme in trouble.schemes:
                    failed = 0.75
                case Trouble.SLOW:
                    unknown, latency_ms = 0.40, 7000.0
                case _:
                    pass
        rest = 1 - failed - unknown
        return Odds(max(quality, 0.0) * rest, failed, unknown, latency_ms)

    def answer(self, charge: Charge, channel: str) -> tuple[Answer, float]:
        """What the bank says, and after how long (ms)."""
        odds = self.odds(channel, charge.facts.scheme, charge.facts.amount, charge.at_s)
        luck = charge.luck[channel]
        if luck < odds.failed:
            return Answer(Verdict.FAILED, AnswerReason.CHANNEL_ERROR), odds.latency_ms
        if luck < odds.failed + odds.unknown:
            return Answer(Verdict.UNKNOWN, AnswerReason.TIMED_OUT), 10_000.0
        if charge.customer_luck < CUSTOMER_DECLINES:
            return Answer(Verdict.DECLINED, AnswerReason.INSUFFICIENT_FUNDS), odds.latency_ms
        if luck < odds.failed + odds.unknown + odds.approved:
            return Answer(Verdict.APPROVED), odds.latency_ms
        return Answer(Verdict.DECLINED, AnswerReason.DO_NOT_HONOUR), odds.latency_ms
