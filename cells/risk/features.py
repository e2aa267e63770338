"""Features as a decision reads them: one script, one round trip for many observations.

Never a long wait and never a guess: while Redis is away, empty, being filled anew, or behind the
stream for too long, it says so and conservative rules decide. docs/risk-features.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from hashlib import sha1

import structlog
from redis.exceptions import NoScriptError, RedisError

from cells.breakers.board import Breaker
from cells.redis import connect_redis
from cells.risk.interface import FeaturesAway
from cells.risk.layout import (
    FEATURES_KEY,
    NOTHING_KEY,
    STREAM_KEY,
    Places,
    pack_asked,
    pack_features,
    unpack_values,
)
from cells.risk.windows import Plan
from router.risk.features import Entity, FeatureSet, Observation

log = structlog.get_logger(__name__)

# KEYS features, stream, one that is there only within a script; ARGV stale_ms, features, places.
# Answers why not, and the values: kind by kind, place by place, of each feature of that kind.
_READ = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local beat = tonumber(redis.call('HGET', KEYS[2], 'beat') or '0')
local features, identities, kinds, at = {}, {}, {{}, {}, {}, {}, {}}, 1
while at <= #ARGV[2] do
  local id, by, distinct, length, buckets, slack, after = struct.unpack('<c8BBdI2I2', ARGV[2], at)
  local f = {distinct = distinct == 1, length = length, buckets = buckets}
  features[#features + 1], identities[#identities + 1] = f, id
  local kind = kinds[by + 1]
  kind[#kind + 1] = f
  f.place, at = #kind, after
end
local filled, salted = false, {}
for i, raw in ipairs(redis.call('HMGET', KEYS[1], unpack(identities))) do
  if raw then
    local salt, _, is_filled = struct.unpack('<c8dB', raw)
    salted[salt] = features[i]
    filled = filled or is_filled == 1
  end
end
if not filled then return {'being filled', ''} end
if now - beat > tonumber(ARGV[1]) then return {'behind the stream', ''} end
local layouts = setmetatable({}, {__index = function(known, size)
  known[size] = '<' .. string.rep('I4d', size / 12)
  return known[size]
end})
local function sum(raw, p, stop, first, last)
  local value = 0
  if stop - p < 36 then
    while p < stop do
      local bucket, add
      bucket, add, p = struct.unpack('<I4d', raw, p)
      if bucket >= first and bucket <= last then value = value + add end
    end
  else
    local pairs_ = {struct.unpack(layouts[stop - p], raw, p)}
    for i = 1, #pairs_ - 1, 2 do
      if pairs_[i] >= first and pairs_[i] <= last then value = value + pairs_[i + 1] end
    end
  end
  return math.min(value, 9007199254740991)
end
local function distinct(key, raw, p, stop, first, last)
  local known, members, logs = {}, {}, {}
  while p < stop do
    local bucket, count = struct.unpack('<I4B', raw, p)
    local held = count == 255 and 0 or count
    if bucket >= first and bucket <= last then
      if count == 255 then logs[#logs + 1] = key .. string.sub(raw, p, p + 3) end
      for at = p + 5, p + 4 + held * 8, 8 do
        local member = string.sub(raw, at, at + 7)
        if not known[member] then
          known[member] = true
          members[#members + 1] = member
        end
      end
    end
    p = p + 5 + held * 8
  end
  if #logs == 0 then return #members end
  if #members == 0 then return redis.call('PFCOUNT', unpack(logs)) end
  redis.call('PFMERGE', KEYS[3], unpack(logs))
  redis.call('PFADD', KEYS[3], unpack(members))
  local count = redis.call('PFCOUNT', KEYS[3])
  redis.call('DEL', KEYS[3])
  return count
end
local answers, p = {}, 1
for kind = 1, 5 do
  local mine, count, keys, times = kinds[kind]
  count, p = struct.unpack('<I2', ARGV[3], p)
  local format, prefix = '<' .. string.rep('d', #mine), '{risk}=' .. string.char(kind - 1)
  if #mine == 0 then
    p, count = p + count * 24, 0
  end
  keys, times = {}, {}
  for i = 1, count do
    local entity
    times[i], entity, p = struct.unpack('<dc16', ARGV[3], p)
    keys[i] = prefix .. entity
  end
  for i, raw in ipairs(count > 0 and redis.call('MGET', unpack(keys)) or {}) do
    local values, ms, q = {}, times[i], 9
    for n = 1, #mine do values[n] = 0 end
    while raw and q <= #raw do
      local salt, length, after = struct.unpack('<c8I2', raw, q)
      local f = salted[salt]
      q = after + length
      if f then
        local last = math.floor(ms / f.length)
        local first = last - f.buckets + 1
        if f.distinct then
          local key = '{risk}:' .. salt .. string.sub(keys[i], 9)
          values[f.place] = distinct(key, raw, after, q, first, last)
        else
          values[f.place] = sum(raw, after, q, first, last)
        end
      end
    end
    answers[#answers + 1] = struct.pack(format, unpack(values))
  end
end
return {'', table.concat(answers)}
"""
_READ_SHA1 = sha1(_READ.encode(), usedforsecurity=False).hexdigest()


