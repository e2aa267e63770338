"""Looks at the load, and sizes the cell: step by step what rules.py says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import structlog

from cells.elasticity.load import Meter
from cells.elasticity.model import Felt, Size
from cells.elasticity.rules import after_look, floor_at
from cells.settings import ElasticitySettings
from cells.workers import Workers
from router.policies.model import Forecast

log = structlog.get_logger(__name__)


class Elasticity:
    """In a cell's first process."""

    def __init__(
        self,
        settings: ElasticitySettings,
        begin_with: int,
        meter: Meter,
        workers: Workers,
        forecasts: Callable[[], Iterable[Forecast]],
    ) -> None:
        """`begin_with`: processes, the first included."""
        self._settings = settings
        self._meter = meter
        self._workers = workers
        self._forecasts = forecasts
        self.size = Size(begin_with)

    async def run(self) -> None:
        """For ever. Without a `workers_max` the size stays as it is."""
        self._workers.resize(self.size.workers - 1)
        while True:
            await asyncio.sleep(self._settings.look_interval_s)
            own = self._meter()
            if self._settings.workers_max:
                self._look(own)

    def _look(self, own: Felt) -> None:
        felt = [own, *self._workers.felt()]
        floor = floor_at(self._forecasts(), datetime.now(UTC))
        before = self.size
        self.size = after_look(before, felt, floor, self._settings, time.monotonic())
        if self.size.workers == before.workers:
            return
        log.warning(
            "the cell is resized", workers=self.size.workers, was=before.workers, forecast=floor,
            cpu_percent=[round(item.cpu_percent) for item in felt],
            queue_delay_ms=[round(item.queue_delay_ms) for item in felt],
        )  # fmt: skip
        self._workers.resize(self.size.workers - 1)
