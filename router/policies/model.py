"""The documents of policies. Every field that is absent leaves the default as it is.

`cells` empty: the whole mesh. Methods are full names without the first slash,
`cellpay.payments.v1.PaymentsService/Pay`. Units are last in a name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field, with_config

from router.policies.channels import CHANNEL_PATTERN, ChannelPolicy, ChoicePolicy
from router.risk.artefact import RiskModel
from router.risk.features import FeatureSet
from router.risk.lists import RiskList
from router.risk.model import RuleSet

POLICIES_PREFIX = "/cellpay/policies/"
REPORTS_PREFIX = "/cellpay/policy-reports/"
# Written with every change of a risk document: its revision is the version of them all.
RISK_REVISION_KEY = f"{POLICIES_PREFIX}risk"

_DOCUMENT = with_config(ConfigDict(extra="forbid", allow_inf_nan=False))

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$")]
Method = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+/[A-Za-z0-9_]+$", max_length=200)]
Cells = Annotated[tuple[Name, ...], Field(max_length=256)]
Methods = Annotated[tuple[Method, ...], Field(max_length=64)]
Percent = Annotated[float, Field(ge=0, le=100)]
Milliseconds = Annotated[int, Field(ge=1, le=600_000)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class PolicyKind(StrEnum):
    TRAFFIC = "traffic"
    BREAKERS = "breakers"
    DEGRADATION = "degradation"
    LIMITS = "limits"
    KEYS = "keys"
    CHANNELS = "channels"
    CHOICE = "choice"
    RISK_RULES = "risk-rules"
    RISK_LISTS = "risk-lists"
    RISK_FEATURES = "risk-features"
    RISK_MODEL = "risk-model"
    SIGNATURES = "signatures"
    FORECAST = "forecast"


RISK_KINDS = frozenset(
    {
        PolicyKind.RISK_RULES,
        PolicyKind.RISK_LISTS,
        PolicyKind.RISK_FEATURES,
        PolicyKind.RISK_MODEL,
    }
)


class RetryCode(StrEnum):
    """What gRPC retries by xDS (gRFC A44)."""

    CANCELLED = "cancelled"
    DEADLINE_EXCEEDED = "deadline-exceeded"
    INTERNAL = "internal"
    RESOURCE_EXHAUSTED = "resource-exhausted"
    UNAVAILABLE = "unavailable"


class AbortCode(StrEnum):
    """What an injected fault answers."""

    CANCELLED = "CANCELLED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    ABORTED = "ABORTED"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class CircuitBreaker:
    """At one client, or one Envoy, to one cell at once; more fail with UNAVAILABLE (A32)."""

    requests_max: Count
    # Envoy alone knows these two; gRPC has one connection an endpoint and queues nothing.
    connections_max: Count | None = None
    pending_max: Count | None = None


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class OutlierDetection:
    """Processes of a cell that fail more than the others are left out for a while (A50)."""

    interval_ms: Milliseconds = 10_000
    base_ejection_ms: Milliseconds = 30_000
    max_ejection_ms: Milliseconds = 300_000
    ejected_percent_max: Annotated[int, Field(ge=0, le=100)] = 10
    # A process is an outlier when this part of its calls in an interval failed …
    failure_percent: Annotated[int, Field(ge=1, le=100)] = 85
    # … and there were so many of them, in so many processes.
    requests_min: Count = 50
    hosts_min: Count = 2
    # Envoy alone: failures in a row.
    consecutive_failures: Count | None = None


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Retry:
    """For clients without the SDK, which retries by itself and switches these off."""

    codes: Annotated[tuple[RetryCode, ...], Field(min_length=1)]
    # gRPC makes no more than 5 attempts.
    retries_max: Annotated[int, Field(ge=1, le=4)] = 2
    # gRPC 1.85 never makes an attempt whose back-off, with jitter, is less than a millisecond.
    backoff_base_ms: Annotated[int, Field(ge=10, le=600_000)] = 25
    backoff_cap_ms: Milliseconds = 250
    # At the edge: retries may be this part of the calls under way. gRPC's xDS has no budget.
    budget_percent: Percent | None = None


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Fault:
    """Calls that the client, or Envoy, delays or fails by itself (A33)."""

    delay_ms: Annotated[int, Field(ge=0, le=600_000)] = 0
    delay_percent: Percent = 0.0
    abort_code: AbortCode | None = None
    abort_percent: Percent = 0.0


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Traffic:
    """What clients and Envoy do with calls to `cells`, of `methods` (all when empty)."""

    cells: Cells = ()
    methods: Methods = ()
    # Of a whole cell, so not beside `methods`.
    circuit_breaker: CircuitBreaker | None = None
    outlier_detection: OutlierDetection | None = None
    retry: Retry | None = None
    timeout_ms: Milliseconds | None = None
    fault: Fault | None = None


class Dependency(StrEnum):
    """What a cell asks outside of itself, beside its database."""

    NATS = "nats"
    REDIS = "redis"
    WEBHOOKS = "webhooks"
    NOTIFICATIONS = "notifications"
    FUNDING = "funding"


CHANNEL_PREFIX = "channel:"


def dependency_of_channel(channel: str) -> str:
    return CHANNEL_PREFIX + channel


def checked_dependency(name: str) -> str:
    """Raises ValueError."""
    channel = name.removeprefix(CHANNEL_PREFIX)
    is_channel = channel != name and re.fullmatch(CHANNEL_PATTERN, channel)
    if not is_channel and name not in set(Dependency):
        raise ValueError(f"must be one of {', '.join(Dependency)}, or {CHANNEL_PREFIX}NAME")
    return name


class Forced(StrEnum):
    OPEN = "open"
    CLOSED = "closed"


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Breakers:
    """The breaker around a dependency, or around a channel (`channel:` and its name)."""

    dependency: Annotated[str, AfterValidator(checked_dependency)]
    cells: Cells = ()
    # Failures in a row that open it.
    failures_max: Annotated[int, Field(ge=1, le=10_000)] = 5
    # After this one call may try whether the dependency is back.
    reset_s: Annotated[float, Field(gt=0, le=3600)] = 5.0
    force: Forced | None = None


class Criticality(StrEnum):
    """How bad it is when a call is refused (Site Reliability Engineering, chapter 21)."""

    CRITICAL_PLUS = "critical_plus"
    CRITICAL = "critical"
    SHEDDABLE_PLUS = "sheddable_plus"
    SHEDDABLE = "sheddable"


class Feature(StrEnum):
    """What may be degraded. Payments, orders and transfers are not here: they never are."""

    POINTS = "points"
    RED_PACKETS = "red_packets"
    NOTIFICATION = "notification"
    STATEMENTS = "statements"
    RISK_MODEL = "risk_model"
    REFUNDS = "refunds"
    PAYOUTS = "payouts"


class Mode(StrEnum):
    ON = "on"
    # It is done later; nothing is lost.
    DEFERRED = "deferred"
    OFF = "off"


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Pressure:
    """What must be exceeded for levels 1, 2 and 3; one of them is enough."""

    queue_delay_ms: tuple[float, float, float] | None = None
    cpu_percent: tuple[float, float, float] | None = None
    database_latency_ms: tuple[float, float, float] | None = None
    # For how long, without a break, before the level rises by one …
    raise_after_s: Annotated[float, Field(ge=0, le=3600)] = 2.0
    # … and for how long all must be below `relief` of their thresholds before it falls by one.
    lower_after_s: Annotated[float, Field(ge=0, le=86_400)] = 30.0
    relief: Annotated[float, Field(gt=0, lt=1)] = 0.7


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Degradation:
    """`level` by hand is the floor; `pressure` may raise it up to `level_max`."""

    cells: Cells = ()
    level: Annotated[int, Field(ge=0, le=3)] = 0
    level_max: Annotated[int, Field(ge=0, le=3)] = 3
    pressure: Pressure | None = None
    # Feature → its mode at levels 1, 2 and 3; the others have the modes of `rules.MODES`.
    features: Mapping[Feature, tuple[Mode, Mode, Mode]] = field(default_factory=dict)


class RateBy(StrEnum):
    API = "api"
    MERCHANT = "merchant"
    USER = "user"
    CALLER = "caller"


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket for each API, merchant, user or calling service, shared by a cell."""

    by: RateBy
    per_s: Annotated[float, Field(gt=0, le=1_000_000)]
    burst: Count
    methods: Methods = ()


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class EdgeRate:
    """A token bucket in each Envoy, for a method or for all."""

    per_s: Count
    burst: Count
    methods: Methods = ()


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Concurrency:
    """The adaptive limit of calls under way in a process (`router/admission/gradient.py`)."""

    initial: Count = 64
    minimum: Count = 16
    maximum: Count = 4096
    # How much longer than the long-term average an answer may take before the limit falls.
    tolerance: Annotated[float, Field(ge=1, le=10)] = 1.5
    smoothing: Annotated[float, Field(gt=0, le=1)] = 0.2


