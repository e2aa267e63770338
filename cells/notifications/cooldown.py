"""Cool-downs of slow or failing endpoints, in the cell's Redis.

A hint, not a record: with Redis away every endpoint counts as fine (it fails open), and the
back-off of each delivery, in the database, still spares the endpoint. Times are Redis's own.
"""

from __future__ import annotations

import asyncio

import structlog
from redis.exceptions import RedisError

from cells.redis import connect_redis

log = structlog.get_logger(__name__)

_ENDS = "webhooks:cooling"
_FAILURES = "webhooks:failures:"
# Failures in a row are forgotten after this long without another.
_FAILURES_TTL_S = 3600
_CALL_WAIT_S = 0.5
# After a fault Redis is left alone for so long, so that its absence costs no time.
_AWAY_S = 2.0
# Endpoints that one answer names; the rest are tried and cool down again.
_COUNT_MAX = 1000


class CoolDowns:
    def __init__(self, redis_url: str) -> None:
        self._redis = connect_redis(redis_url, _CALL_WAIT_S, text=True)
        self._away_until = 0.0

    async def cooling(self) -> frozenset[str]:
        """Merchants whose endpoints are to be left alone now."""
        if self._is_away():
            return frozenset()
        try:
            now_s = await self._now_s()
            found = await self._redis.zrangebyscore(_ENDS, now_s, "+inf", start=0, num=_COUNT_MAX)
        except (RedisError, OSError, TimeoutError) as error:
            self._went_away(error)
            return frozenset()
        return frozenset(str(merchant_id) for merchant_id in found)

    async def count_failure(self, merchant_id: str) -> int:
        """How many failures in a row the endpoint has now; 1 when Redis is away."""
        if self._is_away():
            return 1
        key = _FAILURES + merchant_id
        try:
            async with self._redis.pipeline() as pipeline:
                pipeline.incr(key)
                pipeline.expire(key, _FAILURES_TTL_S)
                counted, _ = await pipeline.execute()
        except (RedisError, OSError, TimeoutError) as error:
            self._went_away(error)
            return 1
        return int(counted)

    async def cool(self, merchant_id: str, seconds: float) -> None:
        """Leaves the endpoint alone for that long from now."""
        if self._is_away():
            return
        try:
            now_s = await self._now_s()
            async with self._redis.pipeline() as pipeline:
                pipeline.zadd(_ENDS, {merchant_id: now_s + seconds})
                pipeline.zremrangebyscore(_ENDS, "-inf", now_s)
                await pipeline.execute()
        except (RedisError, OSError, TimeoutError) as error:
            self._went_away(error)

    async def forget(self, merchant_id: str) -> None:
        """The endpoint is well again."""
        if self._is_away():
            return
        try:
            async with self._redis.pipeline() as pipeline:
                pipeline.delete(_FAILURES + merchant_id)
                pipeline.zrem(_ENDS, merchant_id)
                await pipeline.execute()
        except (RedisError, OSError, TimeoutError) as error:
            self._went_away(error)

    async def close(self) -> None:
        await self._redis.aclose()

    async def _now_s(self) -> float:
        seconds, microseconds = await self._redis.time()
        return int(seconds) + int(microseconds) / 1e6

    def _is_away(self) -> bool:
        return asyncio.get_running_loop().time() < self._away_until

    def _went_away(self, error: BaseException) -> None:
        self._away_until = asyncio.get_running_loop().time() + _AWAY_S
        log.warning("Redis is away; no endpoint cools down", error=type(error).__name__)