class RedisFeatures:
    """Implements Features over what the cell's Consumer keeps."""

    def __init__(
        self, redis_url: str, breaker: Breaker, *, wait_s: float = 0.02, stale_s: float = 30.0
    ) -> None:
        """`wait_s`: for an answer. `stale_s`: how far behind the stream still is an answer."""
        self._redis = connect_redis(redis_url, wait_s)
        self._breaker = breaker
        self._wait_s = wait_s
        self._stale_ms = int(stale_s * 1000)
        self._plan = Plan.of(FeatureSet())
        self._packed = b""
        # By kind of entity: names with the place of their value, how many values, and all as 0.
        self._names: list[list[tuple[str, int]]] = []
        self._widths: list[int] = []
        self._nothing: list[dict[str, int]] = []

    async def read(
        self, document: FeatureSet, asked: Sequence[Observation]
    ) -> Sequence[Mapping[str, int]]:
        if not document.features or not asked:
            return [{} for _ in asked]
        if self._breaker.is_open():
            raise FeaturesAway("Redis is left alone for now")
        self._plan_for(document)
        places = pack_asked(asked)
        try:
            async with asyncio.timeout(self._wait_s):
                why_not, raw = await self._run(places.packed)
        except (RedisError, OSError, TimeoutError) as error:
            self._breaker.note(error)
            raise FeaturesAway(type(error).__name__) from error
        self._breaker.note(None)
        if why_not:
            raise FeaturesAway(why_not.decode())
        return self._values(places, [int(value) for value in unpack_values(raw)])

    def _values(self, places: Places, numbers: Sequence[int]) -> Sequence[Mapping[str, int]]:
        """From values of places to values of each observation, by name."""
        starts, at = [], 0
        for kind, width in enumerate(self._widths):
            starts.append(at)
            count = 1 + max((mine[kind] for mine in places.numbers), default=-1)
            at += count * width
        found: list[Mapping[str, int]] = []
        for mine in places.numbers:
            values: dict[str, int] = {}
            for kind, names in enumerate(self._names):
                if mine[kind] < 0:
                    values.update(self._nothing[kind])
                    continue
                start = starts[kind] + mine[kind] * self._widths[kind]
                for name, place in names:
                    values[name] = numbers[start + place]
            found.append(values)
        return found

    def _plan_for(self, document: FeatureSet) -> None:
        if document is self._plan.document:
            return
        self._plan = plan = Plan.of(document)
        unique = plan.unique.features
        self._packed = pack_features(unique, plan.identities)
        kinds = list(Entity)
        of_kind = [[feature for feature in unique if feature.by == kind] for kind in kinds]
        self._widths = [len(found) for found in of_kind]
        places = {
            plan.identities[feature.name]: place
            for found in of_kind
            for place, feature in enumerate(found)
        }
        self._names = [
            [
                (feature.name, places[plan.identities[feature.name]])
                for feature in document.features
                if feature.by == kind
            ]
            for kind in kinds
        ]
        self._nothing = [dict.fromkeys((name for name, _ in names), 0) for names in self._names]

    async def _run(self, asked: bytes) -> tuple[bytes, bytes]:
        arguments = (3, FEATURES_KEY, STREAM_KEY, NOTHING_KEY, self._stale_ms, self._packed, asked)
        try:
            found = await self._redis.evalsha(_READ_SHA1, *arguments)
        except NoScriptError:
            # A Redis that was started anew has forgotten it.
            found = await self._redis.eval(_READ, *arguments)
        return found[0], found[1]

    async def close(self) -> None:
        await self._redis.aclose()