class RedisAway(StrEnum):
    OPEN = "open"
    CLOSED = "closed"


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Limits:
    cells: Cells = ()
    rates: Annotated[tuple[Rate, ...], Field(max_length=64)] = ()
    # Without Redis: everybody passes, or nobody whom a rate applies to.
    redis_away: RedisAway = RedisAway.OPEN
    edge: Annotated[tuple[EdgeRate, ...], Field(max_length=64)] = ()
    concurrency: Concurrency | None = None
    # Of calls that do not say it in `x-cellpay-criticality`.
    criticality: Mapping[Method, Criticality] = field(default_factory=dict)


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Keys:
    """When the vault's data keys are replaced, and what they sealed is sealed anew."""

    cells: Cells = ()
    # A key's cryptoperiod.
    period_days: Annotated[float, Field(gt=0, le=3650)] = 365.0
    # Keys made before this moment are replaced now: rotation by hand.
    rotate_before: AwareDatetime | None = None


class SignatureMode(StrEnum):
    # None is looked at.
    OFF = "off"
    # One that is sent must be right.
    OPTIONAL = "optional"
    REQUIRED = "required"


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Expected:
    """A time of more load than what was before it foretells: Double 11 begins within a second."""

    begin: AwareDatetime
    end: AwareDatetime
    # Processes of each cell, no fewer than these, from `warm_s` before the beginning.
    workers: Annotated[int, Field(ge=1, le=1024)]


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Forecast:
    """What load will come when. Within a cell's `workers_max`, and by each machine's clock: one
    that is a second wrong warms up a second late."""

    times: Annotated[tuple[Expected, ...], Field(max_length=256)] = ()
    cells: Cells = ()
    # To start a process, to connect and to fill its caches takes some seconds.
    warm_s: Annotated[float, Field(ge=0, le=86_400)] = 120.0


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Signatures:
    """Whether requests that come in at the edge must be signed by a merchant (docs/signing.md).

    Of several documents for a call the most specific is in force: one that names the merchant
    before one that names the method before one that names neither; of equals the strictest.
    """

    cells: Cells = ()
    mode: SignatureMode = SignatureMode.REQUIRED
    methods: Methods = ()
    # Whom the request names as its merchant or as the user at whose home it is served.
    merchants: Annotated[tuple[str, ...], Field(max_length=1024)] = ()
    # How old a request may be, and how far ahead of our clock; of several documents the shortest.
    old_max_s: Annotated[int, Field(ge=1, le=300)] = 300
    ahead_max_s: Annotated[int, Field(ge=1, le=60)] = 10


# Of the whole mesh: a payment is judged alike wherever its payer lives.
RiskDocument = RuleSet | RiskList | FeatureSet | RiskModel
Document = (
    Traffic
    | Breakers
    | Degradation
    | Limits
    | Keys
    | ChannelPolicy
    | ChoicePolicy
    | Signatures
    | Forecast
    | RiskDocument
)


def cells_of(document: Document) -> tuple[str, ...]:
    """That it is for; empty: all."""
    if isinstance(document, RuleSet | RiskList | FeatureSet | RiskModel):
        return ()
    return document.cells
