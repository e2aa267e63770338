"""What happened becomes features in the cell's Redis: each message of the stream exactly once.

What a message adds and how far each feature has come change in one script, which does nothing
unless they had come as far as its caller believes. So a consumer may be killed anywhere, repeat
itself, or live twice, and no observation counts twice or is left out.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from hashlib import sha1
from typing import Any

import structlog
from redis.exceptions import NoScriptError

from cells.redis import connect_redis
from cells.risk.layout import (
    FEATURES_KEY,
    MEMBERS_MAX,
    PREFIX,
    STATE_BYTES,
    STREAM_KEY,
    Packing,
    State,
    pack_features,
)
from cells.risk.windows import Plan
from router.risk.features import FeatureSet, Observation

log = structlog.get_logger(__name__)

# Of the consumer, which nobody waits for.
_CALL_WAIT_S = 5.0
_ABSENT = bytes(STATE_BYTES)
_SCAN_COUNT = 1000

# KEYS features, stream; ARGV features, their states as believed, their states then, additions, and
# how long ago the last message was stored that is applied then (-1: says nothing), members that a
# bucket holds by themselves. Answers whether it was done.
_APPLY = """
local features, salted, ids, states, at, n = {}, {}, {}, {}, 1, 0
while at <= #ARGV[1] do
  local id, by, distinct, length, buckets, slack, after = struct.unpack('<c8BBdI2I2', ARGV[1], at)
  local state = string.sub(ARGV[3], n * 17 + 1, n * 17 + 17)
  n = n + 1
  ids[n] = id
  states[n * 2 - 1], states[n * 2] = id, state
  local salt = string.sub(state, 1, 8)
  features[n] = {distinct = distinct == 1, length = length, buckets = buckets, slack = slack,
    salt = salt, prefix = '{risk}:' .. salt}
  salted[salt] = true
  at = after
end
for i, held in ipairs(redis.call('HMGET', KEYS[1], unpack(ids))) do
  local believed = string.sub(ARGV[2], i * 17 - 16, i * 17)
  if (held or string.rep('\\0', 17)) ~= believed then return 0 end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function ends(f, bucket) return (bucket + f.buckets) * f.length + 60000 end
local all
local function is_known(salt)
  if salted[salt] then return true end
  if not all then
    all = {}
    for _, raw in ipairs(redis.call('HVALS', KEYS[1])) do all[string.sub(raw, 1, 8)] = true end
  end
  return all[salt]
end
local function parsed(f, raw)
  local found, newest, p = {}, -1, 1
  while p <= #raw do
    local bucket, value
    if f.distinct then
      bucket, value, p = struct.unpack('<I4B', raw, p)
      found[bucket] = {n = value}
      if value < 255 then
        for at = p, p + value * 8 - 1, 8 do found[bucket][string.sub(raw, at, at + 7)] = true end
        p = p + value * 8
      end
    else
      bucket, value, p = struct.unpack('<I4d', raw, p)
      found[bucket] = value
    end
    if newest < bucket then newest = bucket end
  end
  return found, newest
end
local function add_member(f, key, found, bucket, member)
  local held = found[bucket] or {n = 0}
  found[bucket] = held
  if held[member] then return end
  if held.n < tonumber(ARGV[6]) then
    held[member], held.n = true, held.n + 1
    return
  end
  local log = key .. struct.pack('<I4', bucket)
  if held.n < 255 then
    for other in pairs(held) do
      if other ~= 'n' then redis.call('PFADD', log, other) end
    end
    found[bucket] = {n = 255}
  end
  redis.call('PFADD', log, member)
  redis.call('PEXPIREAT', log, string.format('%.0f', ends(f, bucket)))
