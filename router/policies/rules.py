"""Which documents are valid, what is in force, and what a level means. Pure.

A document that etcd holds and that is not valid changes nothing: the last good one of its name
stays in force, with an alarm (`take`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

from router.errors import Violation
from router.policies.channels import ChannelPolicy, ChoicePolicy, Fees
from router.policies.model import (
    POLICIES_PREFIX,
    RISK_KINDS,
    RISK_REVISION_KEY,
    Breakers,
    Criticality,
    Degradation,
    Document,
    Feature,
    Forecast,
    Keys,
    Limits,
    Mode,
    PolicyKind,
    Signatures,
    Traffic,
    cells_of,
)
from router.risk.artefact import RiskModel
from router.risk.features import FeatureSet
from router.risk.lists import RiskList
from router.risk.model import RuleSet

DOCUMENT_BYTES_MAX = 64 * 1024
# A request to etcd may have 1.5 MiB, and it holds the document twice (docs/risk.md).
RISK_DOCUMENT_BYTES_MAX = 512 * 1024
LEVEL_MAX = 3
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")
_TYPES: Mapping[PolicyKind, type[Document]] = {
    PolicyKind.TRAFFIC: Traffic,
    PolicyKind.BREAKERS: Breakers,
    PolicyKind.DEGRADATION: Degradation,
    PolicyKind.LIMITS: Limits,
    PolicyKind.KEYS: Keys,
    PolicyKind.CHANNELS: ChannelPolicy,
    PolicyKind.CHOICE: ChoicePolicy,
    PolicyKind.RISK_RULES: RuleSet,
    PolicyKind.RISK_LISTS: RiskList,
    PolicyKind.RISK_FEATURES: FeatureSet,
    PolicyKind.RISK_MODEL: RiskModel,
    PolicyKind.SIGNATURES: Signatures,
    PolicyKind.FORECAST: Forecast,
}
_HARM = {Mode.ON: 0, Mode.DEFERRED: 1, Mode.OFF: 2}
# The least important go first. What a higher class loses, a lower one has lost before.
CLASSES: Mapping[Feature, Criticality] = {
    Feature.POINTS: Criticality.SHEDDABLE,
    Feature.RED_PACKETS: Criticality.SHEDDABLE,
    Feature.NOTIFICATION: Criticality.SHEDDABLE_PLUS,
    Feature.STATEMENTS: Criticality.SHEDDABLE_PLUS,
    Feature.RISK_MODEL: Criticality.CRITICAL,
    Feature.REFUNDS: Criticality.CRITICAL,
    Feature.PAYOUTS: Criticality.CRITICAL,
}
# Of levels 1, 2 and 3.
MODES: Mapping[Feature, tuple[Mode, Mode, Mode]] = {
    Feature.POINTS: (Mode.DEFERRED, Mode.DEFERRED, Mode.OFF),
    Feature.RED_PACKETS: (Mode.DEFERRED, Mode.OFF, Mode.OFF),
    Feature.NOTIFICATION: (Mode.ON, Mode.DEFERRED, Mode.DEFERRED),
    Feature.STATEMENTS: (Mode.ON, Mode.OFF, Mode.OFF),
    Feature.RISK_MODEL: (Mode.ON, Mode.ON, Mode.OFF),
    Feature.REFUNDS: (Mode.ON, Mode.ON, Mode.OFF),
    Feature.PAYOUTS: (Mode.ON, Mode.ON, Mode.DEFERRED),
}
# Money that is under way cannot be switched off, and an event must not be lost.
_NEVER_OFF = frozenset({Feature.NOTIFICATION})

D = TypeVar(
    "D", Traffic, Breakers, Degradation, Limits, Keys, ChannelPolicy, ChoicePolicy,
    Signatures, Forecast, RuleSet, RiskList, FeatureSet, RiskModel,
)  # fmt: skip


class InvalidPolicy(ValueError):
    """A document, or its name, is not valid; every violation is named."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(f"{item.field}: {item.description}" for item in violations))
        self.violations = tuple(violations)


