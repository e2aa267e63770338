"""How features lie in a cell's Redis, byte by byte: shared by who writes and who reads. Pure.

{risk}:features   hash: a feature's identity → its state: salt, position in the stream, filled
{risk}:stream     hash: created (which stream the positions are of), beat (Redis's time when all
                  that the stream held had been applied)
{risk}:<salt><entity>            count, sum: pairs of bucket and value; distinct: buckets, each with
                                 its members while they are few
{risk}:<salt><entity><bucket>    distinct: a HyperLogLog of a bucket's members when they are many

Entities and members are digests: Redis holds no user, address, device or token in clear. Every key
ends by itself with its window. A feature that is to be filled anew gets another salt.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

from cells.risk.windows import Plan, counted, slack_buckets
from router.risk.features import Addition, Aggregate, Entity, Feature, Observation, value_of

# One tag, so that a cluster keeps them on one node.
FEATURES_KEY = "{risk}:features"
STREAM_KEY = "{risk}:stream"
# Of what is not known: never there, but within a script.
NOTHING_KEY = "{risk}:-"
PREFIX = "{risk}:"
DIGEST_BYTES = 16
NOBODY = bytes(DIGEST_BYTES)
_ENTITIES = tuple(Entity)
_FEATURE = struct.Struct("<8sBBdHH")
_STATE = struct.Struct("<8sdB")
_ITEM = struct.Struct("<H16sH")
_SUM = struct.Struct("<Id")
_MEMBER = struct.Struct("<I8s")
_MEMBER_BYTES = 8
# A bucket with more members becomes a HyperLogLog. Which it is depends on its members alone, not on
# their order, so a replay gives the same.
MEMBERS_MAX = 16
STATE_BYTES = _STATE.size


class State(NamedTuple):
    """How far a feature has come."""

    salt: bytes
    # The last message of the stream that it has counted.
    position: int
    # Whether it has caught up with the stream since it began.
    filled: bool

    def pack(self) -> bytes:
        return _STATE.pack(self.salt, float(self.position), self.filled)

    @classmethod
    def unpack(cls, raw: bytes) -> State:
        salt, position, filled = _STATE.unpack(raw)
        return cls(salt, int(position), bool(filled))


def digest(value: str) -> bytes:
    return blake2b(value.encode(), digest_size=DIGEST_BYTES).digest()


def pack_features(features: Sequence[Feature], identities: Mapping[str, bytes]) -> bytes:
    return b"".join(
        _FEATURE.pack(
            identities[feature.name],
            _ENTITIES.index(feature.by),
            feature.aggregate == Aggregate.DISTINCT,
            float(feature.bucket_ms),
            feature.buckets,
            slack_buckets(feature),
        )
        for feature in features
    )


def pack_asked(asked: Sequence[Observation]) -> bytes:
    """A time and the digest of each entity, of each."""
    digests = _Digests({"": NOBODY})
    parts: list[bytes] = []
    for item in asked:
        parts.append(struct.pack("<d", float(item.at_ms)))
        parts += [digests[value_of(item, entity)] for entity in _ENTITIES]
    return b"".join(parts)


def unpack_values(raw: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(raw) // 8}d", raw)


def pack_additions(plan: Plan, additions: Iterable[Addition]) -> bytes:
    """Those of one place together: a place is a feature and an entity."""
    sums: dict[tuple[str, str], dict[int, int]] = {}
    members: dict[tuple[str, str], set[tuple[int, str]]] = {}
    for feature, key, bucket, value, member in additions:
        place = (feature.name, key)
        if member:
            found = members.get(place)
            if found is None:
                found = members[place] = set()
            found.add((bucket, member))
            continue
        buckets = sums.get(place)
        if buckets is None:
            buckets = sums[place] = {}
        # Clamped in the end: no number of 64 of the largest is too large for Python.
        buckets[bucket] = buckets.get(bucket, 0) + (value if value > 0 else 0)
    numbers = {feature.name: number for number, feature in enumerate(plan.unique.features)}
    digests = _Digests()
    parts: list[bytes] = []
    for (name, key), totals in sums.items():
        parts.append(_ITEM.pack(numbers[name], digests[key], len(totals)))
        parts += [_SUM.pack(bucket, float(counted(total))) for bucket, total in totals.items()]
    for (name, key), pairs in members.items():
        parts.append(_ITEM.pack(numbers[name], digests[key], len(pairs)))
        parts += [_MEMBER.pack(bucket, digests[member][:_MEMBER_BYTES]) for bucket, member in pairs]
    return b"".join(parts)


class _Digests(dict[str, bytes]):
    """Each is made once."""

    def __missing__(self, value: str) -> bytes:
        made = self[value] = digest(value)
        return made
