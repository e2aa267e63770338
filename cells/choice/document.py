"""A decision as JSON: column `decision` of `charges` and `payouts`, and what `cellctl` explains.

It holds what was known and what followed, and names the policies by digest and revision; with them
it can be decided again (`replay`). No card's number is in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from cells.choice.beliefs import NOTHING, believing, standing
from cells.choice.model import (
    UNUSED,
    Decision,
    Excluded,
    Exclusion,
    Facts,
    Level,
    Scored,
    Snapshot,
    Usage,
)
from cells.choice.rules import decide
from cells.choice.terms import Terms

VERSION = 1
# What was drawn and worked out is written with so many digits; another machine's logarithm may
# differ in its last one anyway.
_DIGITS = 6
_TOLERANCE = 2e-6
_STRICT = with_config(ConfigDict(extra="forbid", allow_inf_nan=False))


class NoDecision(ValueError):
    """What was read is no decision of ours, or of a version that we do not know."""


@_STRICT
@dataclass(frozen=True)
class _Policy:
    cell: str
    digest: str
    revision: int


@_STRICT
@dataclass(frozen=True)
class _Ranked:
    channel: str
    drawn: float
    fee: int
    attempt_fee: int
    tier: int
    bonus: float
    utility: float


@_STRICT
@dataclass(frozen=True)
class _Statistics:
    channel: str
    alpha: float
    beta: float
    latency_ms: float
    weight: float
    level: Level
    # Only what is not zero.
    usage: dict[Literal["minute", "day", "day_amount", "month_amount"], int]
    away: bool


@_STRICT
@dataclass(frozen=True)
class _Document:
    version: Literal[1]
    facts: Facts
    policy: _Policy
    ranked: tuple[_Ranked, ...]
    # Reason → channels.
    excluded: dict[Exclusion, tuple[str, ...]]
    # In the order in which they were looked at.
    statistics: tuple[_Statistics, ...]


_DOCUMENT = TypeAdapter(_Document)


def document_of(decision: Decision) -> dict[str, Any]:
    excluded: dict[str, list[str]] = {}
    for item in decision.excluded:
        excluded.setdefault(item.reason, []).append(item.channel)
    snapshot = decision.snapshot
    return {
        "version": VERSION,
        "facts": asdict(decision.facts),
        "policy": {
            "cell": decision.cell,
            "digest": decision.policy,
            "revision": decision.revision,
        },
        "ranked": [
            {
                **item._asdict(),
                "drawn": round(item.drawn, _DIGITS),
                "bonus": round(item.bonus, _DIGITS),
                "utility": round(item.utility, _DIGITS),
            }
            for item in decision.ranked
        ],
        "excluded": excluded,
        "statistics": [
            {
                "channel": name,
                "alpha": item.alpha,
                "beta": item.beta,
                "latency_ms": item.latency_ms,
                "weight": item.weight,
                "level": item.level,
                "usage": _said(snapshot.usages.get(name, UNUSED)),
                "away": name in snapshot.away,
            }
            for name, item in snapshot.standings.items()
        ],
    }


def _said(usage: Usage) -> dict[str, int]:
    return {name: value for name, value in usage._asdict().items() if value}


def encode(decision: Decision) -> str:
    return json.dumps(document_of(decision), separators=(",", ":"))


def decode(text: str | bytes) -> Decision:
    """Raises NoDecision."""
    try:
        read: _Document = _DOCUMENT.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise NoDecision(
            f"this is no decision of version {VERSION}: {where}: {first['msg']}"
        ) from None
    snapshot = Snapshot(
        {
            item.channel: believing(
                item.alpha, item.beta, item.latency_ms, item.weight, item.level
            )
            for item in read.statistics
        },
        {item.channel: Usage(**item.usage) for item in read.statistics},
        frozenset(item.channel for item in read.statistics if item.away),
    )  # fmt: skip
    return Decision(
        read.facts,
        read.policy.cell,
        read.policy.digest,
        read.policy.revision,
        tuple(Scored(**asdict(item)) for item in read.ranked),
        tuple(
            Excluded(channel, reason)
            for reason, channels in read.excluded.items()
            for channel in channels
        ),
        snapshot,
    )


class Replay(NamedTuple):
    decision: Decision
    # What is not as it was; empty: the same.
    differences: tuple[str, ...]

    @property
    def is_same(self) -> bool:
        return not self.differences


def replay(before: Decision, terms: Terms) -> Replay:
    """Decides again from what the decision holds, under the policies that were in force."""
    after = decide(before.facts, terms, before.snapshot)
    return Replay(after, tuple(_differences(before, after)))


def under(before: Decision, terms: Terms) -> Replay:
    """What other policies would have chosen. Channels that the decision knows nothing of stand
    where nothing is known of anybody; the others draw what they drew."""
    nothing = standing(NOTHING, NOTHING, NOTHING, terms.choice)
    others = {
        name: nothing
        for name in terms.field_of(before.facts).candidates
        if name not in before.snapshot.standings
    }
    known = before.snapshot
    snapshot = Snapshot({**known.standings, **others}, known.usages, known.away)
    after = decide(before.facts, terms, snapshot)
    return Replay(after, tuple(_differences(before, after)))


def _differences(before: Decision, after: Decision) -> list[str]:
    found = []
    if before.policy != after.policy:
        found.append(f"policies: {before.policy} became {after.policy}")
    if before.order != after.order:
        order = [" > ".join(item.order) or "nobody" for item in (before, after)]
        found.append(f"order: {order[0]} became {order[1]}")
    old = {item.channel: item for item in before.ranked}
    for item in after.ranked:
        was = old.get(item.channel)
        if was is not None:
            found += [
                f"{item.channel}.{name}: {one} became {other}"
                for name, one, other in zip(item._fields, was, item, strict=True)
                if not _alike(one, other)
            ]
    found += _moved(before, after)
    return found


def _moved(before: Decision, after: Decision) -> list[str]:
    old: Mapping[str, str] = {item.channel: item.reason for item in before.excluded}
    new: Mapping[str, str] = {item.channel: item.reason for item in after.excluded}
    return [
        f"{name}: {old.get(name, 'not excluded')} became {new.get(name, 'not excluded')}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def _alike(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float | int):
        return abs(one - other) <= _TOLERANCE * max(1.0, abs(one), abs(other))
    return one == other