class Policy(NamedTuple):
    kind: PolicyKind
    name: str
    # Of the document that is in force.
    revision: int
    document: Document


class Applied(NamedTuple):
    kind: str
    name: str
    # Of what etcd holds.
    revision: int
    alarm: str = ""


@dataclass(frozen=True)
class PolicySet:
    """What is in force, and what etcd holds of it."""

    policies: Mapping[str, Policy] = field(default_factory=dict)
    applied: tuple[Applied, ...] = ()
    # Of the last change of any risk document.
    risk_revision: int = 0

    def of(self, document: type[D], cell: str | None = None) -> list[D]:
        """Documents of a kind, that apply to the cell, by name."""
        found = (
            policy.document
            for _, policy in sorted(self.policies.items())
            if isinstance(policy.document, document)
        )
        return [item for item in found if cell is None or cell in (cells_of(item) or (cell,))]


def policy_key(kind: str, name: str) -> str:
    return f"{POLICIES_PREFIX}{kind}/{name}"


def parse_name(kind: str, name: str) -> PolicyKind:
    """Raises InvalidPolicy."""
    violations = []
    if kind not in set(PolicyKind):
        violations.append(Violation("kind", f"must be one of {', '.join(PolicyKind)}"))
    if not _NAME.fullmatch(name):
        what = "must be 1 to 64 lower case letters, digits and hyphens"
        violations.append(Violation("name", what))
    if violations:
        raise InvalidPolicy(violations)
    return PolicyKind(kind)


def parse(kind: PolicyKind, text: str) -> Document:
    """The document that a JSON text is. Raises InvalidPolicy."""
    bytes_max = RISK_DOCUMENT_BYTES_MAX if kind in RISK_KINDS else DOCUMENT_BYTES_MAX
    if len(text.encode()) > bytes_max:
        raise InvalidPolicy([Violation("document", f"is longer than {bytes_max} bytes")])
    try:
        document: Document = _adapter(kind).validate_json(text)
    except ValidationError as error:
        raise InvalidPolicy(
            [
                Violation(_field(item["loc"]), str(item["msg"]))
                for item in error.errors(include_url=False, include_input=False)
            ]
        ) from None
    violations = _contradictions(document)
    if violations:
        raise InvalidPolicy(violations)
    return document


@cache
def _adapter(kind: PolicyKind) -> TypeAdapter[Any]:
    return TypeAdapter(_TYPES[kind])


def _field(location: Sequence[object]) -> str:
    path = "document"
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path


def _contradictions(document: Document) -> list[Violation]:
    match document:
        case Traffic():
            return _of_traffic(document)
        case Degradation():
            return _of_degradation(document)
        case Limits():
            return _of_limits(document)
        case ChannelPolicy():
            return _of_channel(document)
        case ChoicePolicy():
            return _of_choice(document)
        case Forecast():
            return _of_forecast(document)
        case (
            Breakers() | Keys() | Signatures() | RuleSet() | RiskList() | FeatureSet() | RiskModel()
        ):
            # Of risk: router/policies/risk.py, for it takes longer than a turn of the event loop.
            return []


def _of_traffic(document: Traffic) -> list[Violation]:
    found = []
    if document.methods:
        for name in ("circuit_breaker", "outlier_detection"):
            if getattr(document, name) is not None:
                what = "is of a whole cell: not in a policy with methods"
                found.append(Violation(f"document.{name}", what))
        if document.retry is not None and document.retry.budget_percent is not None:
            what = "is of a whole cell: not in a policy with methods"
            found.append(Violation("document.retry.budget_percent", what))
    retry, fault = document.retry, document.fault
    if retry is not None and retry.backoff_cap_ms < retry.backoff_base_ms:
        found.append(Violation("document.retry.backoff_cap_ms", "is less than backoff_base_ms"))
    if fault is not None:
        if fault.delay_percent and not fault.delay_ms:
            found.append(Violation("document.fault.delay_ms", "is missing beside delay_percent"))
        if fault.abort_percent and fault.abort_code is None:
            found.append(Violation("document.fault.abort_code", "is missing beside abort_percent"))
    return found


