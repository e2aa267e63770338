"""The documents that choose among channels: one a channel (`channels`), and how they are weighed
(`choice`).

Amounts are minor units of the currency beside them. Rates are parts per million: a basis point is
100 of them. `zone` is where a channel's day and month begin and its hours are read.
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, with_config

_DOCUMENT = with_config(ConfigDict(extra="forbid", allow_inf_nan=False))

# `channel:` before it names its breaker.
CHANNEL_PATTERN = r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?"
AMOUNT_MAX = 10**15


@cache
def zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones())


def _known_zone(name: str) -> str:
    if name not in zones():
        raise ValueError("is no time zone of the IANA database")
    return name


ChannelName = Annotated[str, Field(pattern=f"^{CHANNEL_PATTERN}$")]
CellNames = Annotated[
    tuple[Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$")], ...],
    Field(max_length=256),
]
Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
Scheme = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
Bank = Annotated[str, Field(min_length=1, max_length=64)]
Merchant = Annotated[str, Field(min_length=1, max_length=128)]
Zone = Annotated[str, Field(max_length=64), AfterValidator(_known_zone)]
Clock = Annotated[str, Field(pattern=r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$")]
Weekday = Annotated[int, Field(ge=1, le=7)]
Amount = Annotated[int, Field(ge=0, le=AMOUNT_MAX, strict=True)]
Ppm = Annotated[int, Field(ge=0, le=1_000_000, strict=True)]
Quota = Annotated[int, Field(ge=0, le=1_000_000_000, strict=True)]


class Taking(StrEnum):
    """What a channel may be chosen for."""

    CHARGE = "charge"
    PAYOUT = "payout"


class InstrumentKind(StrEnum):
    CARD = "card"
    BANK_ACCOUNT = "bank_account"


class Rounding(StrEnum):
    """How a rate's fraction of a minor unit ends. Half even is the accountants'."""

    HALF_EVEN = "half_even"
    HALF_UP = "half_up"
    UP = "up"
    DOWN = "down"


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Band:
    """Amounts that a channel takes, both ends included."""

    minimum: Amount = 0
    maximum: Amount = AMOUNT_MAX


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Only:
    """Nobody is left out but those of `never`; with `only`, everyone but those."""

    only: Annotated[tuple[str, ...], Field(max_length=1024)] = ()
    never: Annotated[tuple[str, ...], Field(max_length=1024)] = ()


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Banks:
    """By the bank that issued the instrument."""

    only: Annotated[tuple[Bank, ...], Field(max_length=1024)] = ()
    never: Annotated[tuple[Bank, ...], Field(max_length=1024)] = ()
    # Of these, instruments go to the channels that say so and to no other.
    must: Annotated[tuple[Bank, ...], Field(max_length=1024)] = ()


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Hours:
    """From a time of day to another, in the channel's zone; past midnight when it ends earlier."""

    # 1 is Monday. Of a span past midnight, the day that it begins on.
    days: Annotated[tuple[Weekday, ...], Field(max_length=7)] = (1, 2, 3, 4, 5, 6, 7)
    begin: Clock = "00:00"
    end: Clock = "24:00"


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Tier:
    """What a charge costs while the month's volume is at least `from_volume`."""

    from_volume: Amount = 0
    fixed: Amount = 0
    rate_ppm: Ppm = 0
    minimum: Amount = 0
    maximum: Amount = AMOUNT_MAX


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Fees:
    """A table for a currency, and for some schemes or all. The first that fits is the one."""

    currency: Currency
    tiers: Annotated[tuple[Tier, ...], Field(max_length=32)]
    schemes: Annotated[tuple[Scheme, ...], Field(max_length=64)] = ()
    rounding: Rounding = Rounding.HALF_UP
    # The bank promises that more volume never costs more: checked.
    falling: bool = False
    # For each request, however it ends.
    attempt: Amount = 0


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Quotas:
    """What the bank takes at the most, from one cell. Absent: any number."""

    per_minute: Quota | None = None
    per_day: Quota | None = None
    amount_per_day: Annotated[Mapping[Currency, Amount], Field(max_length=64)] = field(
        default_factory=dict
    )


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Commitment:
    """A volume promised to the bank for each month; what is missing costs `shortfall_ppm` of it."""

    currency: Currency
    month_minimum: Annotated[int, Field(ge=1, le=AMOUNT_MAX, strict=True)]
    shortfall_ppm: Ppm


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class ChannelPolicy:
    """One channel: what it may be chosen for, and what it costs."""

    channel: ChannelName
    # Currency → the amounts that it takes. It takes no other currency.
    amounts: Annotated[Mapping[Currency, Band], Field(max_length=64)]
    fees: Annotated[tuple[Fees, ...], Field(max_length=64)]
    cells: CellNames = ()
    # Out of the choice, whatever else stands here.
    blocked: bool = False
    taking: tuple[Taking, ...] = (Taking.CHARGE,)
    instruments: tuple[InstrumentKind, ...] = (InstrumentKind.CARD,)
    # Of cards; empty: all.
    schemes: Annotated[tuple[Scheme, ...], Field(max_length=64)] = ()
    banks: Banks = field(default_factory=Banks)
    merchants: Only = field(default_factory=Only)
    zone: Zone = "UTC"
    # Open in any of them; empty: always.
    hours: Annotated[tuple[Hours, ...], Field(max_length=32)] = ()
    quotas: Quotas = field(default_factory=Quotas)
    commitments: Annotated[tuple[Commitment, ...], Field(max_length=64)] = ()
    # An operator's hand on the scale: of the amount, above zero for and below zero against it.
    preference_ppm: Annotated[int, Field(ge=-1_000_000, le=1_000_000, strict=True)] = 0


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class ChoicePolicy:
    """How channels are weighed against each other. The defaults are the simulated day's."""

    cells: CellNames = ()
    # What an approval is worth, of its amount: what a declined customer costs.
    approval_ppm: Ppm = 60_000
    # What a second of waiting costs, of the amount.
    delay_ppm_per_s: Ppm = 500
    # Currency → upper ends of the amount bands that success is counted by, rising.
    bands: Annotated[
        Mapping[Currency, Annotated[tuple[Amount, ...], Field(max_length=8)]], Field(max_length=64)
    ] = field(default_factory=dict)
    # An observation weighs half after so long, in what a channel does now …
    half_life_s: Annotated[float, Field(ge=1, le=86_400)] = 1200.0
    # … and in what it usually does, which the former falls back to.
    usual_half_life_s: Annotated[float, Field(ge=60, le=30 * 86_400)] = 2 * 86_400.0
    # Observations that either may weigh in all: fewer forget sooner under much traffic.
    weight_max: Annotated[int, Field(ge=10, le=100_000)] = 150
    usual_weight_max: Annotated[int, Field(ge=10, le=1_000_000)] = 5000
    # How many observations a coarser key is worth to a finer one.
    fallback_weight: Annotated[float, Field(gt=0, le=1000)] = 20.0
    # Of a channel that nothing is known of: which success, and how sure that is.
    prior_rate: Annotated[float, Field(gt=0, lt=1)] = 0.9
    prior_weight: Annotated[float, Field(gt=0, le=1000)] = 10.0
    prior_latency_ms: Annotated[float, Field(ge=0, le=600_000)] = 500.0
    # Channels that one decision draws for, and so the longest order of them.
    channels_max: Annotated[int, Field(ge=1, le=100)] = 8
