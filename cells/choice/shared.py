"""What a cell's processes tell each other of the channels, through the cell's Redis.

Observations are added up there, faded on Redis's own clock (pitfall 16); quotas are taken there, so
that a cell's processes together keep within them. With Redis away each process goes by its own
figures alone, and a quota is kept by each process for itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from cells.breakers.board import Breaker
from cells.choice.beliefs import OUTAGE_DROP, OUTAGE_TRUST, OUTAGE_WEIGHT, Seen
from cells.choice.calendar import Moment
from cells.choice.model import Usage
from cells.choice.statistics import KEYS_PER_CHANNEL_MAX, Dated, Delta, Key
from cells.choice.terms import Candidate
from router.policies.channels import ChoicePolicy

log = structlog.get_logger(__name__)

_CONNECTIONS_MAX = 8
_SEEN = "choice:seen:"
_USED = "choice:used:"
_VOLUME = "choice:volume:"
_DAY_S = 86_400
FAULTS = (RedisError, OSError, TimeoutError)

# A channel's deltas: KEYS[1] its hash; ARGV half lives, weights' limits, fields' limit, then field,
# good, bad, latency. As `beliefs.faded` and `beliefs.added` have it.
_ADD = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local half, usual_half = tonumber(ARGV[1]), tonumber(ARGV[2])
local weight, usual_weight, fields = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local rate, prior = tonumber(ARGV[6]), tonumber(ARGV[7])
local drop, outage, outage_trust = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
for i = 11, #ARGV, 4 do
  local field, good = ARGV[i], tonumber(ARGV[i + 1])
  local bad, ms = tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
  local held = redis.call('HGET', KEYS[1], field)
  local seen = held and cjson.decode(held) or {0, 0, 0, 0, 0, now}
  if held or redis.call('HLEN', KEYS[1]) < fields then
    local elapsed = math.max(0, now - seen[6])
    local f, u = 0.5 ^ (elapsed / half), 0.5 ^ (elapsed / usual_half)
    local g, b = seen[1] * f + good, seen[2] * f + bad
    local ug, ub = seen[3] * u, seen[4] * u
    local usual = (ug + rate * prior) / (ug + ub + prior)
    local trust = 1
    if (usual * outage + g) / (outage + g + b) < usual - drop then
      trust = outage_trust
    end
    ug, ub = ug + trust * good, ub + trust * bad
    local l = seen[5] * f + ms
    local cap = math.min(1, weight / (g + b))
    local usual_cap = math.min(1, usual_weight / (ug + ub))
    local put = {g * cap, b * cap, ug * usual_cap, ub * usual_cap, l * cap, now}
    redis.call('HSET', KEYS[1], field, cjson.encode(put))
  end
end
redis.call('PEXPIRE', KEYS[1], math.ceil(usual_half * 8000))
return 1
"""
# One request of an amount, or none: KEYS minute, day, the day's amount; ARGV the limits (-1: none),
# the amount. Answers whether it was taken, and how much there is now.
_TAKE = """
local minute = tonumber(redis.call('GET', KEYS[1]) or '0')
local day = tonumber(redis.call('GET', KEYS[2]) or '0')
local amount = tonumber(redis.call('GET', KEYS[3]) or '0')
local per_minute, per_day, per_day_amount = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local more = tonumber(ARGV[4])
if (per_minute >= 0 and minute >= per_minute) or (per_day >= 0 and day >= per_day)
    or (per_day_amount >= 0 and amount + more > per_day_amount) then
  return {0, minute, day, string.format('%.0f', amount)}
end
redis.call('INCR', KEYS[1])
redis.call('EXPIRE', KEYS[1], 180)
redis.call('INCR', KEYS[2])
redis.call('EXPIRE', KEYS[2], 172800)
redis.call('INCRBY', KEYS[3], ARGV[4])
redis.call('EXPIRE', KEYS[3], 172800)
return {1, minute + 1, day + 1, string.format('%.0f', amount + more)}
"""


class Volume(NamedTuple):
    channel: str
    currency: str
    month: str


class SharedStatistics:
    """Raises what is in FAULTS; the breaker around Redis says when not to ask at all."""

    def __init__(self, redis_url: str, breaker: Breaker, wait_s: float) -> None:
        # Blocking: a burst waits for a connection, and does not open hundreds.
        pool = BlockingConnectionPool.from_url(
            redis_url,
            max_connections=_CONNECTIONS_MAX,
            timeout=wait_s,
            socket_timeout=wait_s,
            socket_connect_timeout=wait_s,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        )
        self._redis = Redis.from_pool(pool)
        self.breaker = breaker
        self._add = self._redis.register_script(_ADD)
        self._take = self._redis.register_script(_TAKE)

    async def add(self, channel: str, deltas: Mapping[Key, Delta], choice: ChoicePolicy) -> None:
        arguments: list[Any] = [
            choice.half_life_s, choice.usual_half_life_s, choice.weight_max,
            choice.usual_weight_max, KEYS_PER_CHANNEL_MAX, choice.prior_rate, choice.prior_weight,
            OUTAGE_DROP, OUTAGE_WEIGHT, OUTAGE_TRUST,
        ]  # fmt: skip
        for key, delta in deltas.items():
            arguments += [f"{key.scheme}|{key.band}", *delta]
        await self._add(keys=[_SEEN + channel], args=arguments)

    async def seen(self, channels: Iterable[str], now_s: float) -> dict[Key, Dated]:
        """Of these channels; dated on the caller's clock."""
        names = list(channels)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            for name in names:
                pipe.hgetall(_SEEN + name)
            answers = await pipe.execute()
        (seconds, micros), *hashes = answers
        redis_s = seconds + micros / 1e6
        found: dict[Key, Dated] = {}
        for name, fields in zip(names, hashes, strict=True):
            for field, value in fields.items():
                scheme, _, band = field.partition("|")
                *seen, at_s = json.loads(value)
                age_s = max(0.0, redis_s - at_s)
                found[Key(name, scheme, band)] = Dated(Seen(*map(float, seen)), now_s - age_s)
        return found

    async def take(
        self, candidate: Candidate, currency: str, amount: int, moment: Moment
    ) -> tuple[bool, Usage]:
        """A request to the channel within its quotas, counted; and what it has had. Of the month it
        says nothing."""
        prefix = _USED + candidate.name
        limits = (candidate.per_minute, candidate.per_day, candidate.amount_per_day)
        taken, minute, day, day_amount = await self._take(
            keys=[
                f"{prefix}:{moment.minute}",
                f"{prefix}:{moment.day}",
                f"{prefix}:{moment.day}:{currency}",
            ],
            args=[*(-1 if limit is None else limit for limit in limits), amount],
        )
        return bool(taken), Usage(int(minute), int(day), int(day_amount))

    async def add_volumes(self, volumes: Mapping[Volume, int]) -> None:
        async with self._redis.pipeline(transaction=True) as pipe:
            for volume, amount in volumes.items():
                name = _VOLUME + ":".join(volume)
                pipe.incrby(name, amount)
                pipe.expire(name, 40 * _DAY_S)
            await pipe.execute()

    async def volumes(self, volumes: Iterable[Volume]) -> dict[Volume, int]:
        wanted = list(volumes)
        if not wanted:
            return {}
        found = await self._redis.mget([_VOLUME + ":".join(item) for item in wanted])
        return {item: int(value or 0) for item, value in zip(wanted, found, strict=True)}

    async def close(self) -> None:
        await self._redis.aclose()
