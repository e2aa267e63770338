"""Features as a decision reads them: one script, one round trip for many observations.

Never a long wait and never a guess: while Redis is away, empty, being filled anew, or behind the
stream for too long, it says so and conservative rules decide. docs/risk-features.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from hashlib import sha1

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from cells.breakers.board import Breaker
from cells.risk.interface import FeaturesAway
from cells.risk.layout import (
    FEATURES_KEY,
    NOTHING_KEY,
    STREAM_KEY,
    pack_asked,
    pack_features,
    unpack_values,
)
from cells.risk.windows import Plan
from router.risk.features import FeatureSet, Observation

log = structlog.get_logger(__name__)

# KEYS features, stream, one that is there only within a script; ARGV stale_ms, features,
# observations. Answers why not, and the values.
_READ = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local beat = tonumber(redis.call('HGET', KEYS[2], 'beat') or '0')
local features, identities, at = {}, {}, 1
while at <= #ARGV[2] do
  local id, by, distinct, length, buckets, slack, after = struct.unpack('<c8BBdI2I2', ARGV[2], at)
  features[#features + 1] = {by = by, distinct = distinct == 1, length = length, buckets = buckets}
  identities[#identities + 1] = id
  at = after
end
local filled = false
for i, raw in ipairs(redis.call('HMGET', KEYS[1], unpack(identities))) do
  if raw then
    local salt, _, is_filled = struct.unpack('<c8dB', raw)
    features[i].prefix = '{risk}:' .. salt
    filled = filled or is_filled == 1
  end
end
if not filled then return {'being filled', ''} end
if now - beat > tonumber(ARGV[1]) then return {'behind the stream', ''} end
local nobody, answers, counts = string.rep('\\0', 16), {}, {}
local layouts = setmetatable({}, {__index = function(known, size)
  known[size] = '<' .. string.rep('I4d', size / 12)
  return known[size]
end})
local function distinct(key, raw, first, last)
  local known, members, logs, p = {}, {}, {}, 1
  while p <= #raw do
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
local format = '<' .. string.rep('d', #features)
for at = 1, #ARGV[3], 88 do
  local ms, keys, values = struct.unpack('<d', ARGV[3], at), {}, {}
  for i, f in ipairs(features) do
    local from = at + 8 + f.by * 16
    local entity = string.sub(ARGV[3], from, from + 15)
    keys[i] = f.prefix and entity ~= nobody and f.prefix .. entity or KEYS[3]
  end
  for i, raw in ipairs(redis.call('MGET', unpack(keys))) do
    local f, value = features[i], 0
    local last = raw and math.floor(ms / f.length)
    local first = raw and last - f.buckets + 1
    if raw and f.distinct then
      local asked = keys[i] .. last
      counts[asked] = counts[asked] or distinct(keys[i], raw, first, last)
      value = counts[asked]
    elseif raw then
      local pairs_ = {struct.unpack(layouts[#raw], raw)}
      for p = 1, #pairs_ - 1, 2 do
        if pairs_[p] >= first and pairs_[p] <= last then value = value + pairs_[p + 1] end
      end
      value = math.min(value, 9007199254740991)
    end
    values[i] = value
  end
  answers[#answers + 1] = struct.pack(format, unpack(values))
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
        self._redis: Redis = Redis.from_url(
            redis_url,
            socket_timeout=wait_s,
            # A connection takes more turns of the event loop than an answer.
            socket_connect_timeout=wait_s,
            retry=Retry(NoBackoff(), 0),
        )
        self._breaker = breaker
        self._wait_s = wait_s
        self._stale_ms = int(stale_s * 1000)
        self._plan = Plan.of(FeatureSet())
        self._packed = b""

    async def read(
        self, document: FeatureSet, asked: Sequence[Observation]
    ) -> Sequence[Mapping[str, int]]:
        if not document.features or not asked:
            return [{} for _ in asked]
        if self._breaker.is_open():
            raise FeaturesAway("Redis is left alone for now")
        self._plan_for(document)
        try:
            async with asyncio.timeout(self._wait_s):
                why_not, raw = await self._run(pack_asked(asked))
        except (RedisError, OSError, TimeoutError) as error:
            self._breaker.note(error)
            raise FeaturesAway(type(error).__name__) from error
        self._breaker.note(None)
        if why_not:
            raise FeaturesAway(why_not.decode())
        names = [feature.name for feature in document.features]
        numbers = [int(value) for value in unpack_values(raw)]
        count = len(names)
        return [
            dict(zip(names, numbers[start : start + count], strict=True))
            for start in range(0, len(numbers), count)
        ]

    def _plan_for(self, document: FeatureSet) -> None:
        if document is not self._plan.document:
            self._plan = Plan.of(document)
            self._packed = pack_features(document.features, self._plan.identities)

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
