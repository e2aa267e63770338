"""When does the level rise, when does it fall? Pure; time is an argument.

One step at a time: up after the pressure has lasted, down only after all of it has stayed well
below the thresholds of the present level for longer. A policy's `level` is the floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from router.policies.model import Degradation, Pressure
from router.policies.rules import LEVEL_MAX


class Load(NamedTuple):
    """What the cell feels. A share of one processor, and milliseconds."""

    queue_delay_ms: float = 0.0
    cpu_percent: float = 0.0
    database_latency_ms: float = 0.0


class Level(NamedTuple):
    # What load has raised it to, whatever the floor.
    by_load: int = 0
    # Since when the pressure has asked for more, or allowed less.
    more_since: float | None = None
    less_since: float | None = None


def _asked(pressure: Pressure, load: Load, factor: float = 1.0) -> int:
    """The highest level whose thresholds, times the factor, are exceeded."""
    asked = 0
    for value, steps in (
        (load.queue_delay_ms, pressure.queue_delay_ms),
        (load.cpu_percent, pressure.cpu_percent),
        (load.database_latency_ms, pressure.database_latency_ms),
    ):
        if steps is not None:
            asked = max(asked, sum(value > step * factor for step in steps))
    return asked


def after_look(now: Level, policies: Sequence[Degradation], load: Load, at_s: float) -> Level:
    """The level after a look at the load. The policy with the first `pressure` decides."""
    chosen = next((item for item in policies if item.pressure is not None), None)
    if chosen is None or chosen.pressure is None:
        return Level()
    pressure = chosen.pressure
    level = min(now.by_load, chosen.level_max)
    if _asked(pressure, load) > level and level < chosen.level_max:
        since = at_s if now.more_since is None else now.more_since
        if at_s - since >= pressure.raise_after_s:
            return Level(level + 1)
        return Level(level, more_since=since)
    if level > 0 and _asked(pressure, load, pressure.relief) < level:
        since = at_s if now.less_since is None else now.less_since
        if at_s - since >= pressure.lower_after_s:
            return Level(level - 1)
        return Level(level, less_since=since)
    return Level(level)


def in_force(level: Level, policies: Sequence[Degradation]) -> int:
    floor = max((item.level for item in policies), default=0)
    return min(LEVEL_MAX, max(floor, level.by_load))
