"""What one process feels: its processor, its lanes' queues, what it refuses for load."""

from __future__ import annotations

import asyncio
import time

from cells.degradation.load import LoadMeter
from cells.elasticity.model import Felt
from cells.ledger.worker import Lanes
from cells.workers import tell_line
from router.admission.gate import Admission


class Meter:
    """By differences of counters from one look to the next."""

    def __init__(self, lanes: Lanes, admission: Admission) -> None:
        self._load = LoadMeter(lanes)
        self._lanes = lanes
        self._admission = admission
        self._shed = 0
        self._at_s = time.monotonic()

    def __call__(self) -> Felt:
        load = self._load()
        now_s = time.monotonic()
        shed = self._admission.refused["OVERLOADED"]
        shed += sum(lane.figures.refused for lane in self._lanes.lanes)
        per_s = (shed - self._shed) / max(now_s - self._at_s, 1e-6)
        self._shed, self._at_s = shed, now_s
        return Felt(load.cpu_percent, load.queue_delay_ms, per_s)


async def tell_load(meter: Meter, descriptor: int, interval_s: float) -> None:
    """In a further process: tells the cell's first one, for ever."""
    while True:
        await asyncio.sleep(interval_s)
        tell_line(descriptor, meter().to_line())
