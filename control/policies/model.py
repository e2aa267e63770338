"""A policy as it stands in etcd, and what processes say of what they applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    kind: str
    name: str
    document: str
    revision: int
    reason: str = ""
    actor: str = ""
    # Unix ms of the controller: for people, never compared.
    time_ms: int = 0
    # Not empty: it is not valid, and nobody applies it.
    alarm: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    process: str
    cell: str = ""
    # Kind, name, revision, alarm.
    applied: Sequence[tuple[str, str, int, str]] = ()
    # Dependency → its breaker's state, and whether a policy forces it.
    breakers: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    degradation_level: int = 0
    features: Mapping[str, str] = field(default_factory=dict)
    concurrency_limit: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
