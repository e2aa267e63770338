"""Features in memory, exact: for tests, for training a model, for replays of the stream.

Of one process. Counts members of distinct counts themselves, where Redis estimates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cells.risk.windows import Plan, counted, kept_from
from router.risk.features import (
    Aggregate,
    Feature,
    FeatureSet,
    Observation,
    additions,
    covered,
    value_of,
)

# A bucket's number → its sum, or its members.
_Sums = dict[int, int]
_Members = dict[int, set[str]]


class MemoryFeatures:
    """Implements Features. `values` and `add` are for those who need no event loop."""

    def __init__(self) -> None:
        self._plan = Plan.of(FeatureSet())
        # By the feature's identity and the entity's value.
        self._sums: dict[tuple[bytes, str], _Sums] = {}
        self._members: dict[tuple[bytes, str], _Members] = {}

    async def read(
        self, document: FeatureSet, asked: Sequence[Observation]
    ) -> Sequence[Mapping[str, int]]:
        return self.values(document, asked)

    def add(self, document: FeatureSet, seen: Iterable[Observation]) -> None:
        """What happened, in any order; each once."""
        plan = self._plan_of(document)
        for item in seen:
            for addition in additions(plan.unique, item):
                feature, bucket = addition.feature, addition.bucket
                place = (plan.identities[feature.name], addition.key)
                if feature.aggregate == Aggregate.DISTINCT:
                    members = self._members.setdefault(place, {})
                    members.setdefault(bucket, set()).add(addition.member)
                    _forget(feature, members)
                else:
                    sums = self._sums.setdefault(place, {})
                    sums[bucket] = counted(sums.get(bucket, 0) + counted(addition.value))
                    _forget(feature, sums)

    def values(
        self, document: FeatureSet, asked: Sequence[Observation]
    ) -> Sequence[Mapping[str, int]]:
        """As `read`."""
        plan = self._plan_of(document)
        return [
            {feature.name: self._value(plan, feature, item) for feature in document.features}
            for item in asked
        ]

    def _value(self, plan: Plan, feature: Feature, asked: Observation) -> int:
        place = (plan.identities[feature.name], value_of(asked, feature.by))
        buckets = covered(feature, asked.at_ms)
        if feature.aggregate == Aggregate.DISTINCT:
            members = self._members.get(place, {})
            found = [kept for bucket, kept in members.items() if bucket in buckets]
            return len(set().union(*found))
        sums = self._sums.get(place, {})
        return counted(sum(kept for bucket, kept in sums.items() if bucket in buckets))

    def _plan_of(self, document: FeatureSet) -> Plan:
        if document is not self._plan.document:
            self._plan = Plan.of(document)
        return self._plan


def _forget(feature: Feature, kept: _Sums | _Members) -> None:
    """Old buckets, some at a time."""
    if len(kept) > 2 * feature.buckets:
        oldest = kept_from(feature, max(kept))
        for bucket in [bucket for bucket in kept if bucket < oldest]:
            del kept[bucket]
