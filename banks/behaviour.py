"""How a bank behaves, and misbehaves. Settable at any moment, and reproducible.

Chance depends on the seed, the request's reference and how often it came, never on the order in
which requests of many connections arrive: the same traffic with the same seed has the same fate.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from statistics import NormalDist
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, with_config

from banks.model import Asked, Operation

DOCUMENT = with_config(ConfigDict(extra="forbid", allow_inf_nan=False))

Share = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(ge=0, le=3_600_000)]


class Spread(StrEnum):
    CONSTANT = "constant"
    LOGNORMAL = "lognormal"


@DOCUMENT
@dataclass(frozen=True, slots=True)
class Latency:
    """How long the bank thinks."""

    spread: Spread = Spread.CONSTANT
    median_ms: Milliseconds = 0.0
    # Of the logarithm: 0.5 puts the 99th percentile at 3.2 times the median.
    sigma: Annotated[float, Field(ge=0, le=5)] = 0.5
    # This share of requests takes `tail_ms` more.
    tail_share: Share = 0.0
    tail_ms: Milliseconds = 0.0


class Action(StrEnum):
    """What the bank does with a request that a rule matches."""

    # Refuses it, with the rule's code.
    DECLINE = "decline"
    # Does it, as if no rule had matched: an exception to the rules after it.
    APPROVE = "approve"
    # Does it and says nothing.
    SILENT = "silent"
    # Neither does it nor answers, ever.
    LOSE = "lose"
    # Does it now and answers after `after_ms`.
    LATE = "late"
    # Does it after `after_ms`, and answers then.
    DELAY = "delay"
    # Answers twice, the second time after `after_ms`.
    DUPLICATE = "duplicate"
    # Does it and hangs up in the middle of the answer.
    DISCONNECT = "disconnect"
    # Hangs up without doing it.
    HANG_UP = "hang_up"
    # Does it, and answers with a wrong MAC or signature.
    FORGE = "forge"
    # Does it, and answers bytes that are no message.
    GARBLE = "garble"
    # Does it, and answers with another amount.
    LIE = "lie"
    # Takes it and works on it: PENDING now, the outcome after `after_ms` (asynchronous tongues).
    PEND = "pend"


@DOCUMENT
@dataclass(frozen=True, slots=True)
class Rule:
    """The first rule that matches, and whose chance comes, decides. Empty fields match all."""

    action: Action
    # Of DECLINE: the tongue's code.
    code: str = ""
    after_ms: Milliseconds = 0.0
    probability: Share = 1.0
    # How many requests it may take; afterwards it is spent.
    times: Annotated[int, Field(ge=0)] | None = None
    operations: tuple[Operation, ...] = ()
    reference: str = ""
    # Beginning of the card's or account's number.
    instrument: str = ""
    amount_min: int | None = None
    amount_max: int | None = None
    # Amounts whose last digits are these: "951" matches 12.951 and 9.51, as test hosts do it.
    amount_ends: str = ""
    currency: str = ""
    # Only the nth arrival of a reference (1 is the first): repeats behave otherwise.
    arrival: Annotated[int, Field(ge=1)] | None = None

    def matches(self, asked: Asked, arrival: int) -> bool:
        return (
            (not self.operations or asked.operation in self.operations)
            and (not self.reference or asked.reference == self.reference)
            and asked.instrument.startswith(self.instrument)
            and (self.amount_min is None or asked.amount >= self.amount_min)
            and (self.amount_max is None or asked.amount <= self.amount_max)
            and (not self.amount_ends or str(asked.amount).endswith(self.amount_ends))
            and (not self.currency or asked.currency == self.currency)
            and (self.arrival is None or arrival == self.arrival)
        )


class Closed(StrEnum):
    """What a bank under maintenance does."""

    # Answers that it is closed.
    REFUSE = "refuse"
    # Does not answer.
    SILENT = "silent"
    # Hangs up, and accepts no connection.
    HANG_UP = "hang_up"


@DOCUMENT
@dataclass(frozen=True, slots=True)
class Window:
    """A time of maintenance."""

    begins: datetime
    ends: datetime
    closed: Closed = Closed.REFUSE


@DOCUMENT
@dataclass(frozen=True, slots=True)
class Behaviour:
    """All knobs of a bank; the control API replaces it as a whole."""

    latency: Latency = Latency()
    rules: tuple[Rule, ...] = ()
    maintenance: tuple[Window, ...] = ()
    # Closed now, whatever the windows say.
    closed: Closed | None = None
    # Answers to VOIDs of what never came: done (and it will be refused should it come), or 25.
    void_absent_approved: bool = True
    # The bank's day; empty: by its clock, zone and cut-off.
    day: str = ""
    # What each instrument has; a request for more is refused. None: enough.
    funds: int | None = None
    seed: int = 0


BEHAVIOUR: TypeAdapter[Behaviour] = TypeAdapter(Behaviour)


def chance(seed: int, reference: str, arrival: int, purpose: str) -> float:
    """A number in (0, 1), the same for the same request of the same run."""
    text = f"{seed}\n{reference}\n{arrival}\n{purpose}".encode()
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2**64


def thinking_s(latency: Latency, seed: int, reference: str, arrival: int) -> float:
    time_ms = latency.median_ms
    if latency.spread is Spread.LOGNORMAL and time_ms:
        normal = NormalDist().inv_cdf(
            min(max(chance(seed, reference, arrival, "latency"), 1e-12), 1 - 1e-12)
        )
        time_ms *= math.exp(latency.sigma * normal)
    if latency.tail_share and chance(seed, reference, arrival, "tail") < latency.tail_share:
        time_ms += latency.tail_ms
    return time_ms / 1000


def choose(behaviour: Behaviour, asked: Asked, arrival: int, used: list[int]) -> int | None:
    """Which rule decides, by its number. `used` counts how many requests each has taken."""
    for number, rule in enumerate(behaviour.rules):
        if rule.times is not None and used[number] >= rule.times:
            continue
        if not rule.matches(asked, arrival):
            continue
        if rule.probability < 1.0:
            drawn = chance(behaviour.seed, asked.reference, arrival, f"rule {number}")
            if drawn >= rule.probability:
                continue
        return number
    return None


def closed_at(behaviour: Behaviour, now: datetime) -> Closed | None:
    if behaviour.closed is not None:
        return behaviour.closed
    for window in behaviour.maintenance:
        if _utc(window.begins) <= now < _utc(window.ends):
            return window.closed
    return None


def _utc(time: datetime) -> datetime:
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