end
local function kept(f, found, newest)
  local oldest, parts = newest - f.buckets + 1 - f.slack, {}
  for bucket, value in pairs(found) do
    if bucket >= oldest and f.distinct then
      parts[#parts + 1] = struct.pack('<I4B', bucket, value.n)
      for member in pairs(value) do
        if member ~= 'n' then parts[#parts + 1] = member end
      end
    elseif bucket >= oldest then
      parts[#parts + 1] = struct.pack('<I4d', bucket, value)
    end
  end
  return table.concat(parts)
end
local items, at = ARGV[4], 1
local function one(f, raw, entity, count)
  local key, found, newest = f.prefix .. entity, parsed(f, raw)
  for _ = 1, count do
    local bucket, value, member
    if f.distinct then
      bucket, member, at = struct.unpack('<I4c8', items, at)
    else
      bucket, value, at = struct.unpack('<I4d', items, at)
    end
    if ends(f, bucket) > now then
      if f.distinct then
        add_member(f, key, found, bucket, member)
      else
        found[bucket] = math.min((found[bucket] or 0) + value, 9007199254740991)
      end
      if newest < bucket then newest = bucket end
    end
  end
  if newest >= 0 and ends(f, newest) > now then return kept(f, found, newest), ends(f, newest) end
end
while at <= #items do
  local kind, entity, count
  kind, entity, count, at = struct.unpack('<Bc16B', items, at)
  local key = '{risk}=' .. string.char(kind) .. entity
  local raw = redis.call('GET', key) or ''
  local sections, order, last, p = {}, {}, 0, 1
  if #raw > 0 then last, p = struct.unpack('<d', raw, 1) end
  while p <= #raw do
    local salt, length, after = struct.unpack('<c8I2', raw, p)
    p = after + length
    if is_known(salt) then
      order[#order + 1], sections[salt] = salt, string.sub(raw, after, p - 1)
    end
  end
  for _ = 1, count do
    local number, additions
    number, additions, at = struct.unpack('<I2I2', items, at)
    local f = features[number + 1]
    local then_, until_ = one(f, sections[f.salt] or '', entity, additions)
    if then_ then
      if not sections[f.salt] then order[#order + 1] = f.salt end
      sections[f.salt] = then_
      if until_ > last then last = until_ end
    end
  end
  if last > now then
    local parts = {struct.pack('<d', last)}
    for _, salt in ipairs(order) do
      parts[#parts + 1] = salt .. struct.pack('<I2', #sections[salt])
      parts[#parts + 1] = sections[salt]
    end
    redis.call('SET', key, table.concat(parts), 'PXAT', string.format('%.0f', last))
  end
end
redis.call('HSET', KEYS[1], unpack(states))
if tonumber(ARGV[5]) >= 0 then
  redis.call('HSET', KEYS[2], 'beat', string.format('%.0f', now - tonumber(ARGV[5])))
end
return 1
"""
_APPLY_SHA1 = sha1(_APPLY.encode(), usedforsecurity=False).hexdigest()
# KEYS features, stream; ARGV when the stream was made, its last message. Positions of another
# stream or of lost messages mean nothing: what is known stays known, and counting goes on from what
# is there. Answers whether it was so.
_ADOPT = """
local held = redis.call('HGET', KEYS[2], 'created')
local last, moved = tonumber(ARGV[2]), 0
if held ~= ARGV[1] then
  redis.call('HSET', KEYS[2], 'created', ARGV[1])
  if held then last = 0 end
end
for _, id in ipairs(redis.call('HKEYS', KEYS[1])) do
  local raw = redis.call('HGET', KEYS[1], id)
  if struct.unpack('<d', raw, 9) > last then
    local put = string.sub(raw, 1, 8) .. struct.pack('<d', last) .. string.sub(raw, 17)
    redis.call('HSET', KEYS[1], id, put)
    moved = 1
  end
end
return moved
"""
# KEYS features; ARGV keys. Ends those whose salt is no feature's; looks again, for features begin.
_SWEEP = """
local salts, dead = {}, {}
for _, raw in ipairs(redis.call('HVALS', KEYS[1])) do salts[string.sub(raw, 1, 8)] = true end
for _, key in ipairs(ARGV) do
  if not salts[string.sub(key, 8, 15)] then dead[#dead + 1] = key end
end
if #dead == 0 then return 0 end
return redis.call('UNLINK', unpack(dead))
"""


class FeatureWriter:
    """Raises RedisError, OSError or TimeoutError; nothing is half done then."""

    def __init__(self, redis_url: str) -> None:
        self._redis = connect_redis(redis_url, _CALL_WAIT_S)
        self._packing = Packing(Plan.of(FeatureSet()))

    async def states(self, plan: Plan) -> Mapping[bytes, State]:
        """Of the features that have one, by identity."""
        identities = [plan.identities[feature.name] for feature in plan.unique.features]
        if not identities:
            return {}
        found: Sequence[Any] = await self._redis.hmget(FEATURES_KEY, identities)
        return {
            identity: State.unpack(raw)
            for identity, raw in zip(identities, found, strict=True)
            if raw is not None
        }

    async def apply(
        self,
        plan: Plan,
        believed: Mapping[bytes, State],
        then: Mapping[bytes, State],
        seen: Sequence[Observation],
        *,
        age_ms: int | None = None,
    ) -> bool:
        """Adds it all and moves the states of all the plan's features, or does nothing: False when
        a state is not as believed (one that is absent must be absent).

        `age_ms`: how long ago the last message was stored that is counted then.
        """
        unique = plan.unique.features
        order = [plan.identities[feature.name] for feature in unique]
        held = [believed[item].pack() if item in believed else _ABSENT for item in order]
        arguments = (
            2,
            FEATURES_KEY,
            STREAM_KEY,
            pack_features(unique, plan.identities),
            b"".join(held),
            b"".join(then[item].pack() for item in order),
            self._packing_of(plan).pack(seen),
            -1 if age_ms is None else age_ms,
            MEMBERS_MAX,
        )
        try:
            done = await self._redis.evalsha(_APPLY_SHA1, *arguments)
        except NoScriptError:
            done = await self._redis.eval(_APPLY, *arguments)
        return bool(done)

    def _packing_of(self, plan: Plan) -> Packing:
        if self._packing.plan is not plan:
            self._packing = Packing(plan)
        return self._packing

    async def adopt(self, created: str, last: int) -> bool:
        """Which stream the positions are of; True when they were another's, or of messages that it
        has lost."""
        return bool(await self._redis.eval(_ADOPT, 2, FEATURES_KEY, STREAM_KEY, created, last))

    async def forget(self) -> None:
        """All features are to be filled anew, from the first message."""
        await self._redis.delete(FEATURES_KEY)

    async def sweep(self) -> int:
        """Ends what features of other salts left, which would else stay for its window."""
        kept = {FEATURES_KEY.encode(), STREAM_KEY.encode()}
        swept = cursor = 0
        while True:
            cursor, keys = await self._redis.scan(cursor, match=f"{PREFIX}*", count=_SCAN_COUNT)
            for first in range(0, len(keys), _SCAN_COUNT):
                part = [key for key in keys[first : first + _SCAN_COUNT] if key not in kept]
                swept += int(await self._redis.eval(_SWEEP, 1, FEATURES_KEY, *part))
            if cursor == 0:
                return swept

    async def close(self) -> None:
        await self._redis.aclose()


def new_state() -> State:
    return State(secrets.token_bytes(8), 0, filled=False)
