"""Token buckets in Redis: one script, one round trip, on Redis's own clock (pitfall 16).

Redis away costs a call nothing but one bounded wait: the breaker opens, and each policy says
whether its calls then pass or not.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from redis.exceptions import NoScriptError, RedisError

from cells.breakers.board import Breaker
from cells.redis import connect_redis
from router.admission.rules import NamedRate
from router.policies.model import RedisAway

log = structlog.get_logger(__name__)

_CALL_WAIT_S = 0.1
_AWAY_RETRY_MS = 1000
_PREFIX = "rate:"
# A token of every bucket, or of none. Answers 0, or the number of the bucket that is empty the
# longest and for how many ms.
_SCRIPT = """
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local left, longest, which = {}, 0, 0
for i, key in ipairs(KEYS) do
  local per_ms, burst = ARGV[2 * i - 1] / 1000, tonumber(ARGV[2 * i])
  local held = redis.call('HMGET', key, 'n', 't')
  local n, t = tonumber(held[1]) or burst, tonumber(held[2]) or now
  n = math.min(burst, n + math.max(0, now - t) * per_ms)
  left[i] = n
  if n < 1 and (1 - n) / per_ms > longest then
    longest, which = (1 - n) / per_ms, i
  end
end
if which > 0 then
  return {which, math.ceil(longest)}
end
for i, key in ipairs(KEYS) do
  redis.call('HSET', key, 'n', tostring(left[i] - 1), 't', tostring(now))
  redis.call('PEXPIRE', key, math.ceil(ARGV[2 * i] / ARGV[2 * i - 1] * 1000) + 1000)
end
return {0, 0}
"""


class RedisRates:
    def __init__(
        self, redis_url: str, breaker: Breaker, *, call_wait_s: float = _CALL_WAIT_S
    ) -> None:
        """`call_wait_s`: who has no answer by then goes by the policy for a Redis that is away."""
        self._redis = connect_redis(redis_url, call_wait_s)
        self._breaker = breaker
        self._digest = ""

    async def take(self, buckets: Sequence[tuple[str, NamedRate]]) -> tuple[str, int] | None:
        if self._breaker.is_open():
            return _without_redis(buckets)
        keys = [_PREFIX + name for name, _ in buckets]
        numbers = [number for _, item in buckets for number in (item.rate.per_s, item.rate.burst)]
        try:
            which, wait_ms = await self._run(keys, numbers)
        except (RedisError, OSError, TimeoutError) as error:
            self._breaker.note(error)
            log.warning("no rate limits: Redis is away", error=type(error).__name__)
            return _without_redis(buckets)
        self._breaker.note(None)
        return (buckets[which - 1][0], int(wait_ms)) if which else None

    async def _run(self, keys: list[str], numbers: list[float]) -> tuple[int, int]:
        if not self._digest:
            self._digest = str(await self._redis.script_load(_SCRIPT))
        try:
            found = await self._redis.evalsha(self._digest, len(keys), *keys, *numbers)
        except NoScriptError:
            # A Redis that was started anew has forgotten it.
            self._digest = str(await self._redis.script_load(_SCRIPT))
            found = await self._redis.evalsha(self._digest, len(keys), *keys, *numbers)
        return int(found[0]), int(found[1])

    async def close(self) -> None:
        await self._redis.aclose()


def _without_redis(buckets: Sequence[tuple[str, NamedRate]]) -> tuple[str, int] | None:
    for name, item in buckets:
        if item.away == RedisAway.CLOSED:
            return name, _AWAY_RETRY_MS
    return None
