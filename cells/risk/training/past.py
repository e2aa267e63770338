"""Features of the past for a stream that comes in order: exact, and fast enough for training.

What an observation adds and which buckets a value covers is router.risk.features', as in a cell;
here each value is kept as a running total from which buckets fall out at the far end. Distinct
counts are exact here and HyperLogLog's in Redis: within a percent, and the same for small counts.
"""

from __future__ import annotations

from collections import deque

from router.risk.features import Aggregate, FeatureSet, Observation, additions


class _Total:
    """A count or a sum."""

    __slots__ = ("buckets", "total")

    def __init__(self) -> None:
        self.buckets: deque[list[int]] = deque()
        self.total = 0

    def add(self, bucket: int, value: int) -> None:
        if self.buckets and self.buckets[-1][0] == bucket:
            self.buckets[-1][1] += value
        else:
            self.buckets.append([bucket, value])
        self.total += value

    def value(self, oldest: int) -> int:
        while self.buckets and self.buckets[0][0] < oldest:
            self.total -= self.buckets.popleft()[1]
        return self.total


class _Members:
    """A distinct count: in which bucket each member was seen last, oldest first."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last: dict[str, int] = {}

    def add(self, bucket: int, member: str) -> None:
        self.last.pop(member, None)
        self.last[member] = bucket

    def value(self, oldest: int) -> int:
        while self.last and self.last[first := next(iter(self.last))] < oldest:
            del self.last[first]
        return len(self.last)


class Past:
    """Of observations that come in the order of their times."""

    def __init__(self, document: FeatureSet) -> None:
        self._document = document
        # What reading asks each time: name, the place of the entity in an observation, buckets.
        self._asked = [
            (item.name, Observation._fields.index(item.by.value), item.bucket_ms, item.buckets - 1)
            for item in document.features
        ]
        self._kept: dict[tuple[str, object], _Total | _Members] = {}

    def read(self, seen: Observation) -> dict[str, int]:
        """Every feature's value before it."""
        found = {}
        for name, entity, bucket_ms, before in self._asked:
            kept = self._kept.get((name, seen[entity]))
            # The oldest bucket that is covered.
            oldest = seen.at_ms // bucket_ms - before
            found[name] = 0 if kept is None else kept.value(oldest)
        return found

    def add(self, seen: Observation) -> None:
        for addition in additions(self._document, seen):
            key = (addition.feature.name, addition.key)
            kept = self._kept.get(key)
            if kept is None:
                distinct = addition.feature.aggregate == Aggregate.DISTINCT
                kept = self._kept[key] = _Members() if distinct else _Total()
            if isinstance(kept, _Members):
                kept.add(addition.bucket, addition.member)
            else:
                kept.add(addition.bucket, addition.value)
