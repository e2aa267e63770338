"""Stream features: counts, sums and distinct counts over sliding windows. Definitions, pure.

Exactly: a window of `window_s` is `buckets` buckets of equal length, aligned to the Unix epoch. At
a time t a feature covers the bucket that t lies in and the `buckets - 1` before it, so between
(1 - 1/buckets) and all of the window. An observation counts in the bucket of its own time, whenever
it comes; so neither order nor delay changes a value, and a replay of the stream gives the same.
Counts and sums are exact; distinct counts of many members are HyperLogLog's (standard error 0.81 %;
Flajolet et al. 2007, as in Redis).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, NamedTuple

from pydantic import ConfigDict, Field, with_config

from router.risk.facts import Type
from router.risk.model import Action

FEATURES_MAX = 200
_DOCUMENT = with_config(ConfigDict(extra="forbid", allow_inf_nan=False))
FeatureName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]


class Entity(StrEnum):
    """What a feature is kept of; also what a distinct count counts."""

    USER = "user"
    PAYEE = "payee"
    DEVICE = "device"
    IP = "ip"
    CARD = "card"


class Aggregate(StrEnum):
    COUNT = "count"
    # Of amounts, in minor units; a feature of one currency, or of whatever comes.
    SUM = "sum"
    DISTINCT = "distinct"


class Observation(NamedTuple):
    """One request as risk saw it. What is not known is empty, and counts nowhere."""

    # Unix time in ms, by the database that decided.
    at_ms: int
    operation: str
    # What was decided: a denied try counts for some features too.
    action: str
    user: str
    payee: str
    device: str
    ip: str
    card: str
    amount: int
    currency: str


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Feature:
    name: FeatureName
    by: Entity
    aggregate: Aggregate
    # A minute to 30 days.
    window_s: Annotated[int, Field(ge=60, le=30 * 86_400)]
    buckets: Annotated[int, Field(ge=2, le=60)] = 10
    # Of DISTINCT: what is counted.
    of: Entity | None = None
    # Only these; all when empty.
    operations: tuple[str, ...] = ()
    actions: tuple[Action, ...] = ()
    currency: Annotated[str, Field(pattern=r"^([A-Z]{3})?$")] = ""

    @property
    def type(self) -> Type:
        return Type.INT

    @property
    def bucket_ms(self) -> int:
        """Its length; rounded up where the buckets do not divide the window."""
        return -(-self.window_s * 1000 // self.buckets)


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class FeatureSet:
    features: Annotated[tuple[Feature, ...], Field(max_length=FEATURES_MAX)] = ()

    def types(self) -> dict[str, Type]:
        """For the schema of rules."""
        return {feature.name: feature.type for feature in self.features}


class Addition(NamedTuple):
    """What one observation adds to one feature."""

    feature: Feature
    # Of whom: the entity's value.
    key: str
    bucket: int
    # A count's 1, a sum's amount; 0 for a distinct count, whose value is `member`.
    value: int
    member: str


def faults(document: FeatureSet) -> Iterator[tuple[str, str]]:
    """What is wrong beyond the document's shape: (field, why)."""
    seen: set[str] = set()
    for number, feature in enumerate(document.features):
        at = f"features[{number}]"
        if feature.name in seen:
            yield f"{at}.name", f"{feature.name} stands here twice"
        seen.add(feature.name)
        if (feature.aggregate == Aggregate.DISTINCT) != (feature.of is not None):
            yield f"{at}.of", "is for distinct, and distinct needs it"
        if feature.of == feature.by:
            yield f"{at}.of", "counts its own key: always 1"


def additions(document: FeatureSet, seen: Observation) -> Iterator[Addition]:
    """All that an observation adds."""
    for feature in document.features:
        key = value_of(seen, feature.by)
        if not key or not counts(feature, seen.operation, seen.action, seen.currency):
            continue
        bucket = seen.at_ms // feature.bucket_ms
        if feature.aggregate == Aggregate.DISTINCT:
            member = value_of(seen, feature.of) if feature.of else ""
            if member:
                yield Addition(feature, key, bucket, 0, member)
            continue
        value = 1 if feature.aggregate == Aggregate.COUNT else seen.amount
        yield Addition(feature, key, bucket, value, "")


def covered(feature: Feature, at_ms: int) -> range:
    """The buckets that a value at this time is made of, oldest first."""
    last = at_ms // feature.bucket_ms
    return range(last - feature.buckets + 1, last + 1)


def value_of(seen: Observation, entity: Entity) -> str:
    return str(getattr(seen, entity.value))


def counts(feature: Feature, operation: str, action: str, currency: str) -> bool:
    """Whether such an observation counts for a feature."""
    return (
        (not feature.operations or operation in feature.operations)
        and (not feature.actions or action in feature.actions)
        and feature.currency in {"", currency}
    )