def _of_degradation(document: Degradation) -> list[Violation]:
    found = []
    for feature, modes in document.features.items():
        path = f"document.features.{feature}"
        if any(_HARM[low] > _HARM[high] for low, high in pairwise(modes)):
            found.append(Violation(path, "comes back at a higher level"))
        if feature in _NEVER_OFF and Mode.OFF in modes:
            found.append(Violation(path, "may be deferred, never off: its events must not be lost"))
    if not found:
        found += _out_of_turn({**MODES, **document.features})
    if document.level > document.level_max:
        found.append(Violation("document.level", "is above level_max"))
    if document.pressure is not None:
        for name in ("queue_delay_ms", "cpu_percent", "database_latency_ms"):
            steps = getattr(document.pressure, name)
            if steps is not None and not 0 < steps[0] <= steps[1] <= steps[2]:
                found.append(Violation(f"document.pressure.{name}", "must rise from above zero"))
    return found


def _out_of_turn(modes: Mapping[Feature, tuple[Mode, Mode, Mode]]) -> list[Violation]:
    """A class is touched only when every feature of the lower classes has been."""
    order = list(Criticality)
    found = []
    for feature, own in modes.items():
        for other, others in modes.items():
            if order.index(CLASSES[other]) <= order.index(CLASSES[feature]):
                continue
            for level in range(LEVEL_MAX):
                if _HARM[own[level]] and not _HARM[others[level]]:
                    what = f"goes at level {level + 1} before the less important {other}"
                    found.append(Violation(f"document.features.{feature}", what))
    return found


def _of_limits(document: Limits) -> list[Violation]:
    found = []
    limit = document.concurrency
    if limit is not None and not limit.minimum <= limit.initial <= limit.maximum:
        what = "must have minimum <= initial <= maximum"
        found.append(Violation("document.concurrency", what))
    return found


def _of_channel(document: ChannelPolicy) -> list[Violation]:
    # Not `min_length`: pydantic would call a list too short whose items are wrong.
    found = [
        Violation(f"document.{name}", "must not be empty")
        for name in ("amounts", "fees", "taking", "instruments")
        if not getattr(document, name)
    ]
    for currency, band in document.amounts.items():
        if band.minimum > band.maximum:
            found.append(Violation(f"document.amounts.{currency}", "must have minimum <= maximum"))
        if document.fees and all(table.currency != currency for table in document.fees):
            found.append(Violation("document.fees", f"has no table for {currency}"))
    for number, table in enumerate(document.fees):
        found += _of_fees(table, f"document.fees[{number}]")
    for number, hours in enumerate(document.hours):
        if not hours.days:
            found.append(Violation(f"document.hours[{number}].days", "must not be empty"))
        if hours.begin in {hours.end, "24:00"}:
            what = "must end after it begins, or past midnight before it"
            found.append(Violation(f"document.hours[{number}]", what))
    for name, only in (("banks", document.banks), ("merchants", document.merchants)):
        both = sorted(set(only.only) & set(only.never))
        if both:
            what = f"names {', '.join(both)} in only and never"
            found.append(Violation(f"document.{name}", what))
    foreign = set(document.banks.must) & set(document.banks.never)
    if foreign:
        what = f"names {', '.join(sorted(foreign))} in never too"
        found.append(Violation("document.banks.must", what))
    currencies = [item.currency for item in document.commitments]
    for number, currency in enumerate(currencies):
        if currency in currencies[:number]:
            what = f"is a second one of {currency}"
            found.append(Violation(f"document.commitments[{number}]", what))
    return found


