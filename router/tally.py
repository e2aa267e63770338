"""What clients saw of a server: calls that it answered, failed, or left standing, and how long.

Only faults of the server count as failed: a refusal by the rules (no money, a duplicate) is a
success, a slot that moved is nobody's fault, and load that is shed says "too much", not "broken":
to fail over a cell for being busy would make the next one busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
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


class Tally:
    """Counters of one process, ever growing. One event loop uses it."""

    def __init__(self) -> None:
        self.ok = 0
        self.failed = 0
        self.buckets = [0] * BUCKETS
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

    def watch(self, behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Any:
        """The behaviour, counted."""

        async def counted(request: Any, context: Any) -> Any:
            began = time.perf_counter()
            self._under_way += 1
            try:
                answer = await behaviour(request, context)
            except Refusal as refusal:
                if refusal.reason not in _ROUTING:
                    self._count(began, failed=is_fault(refusal))
                raise
            except asyncio.CancelledError:
                # The client's deadline, or only its change of mind?
                left = context.time_remaining()
                if left is not None and left <= 0:
                    self._count(began, failed=True)
                raise
            except BaseException:
                self._count(began, failed=True)
                raise
            else:
                self._count(began, failed=False)
                return answer
            finally:
                self._under_way -= 1

        return counted

    @contextlib.contextmanager
    def many(self, outcomes: Sequence[object], count: int) -> Iterator[None]:
        """Counts `count` calls that came as one; `outcomes` are theirs when the block ends."""
        began = time.perf_counter()
        self._under_way += count
        try:
            yield
            failed = sum(1 for each in outcomes if isinstance(each, Refusal) and is_fault(each))
            self._count(began, failed=True, count=failed)
            self._count(began, failed=False, count=len(outcomes) - failed)
        finally:
            self._under_way -= count

    def _count(self, began: float, *, failed: bool, count: int = 1) -> None:
        if failed:
            self.failed += count
        else:
            self.ok += count
        ms = int((time.perf_counter() - began) * 1000)
        self.buckets[min(ms.bit_length(), BUCKETS - 1)] += count
