"""From what was observed to what is believed, and a draw from it.

Thompson sampling with discounted Beta posteriors: V. Raj and S. Kalyani, "Taming Non-stationary
Bandits: A Bayesian Approach" (2017, arXiv:1707.09727). Every channel's observations fade with time,
whether it is asked or not, so a channel that was left alone becomes uncertain again, is drawn high
now and then, and is found when it has healed. Three things are ours: observations also fade as
others come (`weight_max`); what they fade to is no flat prior but what is usual, taken from coarser
keys where a finer one knows little; and what is usual hardly learns from an outage (`trust`), for a
channel that is thought to be usually dead would not be found again.
"""

from __future__ import annotations

import hashlib
from math import exp, log, sqrt
from statistics import NormalDist
from typing import NamedTuple

from cells.choice.model import Level, Standing
from router.policies.channels import ChoicePolicy

_NORMAL = NormalDist()
_MASK = (1 << 64) - 1
# Rates nearer to 0 or 1 than this are as good as certain.
_RATE_MIN = 1e-4
_LN_2 = log(2)
# What is less likely than this is 0; exp of much more overflows.
_LOGIT_MAX = 500.0
# Lately this much worse than usual, what is seen is an outage …
OUTAGE_DROP = 0.3
# … as soon as it outweighs so many observations of the usual, …
OUTAGE_WEIGHT = 2
# … and then an observation weighs so much in what is usual: who stays bad is learnt in days.
OUTAGE_TRUST = 0.02


class Seen(NamedTuple):
    """Observations of a key as they weigh now: lately, and usually."""

    good: float = 0.0
    bad: float = 0.0
    usual_good: float = 0.0
    usual_bad: float = 0.0
    # Of `good` and `bad` together, each times its weight.
    latency_ms: float = 0.0


NOTHING = Seen()


def faded(seen: Seen, elapsed_s: float, choice: ChoicePolicy) -> Seen:
    """After a time without an observation."""
    if elapsed_s <= 0:
        return seen
    now = exp(-_LN_2 * elapsed_s / choice.half_life_s)
    usual = exp(-_LN_2 * elapsed_s / choice.usual_half_life_s)
    return Seen(
        seen.good * now, seen.bad * now, seen.usual_good * usual, seen.usual_bad * usual,
        seen.latency_ms * now,
    )  # fmt: skip


def added(seen: Seen, good: int, bad: int, latency_ms: float, choice: ChoicePolicy) -> Seen:
    """With more observations: `good` and `bad` of them, which took `latency_ms` in all."""
    now = min(1.0, choice.weight_max / (seen.good + seen.bad + good + bad))
    trusted = trust(seen, good, bad, choice)
    usual_good = seen.usual_good + trusted * good
    usual_bad = seen.usual_bad + trusted * bad
    usual = min(1.0, choice.usual_weight_max / (usual_good + usual_bad))
    return Seen(
        (seen.good + good) * now, (seen.bad + bad) * now,
        usual_good * usual, usual_bad * usual,
        (seen.latency_ms + latency_ms) * now,
    )  # fmt: skip


def trust(seen: Seen, good: int, bad: int, choice: ChoicePolicy) -> float:
    """How much more observations say of what is usual."""
    prior = choice.prior_rate * choice.prior_weight
    usual = (seen.usual_good + prior) / (seen.usual_good + seen.usual_bad + choice.prior_weight)
    count = seen.good + seen.bad + good + bad
    lately = (usual * OUTAGE_WEIGHT + seen.good + good) / (OUTAGE_WEIGHT + count)
    return OUTAGE_TRUST if lately < usual - OUTAGE_DROP else 1.0


