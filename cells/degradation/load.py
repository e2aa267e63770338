"""What a cell's process feels: how long commands wait, its processor, its database.

By differences of counters between two looks; nothing is measured on a payment's way. A lane's wait
is what stands in its queue over what it commits a second (Little's law).
"""

from __future__ import annotations

import time
from typing import NamedTuple

from cells.degradation.rules import Load
from cells.ledger.worker import Lanes

_STUCK_MS = 60_000.0


class _Counters(NamedTuple):
    at_s: float
    cpu_s: float
    commands: int
    groups: int
    commit_s: float


class LoadMeter:
    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._before = self._count()

    def __call__(self) -> Load:
        before, now = self._before, self._count()
        self._before = now
        elapsed_s = max(now.at_s - before.at_s, 1e-6)
        per_s = (now.commands - before.commands) / elapsed_s
        waiting = sum(lane.waiting for lane in self._lanes.lanes)
        groups = now.groups - before.groups
        commit_s = now.commit_s - before.commit_s
        return Load(
            queue_delay_ms=_wait_ms(waiting, per_s),
            cpu_percent=100 * (now.cpu_s - before.cpu_s) / elapsed_s,
            database_latency_ms=1000 * commit_s / groups if groups else 0.0,
        )

    def _count(self) -> _Counters:
        figures = [lane.figures for lane in self._lanes.lanes]
        return _Counters(
            time.monotonic(),
            time.process_time(),
            sum(item.commands for item in figures),
            sum(item.groups for item in figures),
            sum(item.commit_s for item in figures),
        )


def _wait_ms(waiting: int, per_s: float) -> float:
    if not waiting:
        return 0.0
    return min(_STUCK_MS, 1000 * waiting / per_s) if per_s else _STUCK_MS
