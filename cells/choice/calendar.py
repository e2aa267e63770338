"""A moment as a channel's own calendar has it."""

from __future__ import annotations

import calendar
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from router.policies.channels import Hours

_MINUTE_MS = 60_000
_DAY_MINUTES = 24 * 60


class Moment(NamedTuple):
    # Since 1970, anywhere.
    minute: int
    # Of the channel's zone: YYYY-MM-DD, YYYY-MM.
    day: str
    month: str
    # 1 is Monday.
    weekday: int
    minute_of_day: int
    # How much of its month is over, and how long it is.
    month_part: float
    month_days: int


def moment_of(zone: str, at_ms: int) -> Moment:
    return _moment(zone, at_ms // _MINUTE_MS)


@lru_cache(maxsize=4096)
def _moment(zone: str, minute: int) -> Moment:
    local = datetime.fromtimestamp(minute * 60, UTC).astimezone(ZoneInfo(zone))
    days = calendar.monthrange(local.year, local.month)[1]
    of_day = local.hour * 60 + local.minute
    part = (local.day - 1 + of_day / _DAY_MINUTES) / days
    day = local.date().isoformat()
    return Moment(minute, day, day[:7], local.isoweekday(), of_day, part, days)


def is_open(hours: Sequence[Hours], moment: Moment) -> bool:
    """Without hours, always."""
    return not hours or any(_within(item, moment) for item in hours)


def _within(hours: Hours, moment: Moment) -> bool:
    begin, end = _minutes(hours.begin), _minutes(hours.end)
    now = moment.minute_of_day
    if begin < end:
        return moment.weekday in hours.days and begin <= now < end
    if now >= begin:
        return moment.weekday in hours.days
    yesterday = (moment.weekday - 2) % 7 + 1
    return yesterday in hours.days and now < end


@lru_cache(maxsize=2048)
def _minutes(clock: str) -> int:
    return int(clock[:2]) * 60 + int(clock[3:])
