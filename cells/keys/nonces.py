"""The memory of nonces, in the cell's Redis: one script, one round trip.

Redis may forget everything, and a slot's new home has never seen what the old one took. So each
slot has a moment, and its epoch, since which this memory is whole; a request that may be older is
UNKNOWN, even one whose nonce is not there. Its own clock counts that moment: Redis's.
"""

from __future__ import annotations

import asyncio
import time

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from cells.breakers.board import Breaker
from router.guard import SlotsHere
from router.signing.gate import Novelty
from router.signing.model import Authentic

log = structlog.get_logger(__name__)

_CALL_WAIT_S = 0.2
_LOOK_INTERVAL_S = 1.0
# How far apart the clocks of two cells, and of a cell and its Redis, may be.
_CLOCKS_APART_S = 2
_PREFIX = "nonce:"
_SINCE = "nonces:since"
# Gone with everything else when Redis has forgotten.
_WHOLE = "nonces:whole"
_TAKE = """
if not redis.call('SET', KEYS[1], '1', 'NX', 'PX', ARGV[5]) then
  return 1
end
local since = redis.call('HGET', KEYS[2], ARGV[1])
local epoch, moment = string.match(since or '', '^(%d+):(%d+)$')
if epoch ~= ARGV[2] then
  moment = redis.call('TIME')[1]
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[2] .. ':' .. moment)
end
if tonumber(ARGV[3]) < tonumber(moment) + tonumber(ARGV[4]) then
  return 2
end
return 0
"""
# Begins the memory of slots that have none of this epoch; of all of them, when it has holes.
_BEGIN = """
local now = redis.call('TIME')[1]
for i = 2, #ARGV, 2 do
  local since = redis.call('HGET', KEYS[1], ARGV[i])
  if ARGV[1] == '1' or string.match(since or '', '^(%d+):') ~= ARGV[i + 1] then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1] .. ':' .. now)
  end
end
redis.call('SET', KEYS[2], '1')
return 0
"""
_ANSWERS = {0: Novelty.NEW, 1: Novelty.REPLAYED, 2: Novelty.UNKNOWN}


class RedisNonces:
    def __init__(self, redis_url: str, breaker: Breaker, here: SlotsHere) -> None:
        self._redis: Redis = Redis.from_url(
            redis_url,
            socket_timeout=_CALL_WAIT_S,
            socket_connect_timeout=_CALL_WAIT_S,
            retry=Retry(NoBackoff(), 0),
        )
        self._take = self._redis.register_script(_TAKE)
        self._begin = self._redis.register_script(_BEGIN)
        self._breaker = breaker
        self._here = here
        self._begun: frozenset[tuple[int, int]] = frozenset()
        # Requests have passed whose nonces are nowhere: the memory has a hole.
        self._holed = False

    async def take(self, slot: int, signed: Authentic, ahead_max_s: int) -> Novelty:
        slot_map = self._here.map
        if slot_map is None or self._breaker.is_open():
            self._holed = True
            return Novelty.UNKNOWN
        left_s = max(1, signed.remember_until - int(time.time()) + 1)
        arguments = (
            slot, slot_map.at(slot).epoch, signed.timestamp,
            ahead_max_s + _CLOCKS_APART_S, left_s * 1000,
        )  # fmt: skip
        try:
            answer = _ANSWERS[int(await self._take([_key(signed), _SINCE], arguments))]
        except (RedisError, OSError, TimeoutError) as error:
            self._breaker.note(error)
            self._holed = True
            log.warning("nonces are not remembered: Redis is away", error=type(error).__name__)
            return Novelty.UNKNOWN
        self._breaker.note(None)
        if answer == Novelty.NEW and self._holed:
            return Novelty.UNKNOWN
        return answer

    async def give_back(self, signed: Authentic) -> None:
        if self._breaker.is_open():
            return
        try:
            await self._redis.delete(_key(signed))
        except (RedisError, OSError, TimeoutError) as error:
            self._breaker.note(error)

    async def run(self) -> None:
        """Begins the memory of each slot as soon as it comes here, for ever."""
        try:
            while True:
                try:
                    await self._look()
                except (RedisError, OSError, TimeoutError) as error:
                    log.info("the memory of nonces is away", error=type(error).__name__)
                await asyncio.sleep(_LOOK_INTERVAL_S)
        finally:
            await self._redis.aclose()

    async def _look(self) -> None:
        slot_map = self._here.map
        if slot_map is None:
            return
        owned = frozenset((slot, slot_map.at(slot).epoch) for slot in self._here.owned())
        holed = self._holed
        if owned == self._begun and not holed and await self._redis.exists(_WHOLE):
            return
        pairs = [number for pair in sorted(owned) for number in pair]
        await self._begin([_SINCE, _WHOLE], [int(holed), *pairs])
        self._begun = owned
        if holed:
            self._holed = False
            log.info("the memory of nonces begins anew")


def _key(signed: Authentic) -> str:
    return f"{_PREFIX}{signed.key.key_id}:{signed.nonce}"
