"""What other rules would have decided of requests that were recorded. Pure.

The facts are those of the record, features and score included: what the new rules would have
refused is still counted in the features of what came after. Times of rules do not matter, but for
those that have ended: the question is what the set would do, not when it begins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple

from router.risk.compiling import Compiling
from router.risk.facts import FEATURE_PREFIX, Type
from router.risk.lists import Lists
from router.risk.model import Decision, RuleSet
from router.risk.record import Record
from router.risk.ruleset import Rules, complete


class Example(NamedTuple):
    """A request that would end otherwise."""

    decision_id: str
    at_ms: int
    operation: str
    user: str
    amount: int
    currency: str
    was: str
    now: str
    # Rules that are live and match: then, and under the new set.
    was_rules: tuple[str, ...]
    now_rules: tuple[str, ...]


@dataclass(slots=True)
class RuleOutcome:
    """Requests that a rule matched, in whatever mode."""

    was: int = 0
    now: int = 0
    gained: int = 0
    lost: int = 0


@dataclass(slots=True)
class Outcome:
    records: int = 0
    first_ms: int = 0
    last_ms: int = 0
    # Recorded action, new action → how many; and their amounts, by currency too.
    actions: Counter[tuple[str, str]] = field(default_factory=Counter)
    amounts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    rules: dict[str, RuleOutcome] = field(default_factory=dict)
    examples: dict[tuple[str, str], list[Example]] = field(default_factory=dict)
    # Facts that the new rules ask, and that so many records do not have: they count as nothing.
    missing: Counter[str] = field(default_factory=Counter)

    @property
    def changed(self) -> int:
        return sum(count for (was, now), count in self.actions.items() if was != now)


class Replay:
    """Takes records one by one, for there may be more of them than memory."""

    def __init__(
        self,
        rules: RuleSet,
        types: Mapping[str, Type],
        lists: Lists,
        *,
        now: datetime,
        examples_max: int = 5,
    ) -> None:
        """`types`: of the features too. Raises BadExpression."""
        self._types = types
        self._lists = lists
        self._examples_max = examples_max
        document = _as_if_in_force(rules, now)
        self._rules = Rules(document, types, lists.names, version=0, now=now, compiling=Compiling())
        self.outcome = Outcome(rules={name: RuleOutcome() for name in self._rules.names})

    def add(self, record: Record) -> None:
        found = self.outcome
        found.missing.update(name for name in self._rules.features if name not in record.facts)
        decision = self._rules.decide(
            complete(record.facts, self._types),
            self._lists.at(record.observation.at_ms),
            frozenset(record.without),
        )
        at_ms = record.observation.at_ms
        found.first_ms = min(at_ms, found.first_ms) if found.records else at_ms
        found.last_ms = max(at_ms, found.last_ms)
        found.records += 1
        self._count_rules(record, decision)
        change = record.action, decision.action.value
        found.actions[change] += 1
        seen = record.observation
        found.amounts[*change, seen.currency] += seen.amount
        kept = found.examples.setdefault(change, [])
        if change[0] != change[1] and len(kept) < self._examples_max:
            kept.append(
                Example(
                    record.decision_id, at_ms, seen.operation, seen.user, seen.amount,
                    seen.currency, *change, record.hits,
                    tuple(hit.rule for hit in decision.hits if not hit.shadow),
                )
            )  # fmt: skip

    def _count_rules(self, record: Record, decision: Decision) -> None:
        was = {*record.hits, *record.shadow_hits}
        now = {hit.rule for hit in decision.hits}
        for name in was | now:
            counted = self.outcome.rules.setdefault(name, RuleOutcome())
            counted.was += name in was
            counted.now += name in now
            counted.gained += name in now - was
            counted.lost += name in was - now


def replay(records: Iterable[Record], under: Replay) -> Outcome:
    for record in records:
        under.add(record)
    return under.outcome


def types_with(types: Mapping[str, Type], records: Iterable[Record]) -> dict[str, Type]:
    """With the features that records have and no document tells of: a file of records is enough."""
    seen = {name for record in records for name in record.facts if name.startswith(FEATURE_PREFIX)}
    return {**dict.fromkeys(sorted(seen), Type.INT), **types}


def document_of(outcome: Outcome) -> dict[str, Any]:
    """For programs."""
    return {
        "records": outcome.records,
        "first_ms": outcome.first_ms,
        "last_ms": outcome.last_ms,
        "changed": outcome.changed,
        "actions": [
            {"was": was, "now": now, "count": count,
             "amounts": {
                 currency: amount
                 for (one, other, currency), amount in sorted(outcome.amounts.items())
                 if (one, other) == (was, now)
             }}
            for (was, now), count in sorted(outcome.actions.items())
        ],
        "rules": [
            {"rule": name, "was": item.was, "now": item.now, "gained": item.gained,
             "lost": item.lost}
            for name, item in sorted(outcome.rules.items())
        ],
        "examples": [
            example._asdict() for _, kept in sorted(outcome.examples.items()) for example in kept
        ],
        "missing": dict(sorted(outcome.missing.items())),
    }  # fmt: skip


def _as_if_in_force(document: RuleSet, now: datetime) -> RuleSet:
    return RuleSet(
        tuple(
            replace(rule, effective_from=None, effective_until=None)
            for rule in document.rules
            if rule.effective_until is None or rule.effective_until > now
        )
    )
