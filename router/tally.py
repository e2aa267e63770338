"""What clients saw of a server: calls that it answered, failed, or left standing, and how long.

Only faults of the server count as failed: a refusal by the rules (no money, a duplicate) is a
success, a slot that moved is nobody's fault, and load that is shed says "too much", not "broken":
to fail over a cell for being busy would make the next one busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import grpc

from router.errors import Refusal

# Of the mesh's routing, not of the payment.
_ROUTING = frozenset({"SLOT_MOVED", "SLOT_MOVING", "NOT_HOME", "NOT_OWNER", "CELL_NOT_READY"})
_FAULTS = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)
# Bucket n: less than 2^n ms; the last one holds all that took longer.
BUCKETS = 16


def is_fault(refusal: Refusal) -> bool:
    return refusal.code in _FAULTS and refusal.reason not in _ROUTING


class Counts:
    """Of calls that ended, and by duration; ever growing."""

    __slots__ = ("buckets", "failed", "ok")

    def __init__(self) -> None:
        self.ok = 0
        self.failed = 0
        self.buckets = [0] * BUCKETS

    def add(self, bucket: int, *, failed: bool, count: int = 1) -> None:
        if failed:
            self.failed += count
        else:
            self.ok += count
        self.buckets[bucket] += count


class Tally(Counts):
    """Counters of one process, of all its calls and of those to slots that came here last: a
    gradual move is judged by them. One event loop uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.newcomers = Counts()
        self._under_way = 0
        self._under_way_before = 0
        self._ended_before = 0

    def look(self) -> tuple[int, int, list[int]]:
        """Successes, failures, durations. Each call that stood through a time in which none ended
        counts as failed, at every look: clients may be patient for longer than we are."""
        ended = self.ok + self.failed
        standing = min(self._under_way, self._under_way_before)
        if ended == self._ended_before:
            self.failed += standing
        self._ended_before = self.ok + self.failed
        self._under_way_before = self._under_way
        return self.ok, self.failed, list(self.buckets)

    def watch(
        self,
        behaviour: Callable[[Any, Any], Awaitable[Any]],
        is_newcomer: Callable[[Any], bool] = lambda request: False,
    ) -> Any:
        """The behaviour, counted. `is_newcomer`: is a request's slot one that came here last?"""

        async def counted(request: Any, context: Any) -> Any:
            began = time.perf_counter()
            new = is_newcomer(request)
            self._under_way += 1
            try:
                answer = await behaviour(request, context)
            except Refusal as refusal:
                if refusal.reason not in _ROUTING:
                    self._count(began, new, failed=is_fault(refusal))
                raise
            except asyncio.CancelledError:
                # The client's deadline, or only its change of mind?
                left = context.time_remaining()
                if left is not None and left <= 0:
                    self._count(began, new, failed=True)
                raise
            except BaseException:
                self._count(began, new, failed=True)
                raise
            else:
                self._count(began, new, failed=False)
                return answer
            finally:
                self._under_way -= 1

        return counted

    @contextlib.contextmanager
    def many(self, outcomes: Sequence[object], newcomers: Sequence[bool]) -> Iterator[None]:
        """Counts calls that came as one, of each whether its slot came here last; `outcomes` are
        theirs when the block ends."""
        began = time.perf_counter()
        self._under_way += len(newcomers)
        try:
            yield
            kinds = Counter(
                (new, isinstance(outcome, Refusal) and is_fault(outcome))
                for outcome, new in zip(outcomes, newcomers, strict=False)
            )
            for (new, failed), count in kinds.items():
                self._count(began, new, failed=failed, count=count)
        finally:
            self._under_way -= len(newcomers)

    def _count(self, began: float, new: bool, *, failed: bool, count: int = 1) -> None:
        ms = int((time.perf_counter() - began) * 1000)
        bucket = min(ms.bit_length(), BUCKETS - 1)
        self.add(bucket, failed=failed, count=count)
        if new:
            self.newcomers.add(bucket, failed=failed, count=count)