def standing(channel: Seen, scheme: Seen, band: Seen, choice: ChoicePolicy) -> Standing:
    """What is believed of the finest key, with what is known of those around it.

    What is usual of a key is what it has seen, and `fallback_weight` observations of its parent's.
    That it is otherwise now is told from parent to child as a shift of the logit, so a bank that
    is down is down for all its keys before each of them has found out.
    """
    weight, usual, shift = choice.prior_weight, choice.prior_rate, 0.0
    latency = choice.prior_latency_ms
    expected = usual
    for seen in (channel, scheme, band):
        usual_count = seen.usual_good + seen.usual_bad
        usual = (usual * weight + seen.usual_good) / (weight + usual_count)
        weight = choice.fallback_weight
        usual_logit = _logit(usual)
        expected = 1 / (1 + exp(-usual_logit - shift))
        count = seen.good + seen.bad
        rate = (expected * weight + seen.good) / (weight + count)
        shift = _logit(rate) - usual_logit
        latency = (latency * weight + seen.latency_ms) / (weight + count)
    alpha = expected * weight + band.good
    beta = (1 - expected) * weight + band.bad
    return believing(alpha, beta, latency, band.good + band.bad, _level(channel, scheme, band))


def believing(
    alpha: float, beta: float, latency_ms: float, weight: float, level: Level
) -> Standing:
    """In round figures, so that what a decision writes down is what it was made from."""
    alpha, beta = max(round(alpha, 3), 0.001), max(round(beta, 3), 0.001)
    return Standing(
        digamma(alpha) - digamma(beta), sqrt(trigamma(alpha) + trigamma(beta)),
        alpha, beta, round(latency_ms, 1), round(weight, 1), level,
    )  # fmt: skip


def certain(rate: float, latency_ms: float) -> Standing:
    """Of one who knows."""
    rate = min(max(rate, _RATE_MIN), 1 - _RATE_MIN)
    return Standing(_logit(rate), 0.0, rate, 1 - rate, latency_ms, 0.0, Level.BAND)


def _level(channel: Seen, scheme: Seen, band: Seen) -> Level:
    for level, seen in ((Level.BAND, band), (Level.SCHEME, scheme), (Level.CHANNEL, channel)):
        if seen.usual_good + seen.usual_bad >= 1:
            return level
    return Level.PRIOR


def _logit(rate: float) -> float:
    rate = min(max(rate, _RATE_MIN), 1 - _RATE_MIN)
    return log(rate / (1 - rate))


def digamma(x: float) -> float:
    """Of x > 0: recurrence up to 6, then the asymptotic series (Abramowitz and Stegun 6.3.18)."""
    below = 0.0
    while x < 6:
        below += 1 / x
        x += 1
    square = 1 / (x * x)
    series = square * (1 / 12 - square * (1 / 120 - square / 252))
    return log(x) - 0.5 / x - series - below


def trigamma(x: float) -> float:
    """Of x > 0 (Abramowitz and Stegun 6.4.12)."""
    below = 0.0
    while x < 6:
        below += 1 / (x * x)
        x += 1
    square = 1 / (x * x)
    return below + 1 / x + square / 2 + square / x * (1 / 6 - square * (1 / 30 - square / 42))


def key_of(text: str) -> int:
    """64 bits that stand for a name in draws."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")


def uniform(owner: int, channel: int) -> float:
    """A number in (0, 1) for a charge and a channel: MurmurHash3's 64-bit finaliser of both keys.

    By names and not by position: the same charge draws the same for the same channel, whoever else
    is there.
    """
    x = owner ^ channel
    x = (x ^ (x >> 33)) * 0xFF51AFD7ED558CCD & _MASK
    x = (x ^ (x >> 33)) * 0xC4CEB9FE1A85EC53 & _MASK
    return ((x ^ (x >> 33)) >> 12) / 4503599627370496 + 1.1102230246251565e-16


def drawn(believed: Standing, chance: float) -> float:
    """A success rate, as likely as is believed: the logit of a Beta variate is close to normal."""
    logit = believed.location
    if believed.spread:
        logit += believed.spread * _NORMAL.inv_cdf(chance)
    return 1 / (1 + exp(min(-logit, _LOGIT_MAX)))


def promise(believed: Standing) -> float:
    """A rate that is not likely to be exceeded: the uncertain are not to be overlooked."""
    return 1 / (1 + exp(min(-believed.location - 2 * believed.spread, _LOGIT_MAX)))
