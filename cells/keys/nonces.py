"""The memory of nonces, in the cell's Redis: one script, one round trip for all who wait.

Redis may forget everything, and a slot's new home has never seen what the old one took. So each
slot has a moment, and its epoch, since which this memory is whole; a request that may be older is
UNKNOWN, even one whose nonce is not there. Its own clock counts that moment: Redis's.
"""

from __future__ import annotations

import asyncio
import time
from struct import Struct

import structlog
from redis.exceptions import RedisError

from cells.breakers.board import Breaker
from cells.redis import connect_redis
from router.guard import SlotsHere
from router.signing.gate import Novelty
from router.signing.model import Authentic

log = structlog.get_logger(__name__)

_CALL_WAIT_S = 0.2
_LOOK_INTERVAL_S = 1.0
# Nonces of one call: what comes while one is under way waits for the next (a call costs as much as
# a hundred nonces).
_BATCH_MAX = 256
# While several come at once the next call waits so long for more, as a lane does: the lane behind
# makes larger groups of them, too. A lone one does not wait.
_GATHER_S = 0.004
# What may wait; more are not looked up, and in doubt.
_QUEUE_MAX = 4096
# How far apart the clocks of two cells, and of a cell and its Redis, may be.
_CLOCKS_APART_S = 2
_PREFIX = "nonce:"
_SINCE = "nonces:since"
# Gone with everything else when Redis has forgotten.
_WHOLE = "nonces:whole"
# Of many requests at once, in one packed argument (a Redis client takes longer for an argument than
# Redis for a nonce): for each its slot, epoch, the moment before which the memory must have begun,
# for how many ms it is remembered, and its key. Answers a digit each.
_TAKE = """
local answers, begun = {}, {}
local now = redis.call('TIME')[1]
local at, asked = 1, ARGV[1]
while at <= #asked do
  local slot, epoch, early, px, key
  slot, epoch, early, px, key, at = struct.unpack('<I2dddI1c0', asked, at)
  if redis.call('SET', key, '1', 'NX', 'PX', string.format('%.0f', px)) then
    epoch = string.format('%.0f', epoch)
    local since = begun[slot]
    if not since then
      since = redis.call('HGET', KEYS[1], slot) or ''
    end
    local known, moment = string.match(since, '^(%d+):(%d+)$')
    if known ~= epoch then
      moment = now
      since = epoch .. ':' .. moment
      redis.call('HSET', KEYS[1], slot, since)
    end
    begun[slot] = since
    answers[#answers + 1] = early < tonumber(moment) and '2' or '0'
  else
    answers[#answers + 1] = '1'
  end
end
return table.concat(answers)
"""
_ASKED = Struct("<HdddB")
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
# By the byte of its digit.
_ANSWERS = {
    ord("0"): Novelty.NEW, ord("1"): Novelty.REPLAYED, ord("2"): Novelty.UNKNOWN
}  # fmt: skip


class RedisNonces:
    def __init__(self, redis_url: str, breaker: Breaker, here: SlotsHere) -> None:
        self._redis = connect_redis(redis_url, _CALL_WAIT_S)
        self._take = self._redis.register_script(_TAKE)
        self._begin = self._redis.register_script(_BEGIN)
        self._breaker = breaker
        self._here = here
        self._begun: frozenset[tuple[int, int]] = frozenset()
        self._waiting: list[tuple[bytes, asyncio.Future[Novelty]]] = []
        self._came = asyncio.Event()
        # Requests have passed whose nonces are nowhere: how often the memory got a hole, and how
        # many of those were made good by beginning it anew.
        self._holes = self._mended = 0

    async def take(self, slot: int, signed: Authentic, ahead_max_s: int) -> Novelty:
        slot_map = self._here.map
        if slot_map is None:
            return Novelty.UNKNOWN
        if len(self._waiting) >= _QUEUE_MAX:
            self._holes += 1
            return Novelty.UNKNOWN
        left_s = max(1, signed.remember_until - int(time.time()) + 1)
        early = signed.timestamp - ahead_max_s - _CLOCKS_APART_S
        key = _key(signed).encode()
        asked = _ASKED.pack(slot, slot_map.at(slot).epoch, early, left_s * 1000, len(key)) + key
        answer: asyncio.Future[Novelty] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, answer))
        self._came.set()
        return await answer

    async def _take_together(self) -> None:
        """For ever: what has come since the last call, in one. Ends each wait, within a bound."""
        together = 1
        while True:
            await self._came.wait()
            if 1 < together < _BATCH_MAX:
                await asyncio.sleep(_GATHER_S)
            together = min(len(self._waiting), _BATCH_MAX)
            batch, self._waiting = self._waiting[:_BATCH_MAX], self._waiting[_BATCH_MAX:]
            if not self._waiting:
                self._came.clear()
            novelties = await self._look_up([asked for asked, _ in batch])
            for (_, answer), novelty in zip(batch, novelties, strict=True):
                if not answer.done():
                    # One whose caller has gone has taken its nonce nevertheless.
                    answer.set_result(novelty)

    async def _look_up(self, asked: list[bytes]) -> list[Novelty]:
        unknown = [Novelty.UNKNOWN] * len(asked)
        if self._breaker.is_open():
            self._holes += 1
            return unknown
        try:
            answers: bytes = await self._take([_SINCE], [b"".join(asked)])
        except (RedisError, OSError, TimeoutError) as error:
            self._breaker.note(error)
            self._holes += 1
            log.warning("nonces are not remembered: Redis is away", error=type(error).__name__)
            return unknown
        self._breaker.note(None)
        found = [_ANSWERS[answer] for answer in answers]
        if self._holes == self._mended:
            return found
        return [Novelty.UNKNOWN if item == Novelty.NEW else item for item in found]

    async def give_back(self, signed: Authentic) -> None:
        if self._breaker.is_open():
            return
        try:
            await self._redis.delete(_key(signed))
        except (RedisError, OSError, TimeoutError) as error:
            self._breaker.note(error)

    async def run(self) -> None:
        """For ever. Without it nobody's nonce is looked up."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._take_together())
                group.create_task(self._begin_memories())
        finally:
            await self._redis.aclose()

    async def _begin_memories(self) -> None:
        """Begins the memory of each slot as soon as it comes here."""
        while True:
            try:
                await self._look()
            except (RedisError, OSError, TimeoutError) as error:
                log.info("the memory of nonces is away", error=type(error).__name__)
            await asyncio.sleep(_LOOK_INTERVAL_S)

    async def _look(self) -> None:
        slot_map = self._here.map
        if slot_map is None:
            return
        owned = frozenset((slot, slot_map.at(slot).epoch) for slot in self._here.owned())
        holes = self._holes
        holed = holes != self._mended
        if owned == self._begun and not holed and await self._redis.exists(_WHOLE):
            return
        pairs = [number for pair in sorted(owned) for number in pair]
        await self._begin([_SINCE, _WHOLE], [int(holed), *pairs])
        self._begun, self._mended = owned, holes
        if holed:
            log.info("the memory of nonces begins anew")


def _key(signed: Authentic) -> str:
    return f"{_PREFIX}{signed.key.key_id}:{signed.nonce}"