def _of_fees(table: Fees, path: str) -> list[Violation]:
    if not table.tiers:
        return [Violation(f"{path}.tiers", "must not be empty")]
    found = []
    if table.tiers[0].from_volume:
        found.append(Violation(f"{path}.tiers[0].from_volume", "must be 0"))
    for number, tier in enumerate(table.tiers):
        if tier.minimum > tier.maximum:
            found.append(Violation(f"{path}.tiers[{number}]", "must have minimum <= maximum"))
    for number, (before, after) in enumerate(pairwise(table.tiers), 1):
        where = f"{path}.tiers[{number}]"
        if after.from_volume <= before.from_volume:
            found.append(Violation(f"{where}.from_volume", "must be above the tier's before"))
        for name in ("fixed", "rate_ppm", "minimum", "maximum"):
            if table.falling and getattr(after, name) > getattr(before, name):
                what = "rises, though the table is said to be falling"
                found.append(Violation(f"{where}.{name}", what))
    return found


def _of_choice(document: ChoicePolicy) -> list[Violation]:
    found = []
    for currency, ends in document.bands.items():
        if any(low >= high for low, high in pairwise(ends)):
            found.append(Violation(f"document.bands.{currency}", "must rise"))
    if document.usual_half_life_s < document.half_life_s:
        what = "is less than half_life_s"
        found.append(Violation("document.usual_half_life_s", what))
    return found


def _of_forecast(document: Forecast) -> list[Violation]:
    return [
        Violation(f"document.times[{number}].end", "must be after begin")
        for number, item in enumerate(document.times)
        if item.end <= item.begin
    ]


def envelope(text: str, *, reason: str, actor: str, time_ms: int) -> str:
    """What stands in etcd: the document, and who wrote it, when and why."""
    document = json.loads(text)
    return _compact({"document": document, "reason": reason, "actor": actor, "time_ms": time_ms})


def _compact(value: Any) -> str:
    """Never longer than it was written: a large document must fit into etcd, and then in here."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


class Enveloped(NamedTuple):
    document: str
    reason: str
    actor: str
    time_ms: int


def open_envelope(value: str) -> Enveloped:
    """Raises InvalidPolicy."""
    try:
        raw = json.loads(value)
        return Enveloped(
            _compact(raw["document"]),
            str(raw.get("reason", "")),
            str(raw.get("actor", "")),
            int(raw.get("time_ms", 0)),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        what = "etcd holds something that is no policy"
        raise InvalidPolicy([Violation("document", what)]) from None


def take(before: PolicySet, stored: Mapping[str, tuple[str, int]]) -> PolicySet:
    """What is in force when etcd holds `stored` (key → value and revision).

    A document that is not valid leaves the one of its name that was in force before.
    """
    policies: dict[str, Policy] = {}
    applied: list[Applied] = []
    for key in sorted(stored):
        kind, slash, name = key.removeprefix(POLICIES_PREFIX).partition("/")
        if not slash:
            # Not of these: `failover`.
            continue
        value, revision = stored[key]
        known = before.policies.get(key)
        try:
            if known is None or known.revision != revision:
                parsed = parse_name(kind, name)
                known = Policy(parsed, name, revision, parse(parsed, open_envelope(value).document))
            applied.append(Applied(kind, name, revision))
        except InvalidPolicy as error:
            applied.append(Applied(kind, name, revision, str(error)[:500]))
        if known is not None:
            policies[key] = known
    risk_revision = stored[RISK_REVISION_KEY][1] if RISK_REVISION_KEY in stored else 0
    return PolicySet(policies, tuple(applied), risk_revision)


def modes_at(documents: Sequence[Degradation], level: int) -> Mapping[Feature, Mode]:
    """Each feature's mode; of several documents the one that takes most."""
    if level <= 0 or not documents:
        return dict.fromkeys(Feature, Mode.ON)
    return {
        feature: max(
            (document.features.get(feature, MODES[feature])[level - 1] for document in documents),
            key=_HARM.__getitem__,
        )
        for feature in Feature
    }
