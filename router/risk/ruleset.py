"""A set of rules, compiled once into Python functions, and what it decides. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from router.risk.compiling import Compiling, InList, function_of
from router.risk.expressions import BadExpression, Compiled
from router.risk.facts import FEATURE_PREFIX, NOTHING, SCORE, Type, Value
from router.risk.model import (
    STRICTNESS,
    Action,
    Decision,
    Hit,
    Mode,
    Rule,
    RuleSet,
    Source,
)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a rule set is refused: where in the document, and where in the expression."""

    # rules[3].when
    field: str
    message: str
    line: int = 0
    column: int = 0


def faults(
    document: RuleSet,
    types: Mapping[str, Type],
    lists: frozenset[str],
    compiling: Compiling | None = None,
) -> Sequence[Fault]:
    """All that is wrong with a rule set: expressions, names, times, and cases that do not hold."""
    compiling = compiling or Compiling()
    found: list[Fault] = []
    seen: set[str] = set()
    for number, rule in enumerate(document.rules):
        at = f"rules[{number}]"
        if rule.name in seen:
            found.append(Fault(f"{at}.name", f"{rule.name} stands here twice"))
        seen.add(rule.name)
        found += _time_faults(at, rule)
        try:
            compiled = compiling.expression(rule.when, types, lists)
        except BadExpression as error:
            found.append(Fault(f"{at}.when", error.message, error.line, error.column))
            continue
        found += _case_faults(at, rule, compiled, types)
    return found


def _time_faults(at: str, rule: Rule) -> Sequence[Fault]:
    found = [
        Fault(f"{at}.{name}", "a time needs its offset from UTC")
        for name, moment in (
            ("effective_from", rule.effective_from),
            ("effective_until", rule.effective_until),
        )
        if moment is not None and moment.tzinfo is None
    ]
    begin, end = rule.effective_from, rule.effective_until
    if not found and begin is not None and end is not None and end <= begin:
        found.append(Fault(f"{at}.effective_until", "must be later than effective_from"))
    return found


def _case_faults(
    at: str, rule: Rule, compiled: Compiled, types: Mapping[str, Type]
) -> Sequence[Fault]:
    found = []
    for number, case in enumerate(rule.cases):
        field = f"{at}.cases[{number}]"
        wrong = [
            Fault(f"{field}.facts.{name}", f"is no {types.get(name, 'fact')}")
            for name, value in case.facts.items()
            if not _fits(types.get(name), value)
        ]
        if wrong:
            found += wrong
            continue
        facts = complete(case.facts, types)
        if bool(function_of([compiled])(facts, _asks(case.lists))) != case.matches:
            found.append(Fault(field, f"should {'' if case.matches else 'not '}match"))
    return found


def _asks(lists: Mapping[str, Sequence[str]]) -> InList:
    return lambda name, value: value in lists.get(name, ())


def _fits(kind: Type | None, value: Value) -> bool:
    if kind is None:
        return False
    wanted: Mapping[Type, tuple[type, ...]] = {
        Type.INT: (int,),
        Type.DOUBLE: (int, float),
        Type.BOOL: (bool,),
        Type.STRING: (str,),
    }
    return isinstance(value, wanted[kind]) and (kind == Type.BOOL or not isinstance(value, bool))


def complete(facts: Mapping[str, Value], types: Mapping[str, Type]) -> dict[str, Value]:
    """Facts with a value for each name: what is not said is nothing."""
    return {name: facts.get(name, NOTHING[kind]) for name, kind in types.items()}


class Rules:
    """A rule set in force. Raises BadExpression for what `faults` would have told."""

    def __init__(
        self,
        document: RuleSet,
        types: Mapping[str, Type],
        lists: frozenset[str],
        *,
        version: int,
        now: datetime,
        compiling: Compiling | None = None,
    ) -> None:
        """`now`: which rules are in force; `changes_at` says until when this stays so."""
        compiling = compiling or Compiling()
        self.version = version
        self._rules = [
            rule for rule in document.rules if rule.mode != Mode.OFF and _in_force(rule, now)
        ]
        self.names = frozenset(rule.name for rule in self._rules)
        self.changes_at = _next_change(document, now)
        compiled = [compiling.expression(rule.when, types, lists) for rule in self._rules]
        self._match = compiling.matcher(compiled)
        self.features = frozenset(name for item in compiled for name in item.names)
        # Of each rule: what it asks, and instead of what it stands.
        self._asks = {
            rule.name: _sources(item) for rule, item in zip(self._rules, compiled, strict=True)
        }
        self._has_conservative = any(rule.when_without for rule in self._rules)
        self.fail_open = _limits(document)

    def __len__(self) -> int:
        return len(self._rules)

    def decide(
        self,
        facts: Mapping[str, Value],
        in_list: InList,
        without: frozenset[str] = frozenset(),
    ) -> Decision:
        """What the rules say. `facts` has a value for every name of the schema."""
        matched = [self._rules[place] for place in self._match(facts, in_list)]
        if matched and (without or self._has_conservative):
            matched = [rule for rule in matched if self._counts(rule, without)]
        if not matched:
            return Decision(Action.ALLOW, version=self.version, without=without)
        hits = tuple(
            Hit(rule.name, rule.action, rule.reason, rule.mode == Mode.SHADOW) for rule in matched
        )
        live = [rule for rule in matched if rule.mode == Mode.LIVE]
        if not live:
            return Decision(Action.ALLOW, (), hits, self.version, without)
        top = max(rule.priority for rule in live)
        deciding = [rule for rule in live if rule.priority == top]
        action = max((rule.action for rule in deciding), key=STRICTNESS.__getitem__)
        reasons = tuple(dict.fromkeys(rule.reason for rule in deciding if rule.action == action))
        return Decision(action, reasons, hits, self.version, without)

    def _counts(self, rule: Rule, without: frozenset[str]) -> bool:
        if rule.when_without and without.isdisjoint(rule.when_without):
            return False
        return without.isdisjoint(self._asks[rule.name])


def _sources(compiled: Compiled) -> frozenset[str]:
    found = {Source.FEATURES for name in compiled.names if name.startswith(FEATURE_PREFIX)}
    return frozenset(found | ({Source.MODEL} if SCORE in compiled.names else set()))


def _limits(document: RuleSet) -> Mapping[str, Mapping[str, int]]:
    """Operation → currency → amount. Of several that say something the strictest holds."""
    found: dict[str, dict[str, int]] = {}
    for item in document.fail_open:
        limits = found.setdefault(item.operation, {})
        before = limits.get(item.currency, item.amount_max)
        limits[item.currency] = min(item.amount_max, before)
    return found


def _in_force(rule: Rule, now: datetime) -> bool:
    begun = rule.effective_from is None or rule.effective_from <= now
    return begun and (rule.effective_until is None or now < rule.effective_until)


def _next_change(document: RuleSet, now: datetime) -> datetime | None:
    moments = [
        moment
        for rule in document.rules
        for moment in (rule.effective_from, rule.effective_until)
        if moment is not None and moment > now
    ]
    return min(moments, default=None)
