"""How features lie in a cell's Redis, byte by byte: shared by who writes and who reads. Pure.

{risk}:features2  hash: a feature's identity → its state: salt, position in the stream, filled
{risk}:stream     hash: created (which stream the positions are of), beat (Redis's time when all
                  that the stream held had been applied)
{risk}=<kind><entity>            all that is known of one user, device …: until when it is needed
                                 (ms), then of each feature its salt, a length, and
                                 count, sum: pairs of bucket and value; distinct: buckets, each with
                                 its members while they are few
{risk}:<salt><entity><bucket>    distinct: a HyperLogLog of a bucket's members when they are many

Entities and members are digests: Redis holds no user, address, device or token in clear. Every key
ends by itself with its longest window. A feature that is to be filled anew gets another salt; what
the old one left goes when its entity is written next.

One key an entity and not one a feature: a request is four reads, not thirty, and so is a decision
that is counted; what a call of Redis costs within a script was most of either.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from operator import attrgetter
from typing import Any, NamedTuple

from cells.risk.windows import Plan, counted, slack_buckets
from router.risk.features import Aggregate, Entity, Feature, Observation, counts

# One tag, so that a cluster keeps them on one node.
# Another name than when each feature had keys of its own: those are swept, and this is filled.
FEATURES_KEY = "{risk}:features2"
STREAM_KEY = "{risk}:stream"
# Of what is not known: never there, but within a script.
NOTHING_KEY = "{risk}:-"
PREFIX = "{risk}:"
DIGEST_BYTES = 16
_ENTITIES = tuple(Entity)
# Whom an observation names, in that order.
entities_of: Callable[[Observation], tuple[str, ...]] = attrgetter(*_ENTITIES)
_FEATURE = struct.Struct("<8sBBdHH")
_STATE = struct.Struct("<8sdB")
_COUNT = struct.Struct("<H")
_PLACE = struct.Struct("<d16s")
_ITEM = struct.Struct("<B16sB")
_ADDED = struct.Struct("<HH")
_SUM = struct.Struct("<Id")
_MEMBER = struct.Struct("<I8s")
_ONE_SUM = struct.Struct("<HHId")
# Of a member's digest, eight bytes.
_ONE_MEMBER = struct.Struct("<HHI8s")
# Combinations of operation, action and currency: some dozens.
_KNOWN_MAX = 1000
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


class Places(NamedTuple):
    """What some observations ask: each entity once, though many name it."""

    packed: bytes
    # Of each observation, of each kind of entity: which of the places it is; -1: nobody.
    numbers: Sequence[tuple[int, ...]]


def pack_asked(asked: Sequence[Observation]) -> Places:
    """Places, kind by kind: their number, then a time and a digest of each."""
    kinds: list[dict[tuple[int, str], int]] = [{} for _ in _ENTITIES]
    numbers = []
    for item in asked:
        at_ms, mine = item.at_ms, []
        for known, value in zip(kinds, entities_of(item), strict=True):
            mine.append(known.setdefault((at_ms, value), len(known)) if value else -1)
        numbers.append(tuple(mine))
    parts: list[bytes] = []
    for known in kinds:
        parts.append(_COUNT.pack(len(known)))
        parts += [_PLACE.pack(float(at_ms), digest(value)) for at_ms, value in known]
    return Places(b"".join(parts), numbers)


def unpack_values(raw: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(raw) // 8}d", raw)


class _Part(NamedTuple):
    """A feature as an observation of some kind adds to it."""

    number: int
    bucket_ms: int
    # A distinct count's members; -1: none.
    of: int
    sums: bool


class Packing:
    """Additions of a plan's features as the writer's script reads them: as
    `router.risk.features.additions` says, without an object for each."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        # By operation, action and currency: of each kind of entity, the features that count it.
        self._known: dict[tuple[str, str, str], Sequence[tuple[int, Sequence[_Part]]]] = {}

    def pack(self, seen: Iterable[Observation]) -> bytes:
        """Entity by entity: kind, digest, number of features; of each feature its number, how many
        additions, and these."""
        entities: dict[tuple[int, str], dict[int, dict[Any, int]]] = {}
        for item in seen:
            values = entities_of(item)
            for kind, parts in self._parts_of(item.operation, item.action, item.currency):
                key = values[kind]
                if key:
                    _add(entities.setdefault((kind, key), {}), parts, item, values)
        digests = _Digests()
        packed: list[bytes] = []
        for (kind, key), features in entities.items():
            if features:
                packed.append(_ITEM.pack(kind, digests[key], len(features)))
                packed += self._packed(features, digests)
        return b"".join(packed)

    def _packed(
        self, features: Mapping[int, Mapping[Any, int]], digests: Mapping[str, bytes]
    ) -> Iterator[bytes]:
        unique = self.plan.unique.features
        for number, found in features.items():
            is_distinct = unique[number].aggregate == Aggregate.DISTINCT
            if len(found) == 1:
                # Nearly always: it is what happened just now.
                ((place, total),) = found.items()
                if is_distinct:
                    bucket, member = place
                    yield _ONE_MEMBER.pack(number, 1, bucket, digests[member])
                else:
                    yield _ONE_SUM.pack(number, 1, place, counted(total))
                continue
            yield _ADDED.pack(number, len(found))
            if is_distinct:
                for bucket, member in found:
                    yield _MEMBER.pack(bucket, digests[member])
            else:
                for bucket, total in found.items():
                    yield _SUM.pack(bucket, counted(total))

    def _parts_of(
        self, operation: str, action: str, currency: str
    ) -> Sequence[tuple[int, Sequence[_Part]]]:
        of = (operation, action, currency)
        known = self._known.get(of)
        if known is None:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            known = self._known[of] = self._make(*of)
        return known

    def _make(
        self, operation: str, action: str, currency: str
    ) -> Sequence[tuple[int, Sequence[_Part]]]:
        kinds: dict[int, list[_Part]] = {}
        for number, feature in enumerate(self.plan.unique.features):
            if counts(feature, operation, action, currency):
                of = _ENTITIES.index(feature.of) if feature.of is not None else -1
                part = _Part(number, feature.bucket_ms, of, feature.aggregate == Aggregate.SUM)
                kinds.setdefault(_ENTITIES.index(feature.by), []).append(part)
        return tuple(kinds.items())


def _add(
    features: dict[int, dict[Any, int]],
    parts: Sequence[_Part],
    item: Observation,
    values: Sequence[str],
) -> None:
    """To what is added to one entity. Clamped in the end: no number of some hundred of the largest
    is too large for Python."""
    at_ms, amount = item.at_ms, max(item.amount, 0)
    for number, bucket_ms, of, sums in parts:
        bucket = at_ms // bucket_ms
        if of >= 0:
            if values[of]:
                features.setdefault(number, {})[bucket, values[of]] = 1
            continue
        found = features.get(number)
        if found is None:
            found = features[number] = {}
        found[bucket] = found.get(bucket, 0) + (amount if sums else 1)


class _Digests(dict[str, bytes]):
    """Each is made once."""

    def __missing__(self, value: str) -> bytes:
        made = self[value] = digest(value)
        return made
