"""What a choice is made of, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from router.policies.channels import InstrumentKind, Taking


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a charge or payout before anybody is asked. No digit of a card is here."""

    # The charge or payout; what is drawn by chance is drawn from it, so a replay draws the same.
    owner_id: str
    amount: int
    currency: str
    # The database's clock.
    at_ms: int
    merchant: str = ""
    taking: Taking = Taking.CHARGE
    instrument: InstrumentKind = InstrumentKind.CARD
    # Of a card; else empty.
    scheme: str = ""
    # That issued the instrument; empty: not known.
    bank: str = ""
    # A channel that the merchant demands, and no other will do; empty: any.
    must_use: str = ""


class Exclusion(StrEnum):
    """Why a channel was not among those to choose from; the first that holds."""

    BLOCKED = "BLOCKED"
    TAKING = "TAKING"
    INSTRUMENT = "INSTRUMENT"
    SCHEME = "SCHEME"
    CURRENCY = "CURRENCY"
    UNPRICED = "UNPRICED"
    MUST_USE = "MUST_USE"
    BANK = "BANK"
    MERCHANT = "MERCHANT"
    AMOUNT_LOW = "AMOUNT_LOW"
    AMOUNT_HIGH = "AMOUNT_HIGH"
    CLOSED_NOW = "CLOSED_NOW"
    QUOTA_MINUTE = "QUOTA_MINUTE"
    QUOTA_DAY = "QUOTA_DAY"
    QUOTA_AMOUNT = "QUOTA_AMOUNT"
    BREAKER_OPEN = "BREAKER_OPEN"
    # `channels_max` others look better.
    NOT_DRAWN = "NOT_DRAWN"


class Evidence(StrEnum):
    """What an answer says of its channel."""

    GOOD = "good"
    BAD = "bad"
    # It says something of the customer alone, or nothing yet.
    NONE = "none"


class Level(StrEnum):
    """The finest key that anything was observed of."""

    BAND = "band"
    SCHEME = "scheme"
    CHANNEL = "channel"
    PRIOR = "prior"


class Standing(NamedTuple):
    """What is believed of a channel's success for such a charge: a Beta distribution, by the normal
    distribution of its logit."""

    # Mean and standard deviation of the logit.
    location: float
    spread: float
    alpha: float
    beta: float
    latency_ms: float
    # Observations, discounted, of this very key.
    weight: float
    level: Level


class Usage(NamedTuple):
    """How much a channel has had, in its own day and month; amounts in the charge's currency."""

    minute: int = 0
    day: int = 0
    day_amount: int = 0
    month_amount: int = 0


UNUSED = Usage()


def _no_usages() -> Mapping[str, Usage]:
    return {}


class ReadsUsage(Protocol):
    """A mapping, or what works out each one when it is asked for it."""

    def get(self, channel: str, default: Usage, /) -> Usage: ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known of the channels at the moment of a choice. The most promising come first."""

    standings: Mapping[str, Standing]
    usages: ReadsUsage = field(default_factory=_no_usages)
    # Those whose breakers are open.
    away: frozenset[str] = frozenset()


class Scored(NamedTuple):
    channel: str
    # A success rate that may be, as likely as is believed.
    drawn: float
    # For an approval, and for the request alone.
    fee: int
    attempt_fee: int
    # Which of the fee table's tiers.
    tier: int
    # For a commitment that lags, and by an operator's preference.
    bonus: float
    # What asking it is worth, in minor units.
    utility: float


class Excluded(NamedTuple):
    channel: str
    reason: Exclusion


@dataclass(frozen=True, slots=True)
class Decision:
    """The channels in the order in which they are to be asked: the next one only after a clean
    failure of the one before (Verdict.FAILED)."""

    facts: Facts
    # Names what was in force: the cell, `Terms.digest`, and the highest revision in it.
    cell: str
    policy: str
    revision: int
    ranked: tuple[Scored, ...]
    excluded: tuple[Excluded, ...]
    # Of those that were looked at, in that order: what replaying it takes.
    snapshot: Snapshot

    @property
    def order(self) -> tuple[str, ...]:
        return tuple(item.channel for item in self.ranked)
