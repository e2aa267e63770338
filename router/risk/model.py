"""The documents of risk: rules, lists, and what a decision is made of.

Uploaded by `cellctl risk`, kept in etcd, live in all cells within a second.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Annotated, NamedTuple

from pydantic import ConfigDict, Field, with_config

from router.risk.facts import Value

RULES_MAX = 5000
_DOCUMENT = with_config(ConfigDict(extra="forbid", allow_inf_nan=False))
RuleName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$")]
# Shown to people who are refused nothing, so it is stable and says no secret.
ReasonCode = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{0,62}$")]


class Source(StrEnum):
    """What a decision asks beside its rules; either may be away."""

    FEATURES = "features"
    MODEL = "model"


class Action(StrEnum):
    ALLOW = "allow"
    # A second factor; the request goes on with its proof.
    CHALLENGE = "challenge"
    # A person looks at it first.
    REVIEW = "review"
    DENY = "deny"


# Among rules of the same priority the strictest holds.
STRICTNESS = {Action.ALLOW: 0, Action.CHALLENGE: 1, Action.REVIEW: 2, Action.DENY: 3}


class Mode(StrEnum):
    LIVE = "live"
    # Evaluated and counted, and no more.
    SHADOW = "shadow"
    OFF = "off"


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Case:
    """A unit test beside its rule: facts that are not named have no value (0, empty, false)."""

    facts: dict[str, Value]
    matches: bool
    # What stands in which list, for the sake of this case.
    lists: dict[str, tuple[str, ...]] = field(default_factory=dict)


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Rule:
    name: RuleName
    # CEL over the facts: router/risk/facts.py.
    when: Annotated[str, Field(min_length=1)]
    action: Action
    reason: ReasonCode
    description: Annotated[str, Field(max_length=512)] = ""
    # The highest that matches decides: an `allow` of high priority overrules a `deny`.
    priority: Annotated[int, Field(ge=0, le=1000)] = 100
    mode: Mode = Mode.LIVE
    # A conservative rule: it counts only while one of these is away. Rules that name a feature, or
    # the model's score, do not count while that is away.
    when_without: Annotated[tuple[Source, ...], Field(max_length=2)] = ()
    # Outside of these it does not count; both with an offset from UTC.
    effective_from: datetime | None = None
    effective_until: datetime | None = None
    cases: Annotated[tuple[Case, ...], Field(max_length=64)] = ()


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class FailOpen:
    """What goes on when risk does not answer in time: up to this amount; all else is refused, and
    may be tried again."""

    operation: Annotated[str, Field(pattern=r"^(pay|transfer|withdraw|charge|payout)$")]
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    amount_max: Annotated[int, Field(ge=0, le=2**53)]


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class RuleSet:
    """All rules. A version is the etcd revision that it was written at."""

    rules: Annotated[tuple[Rule, ...], Field(max_length=RULES_MAX)] = ()
    fail_open: Annotated[tuple[FailOpen, ...], Field(max_length=64)] = ()


class Hit(NamedTuple):
    """A rule that matched."""

    rule: str
    action: Action
    reason: str
    shadow: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """What the rules say of one request."""

    action: Action
    # Of the rules that decided, in their order; empty for what no rule matched.
    reasons: tuple[str, ...] = ()
    hits: tuple[Hit, ...] = ()
    # The rule set's.
    version: int = 0
    # What could not be asked (features, model): conservative rules held instead.
    without: frozenset[str] = field(default_factory=frozenset)
