"""A process of a cell under the policies: it follows them, applies them, tells what it applied.

    etcd ──▶ Follower ──▶ admission (guard)        limits, shedding, what is switched off
                     ├──▶ breakers                 tuned, forced
                     ├──▶ degradation ──▶ modes    by hand, or by load with hysteresis
                     └──▶ risk                     rules, lists, features and models

Everything is applied in one turn of the event loop, so no call sees half of a change.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from cells.breakers.board import Board
from cells.degradation.rules import Level, Load, after_look, in_force
from cells.limits.store import RedisRates
from cells.risk.knowledge import Knowing
from router.admission.gate import Admission
from router.admission.rules import admitting_of
from router.policies.follow import Follower, Reporter
from router.policies.model import (
    REPORTS_PREFIX,
    Breakers,
    Degradation,
    Dependency,
    Feature,
    Forecast,
    Keys,
    Mode,
)
from router.policies.rules import PolicySet
from router.store.model import Store

log = structlog.get_logger(__name__)

_LOOK_INTERVAL_S = 0.25


class Policing:
    def __init__(
        self,
        store: Store,
        cell: str,
        process: str,
        redis_url: str,
        load: Callable[[], Load] = Load,
        risk: Knowing | None = None,
    ) -> None:
        """`load`: what the cell feels now; asked a few times a second. `risk`: of a process that
        screens payments."""
        self.cell = cell
        self.board = Board()
        self._rates = RedisRates(redis_url, self.board.of(Dependency.REDIS))
        self.admission = Admission(self._rates)
        self._follower = Follower(store, self._apply)
        self._reporter = Reporter(store, self._follower, process, self._report)
        self._store = store
        self._process = process
        self._load = load
        self._felt = Load()
        self._level = Level()
        # What other processes of the cell have been raised to by load.
        self._others = 0
        self._modes: Mapping[Feature, Mode] = {}
        self.level = 0
        # Who else hears of each new set, in the same turn and after the board.
        self.followers: list[Callable[[PolicySet], None]] = []
        self.risk = risk
        if risk is not None:
            self.followers.append(risk.apply)
        # Set while nothing is to be waited for; replaced at each change.
        self.changed = asyncio.Event()

    def mode(self, feature: Feature) -> Mode:
        return self._modes.get(feature, Mode.ON)

    def keys(self) -> list[Keys]:
        """What operators say of the vault's keys."""
        return self._follower.now.of(Keys, self.cell)

    def forecasts(self) -> list[Forecast]:
        """What load is expected when."""
        return self._follower.now.of(Forecast, self.cell)

    @property
    def felt(self) -> Load:
        """What this process felt a moment ago."""
        return self._felt

    async def known(self) -> None:
        """Returns once what policies say is in force. A process that took calls before would know
        of no limit, and of no signature that is required."""
        await self._follower.known()

    async def run(self) -> None:
        """For ever."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follower.run())
                group.create_task(self._reporter.run())
                group.create_task(self._watch_load())
                if self.risk is not None:
                    group.create_task(self.risk.run())
        finally:
            await self._rates.close()

    def _apply(self, policies: PolicySet) -> None:
        own = policies.of(Degradation, self.cell)
        self._level = after_look(self._level, own, self._felt, time.monotonic())
        level = max(self._others, in_force(self._level, own))
        if level != self.level:
            log.warning("degradation", level=level, was=self.level, by_load=self._level.by_load)
            self.level = level
        admitting = admitting_of(policies, self.cell, level)
        self._modes = admitting.modes
        self.admission.apply(admitting)
        self.board.apply(policies.of(Breakers, self.cell))
        for follower in self.followers:
            follower(policies)
        self.changed.set()
        self.changed = asyncio.Event()

    async def _watch_load(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_INTERVAL_S)
            policies = self._follower.now
            own = policies.of(Degradation, self.cell)
            self._felt = self._load()
            self._level = after_look(self._level, own, self._felt, time.monotonic())
            if max(self._others, in_force(self._level, own)) != self.level:
                self._apply(policies)

    async def follow_cell(self) -> None:
        """For a process that feels no load of its own, as the relay: as low as its cell is."""
        async for listing in self._store.watch(REPORTS_PREFIX):
            reports = [
                json.loads(item.value)
                for key, item in listing.items.items()
                if key != REPORTS_PREFIX + self._process
            ]
            levels = [item["degradation_level"] for item in reports if self._is_ours(item)]
            self._others = max(levels, default=0)
            if self._others != self.level:
                self._apply(self._follower.now)

    def _is_ours(self, report: dict[str, Any]) -> bool:
        return report.get("cell") == self.cell

    async def until(self, true: Callable[[], bool]) -> None:
        """Until a change of the policies, or of the level, makes it true."""
        while not true():
            await self.changed.wait()

    def _report(self) -> dict[str, Any]:
        return {
            "cell": self.cell,
            "breakers": {key: list(value) for key, value in self.board.report().items()},
            "degradation_level": self.level,
            "features": {str(key): mode for key, mode in self._modes.items() if mode != Mode.ON},
            "concurrency_limit": self.admission.limiter.limit,
            "refused": dict(self.admission.refused),
        }
