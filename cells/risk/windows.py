"""How features are kept: which buckets, for how long, under which identity. Pure.

The memory's store and Redis's both go by this, so that they answer the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

from router.risk.features import Feature, FeatureSet

# A value may be asked for at a time so far behind the newest observation, and an observation may
# be so far ahead of the clock that it is held against: what databases' clocks may differ by.
SLACK_MS = 60_000
# What a double holds exactly, since Lua has no other numbers; sums end here.
SUM_MAX = 2**53 - 1


def identity(feature: Feature) -> bytes:
    """Of what it counts. A renamed feature keeps its past; a changed one begins anew."""
    parts = (
        feature.by,
        feature.aggregate,
        feature.window_s,
        feature.buckets,
        feature.of or "",
        ",".join(sorted(set(feature.operations))),
        ",".join(sorted(set(feature.actions))),
        feature.currency,
    )
    return blake2b("|".join(map(str, parts)).encode(), digest_size=8).digest()


def kept_from(feature: Feature, newest: int) -> int:
    """The oldest bucket that a value may still be made of, when this is the newest."""
    return newest - feature.buckets + 1 - slack_buckets(feature)


def slack_buckets(feature: Feature) -> int:
    return -(-SLACK_MS // feature.bucket_ms)


def counted(value: int) -> int:
    """Within what a sum can be."""
    return min(max(value, 0), SUM_MAX)


@dataclass(frozen=True, slots=True)
class Plan:
    """A document's features, those that count the same once."""

    document: FeatureSet
    unique: FeatureSet
    # By the feature's name; of all names, also those that are not in `unique`.
    identities: Mapping[str, bytes]

    @classmethod
    def of(cls, document: FeatureSet) -> Plan:
        first: dict[bytes, Feature] = {}
        identities: dict[str, bytes] = {}
        for feature in document.features:
            identities[feature.name] = identity(feature)
            first.setdefault(identities[feature.name], feature)
        return cls(document, FeatureSet(tuple(first.values())), identities)
