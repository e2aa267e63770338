"""When does a cell get more processes, when fewer? Pure; time is an argument.

Up by as many as the load asks for, at most to the double at once: what has come is waiting already.
Down by one at a time, and only after what the rest would then feel has stayed well below the
targets for long: a process that left is missed for as long as it takes to start another (pitfall
26). A forecast is a floor, and is obeyed before its load is there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from cells.elasticity.model import Felt, Size
from cells.settings import ElasticitySettings
from router.policies.model import Forecast


def floor_at(forecasts: Iterable[Forecast], now: datetime) -> int:
    """Processes that are expected to be needed now, or as soon as one could be warm."""
    return max(
        (
            item.workers
            for forecast in forecasts
            for item in forecast.times
            if item.begin - timedelta(seconds=forecast.warm_s) <= now < item.end
        ),
        default=0,
    )


def asked(felt: Sequence[Felt], settings: ElasticitySettings) -> int:
    """How many processes would bring each figure to its target."""
    count = len(felt)
    if not count:
        return 0
    cpu = sum(item.cpu_percent for item in felt) / count
    worst_ms = max(item.queue_delay_ms for item in felt)
    ratio = max(cpu / settings.cpu_percent, worst_ms / settings.queue_delay_ms)
    by_load = math.ceil(count * ratio) if ratio > 1 else 0
    # What is refused is felt by nobody here.
    return max(by_load, count + 1) if any(item.shed_per_s > 0 for item in felt) else by_load


def has_room(felt: Sequence[Felt], settings: ElasticitySettings) -> bool:
    """Whether one process less would still be well below every target."""
    rest = len(felt) - 1
    if rest < 1 or any(item.shed_per_s > 0 for item in felt):
        return False
    cpu = sum(item.cpu_percent for item in felt) / rest
    worst_ms = max(item.queue_delay_ms for item in felt)
    relief = settings.relief
    return cpu < relief * settings.cpu_percent and worst_ms < relief * settings.queue_delay_ms


def after_look(
    now: Size, felt: Sequence[Felt], floor: int, settings: ElasticitySettings, at_s: float
) -> Size:
    """The size after a look at what each process feels that takes work."""
    least = min(max(floor, settings.workers_min), settings.workers_max)
    workers = min(max(now.workers, least), settings.workers_max)
    if workers != now.workers:
        return Size(workers)
    if len(felt) != workers:
        # One is starting or leaving: what is felt now is not what will be.
        return Size(workers)
    more = min(asked(felt, settings), 2 * workers, settings.workers_max)
    if more > workers:
        since = at_s if now.more_since is None else now.more_since
        if at_s - since >= settings.raise_after_s:
            return Size(more)
        return Size(workers, more_since=since)
    if workers > least and has_room(felt, settings):
        since = at_s if now.less_since is None else now.less_since
        if at_s - since >= settings.lower_after_s:
            return Size(workers - 1)
        return Size(workers, less_since=since)
    return Size(workers)
