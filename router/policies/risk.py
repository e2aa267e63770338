"""All risk documents as one: rules, lists, features and models of every name; what is wrong. Pure.

Documents of a kind add up, in the order of their names, so that each team keeps its own. What they
ask of each other (a rule a list, a feature, a model's facts) is checked at every change, so nothing
that cells follow is ever half.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

from router.errors import Violation
from router.policies.model import RISK_KINDS, PolicyKind, RiskDocument
from router.policies.rules import Policy, PolicySet, policy_key
from router.risk import artefact, features, lists, ruleset
from router.risk.artefact import ModelMode, RiskModel
from router.risk.compiling import Compiling
from router.risk.expressions import BadExpression
from router.risk.facts import FEATURE_PREFIX, Type, schema
from router.risk.features import Feature, FeatureSet
from router.risk.lists import RiskList
from router.risk.model import RULES_MAX, Rule, RuleSet

# Of what one document's change would break in others, so many are told.
_TOLD_MAX = 20
_D = TypeVar("_D", RuleSet, RiskList, FeatureSet, RiskModel)


@dataclass(frozen=True, slots=True)
class Rulebook:
    """Every document of risk, by its policy's name."""

    rules: Mapping[str, RuleSet] = field(default_factory=dict)
    lists: Mapping[str, RiskList] = field(default_factory=dict)
    features: Mapping[str, FeatureSet] = field(default_factory=dict)
    models: Mapping[str, RiskModel] = field(default_factory=dict)
    # The etcd revision of the last change of any of them.
    version: int = 0

    @property
    def is_empty(self) -> bool:
        """Nobody has asked for risk: the engine does nothing."""
        return not (self.rules or self.lists or self.features or self.models)

    def all_rules(self) -> RuleSet:
        documents = [item for _, item in sorted(self.rules.items())]
        return RuleSet(
            tuple(rule for item in documents for rule in item.rules),
            tuple(limit for item in documents for limit in item.fail_open),
        )

    def all_features(self) -> FeatureSet:
        found = (feature for _, item in sorted(self.features.items()) for feature in item.features)
        return FeatureSet(tuple(found))

    def types(self) -> dict[str, Type]:
        """All names that rules may use."""
        return schema(self.all_features().types())

    def list_names(self) -> frozenset[str]:
        return frozenset(self.lists)


class Reference(NamedTuple):
    kind: PolicyKind
    name: str


def rulebook_of(policies: PolicySet) -> Rulebook:
    found = {
        key: policy
        for key, policy in sorted(policies.policies.items())
        if policy.kind in RISK_KINDS
    }
    version = max((policy.revision for policy in found.values()), default=0)
    return Rulebook(
        _of(found, RuleSet),
        _of(found, RiskList),
        _of(found, FeatureSet),
        _of(found, RiskModel),
        # Somebody may have written past the service, which keeps the revision of all.
        max(version, policies.risk_revision),
    )


def _of(found: Mapping[str, Policy], kind: type[_D]) -> dict[str, _D]:
    return {
        policy.name: policy.document
        for policy in found.values()
        if isinstance(policy.document, kind)
    }


def changed(policies: PolicySet, of: Reference, document: RiskDocument | None) -> PolicySet:
    """With another document in its place; None takes it away."""
    found = dict(policies.policies)
    key = policy_key(of.kind, of.name)
    found.pop(key, None)
    if document is not None:
        found[key] = Policy(of.kind, of.name, 0, document)
    return replace(policies, policies=found)


def own_faults(
    book: Rulebook, of: Reference, compiling: Compiling | None = None
) -> list[Violation]:
    """What is wrong with one document among the others, by its fields."""
    match of.kind:
        case PolicyKind.RISK_RULES:
            return [*_of_rules(book, of.name, compiling)]
        case PolicyKind.RISK_LISTS:
            found = lists.faults(book.lists[of.name])
        case PolicyKind.RISK_FEATURES:
            found = _of_features(book, of.name)
        case _:
            found = _of_model(book, of.name)
    return [Violation(f"document.{at}", why) for at, why in found]


def broken_by(
    before: Rulebook, after: Rulebook, of: Reference, compiling: Compiling | None = None
) -> list[str]:
    """What a change of one document breaks in the others, for people. What was broken before
    (somebody wrote past the service) holds up nobody."""
    if of.kind not in {PolicyKind.RISK_LISTS, PolicyKind.RISK_FEATURES}:
        return []
    compiling = compiling or Compiling()
    was = {*_rules_without(before, compiling), *_models_without(before)}
    found = [*_rules_without(after, compiling), *_models_without(after)]
    found = [*_meaning_changed(before, after), *(why for why in found if why not in was)]
    return found[:_TOLD_MAX]


def _elsewhere(
    documents: Mapping[str, Sequence[Rule] | Sequence[Feature]], name: str
) -> dict[str, str]:
    """What the other documents have, and which of them: names are the whole mesh's."""
    return {
        item.name: other for other, items in documents.items() if other != name for item in items
    }


def _of_rules(book: Rulebook, name: str, compiling: Compiling | None) -> Iterator[Violation]:
    document = book.rules[name]
    elsewhere = _elsewhere({other: item.rules for other, item in book.rules.items()}, name)
    for number, rule in enumerate(document.rules):
        if rule.name in elsewhere:
            why = f"{rule.name} stands in risk-rules/{elsewhere[rule.name]} too"
            yield Violation(f"document.rules[{number}].name", why)
    total = len(document.rules) + len(elsewhere)
    if total > RULES_MAX:
        why = f"makes {total} rules in all; {RULES_MAX} are the most"
        yield Violation("document.rules", why)
    for fault in ruleset.faults(document, book.types(), book.list_names(), compiling):
        where = f"line {fault.line}, column {fault.column}: " if fault.line else ""
        yield Violation(f"document.{fault.field}", f"{where}{fault.message}")


def _of_features(book: Rulebook, name: str) -> Iterator[tuple[str, str]]:
    document = book.features[name]
    yield from features.faults(document)
    elsewhere = _elsewhere({other: item.features for other, item in book.features.items()}, name)
    for number, feature in enumerate(document.features):
        if feature.name in elsewhere:
            why = f"{feature.name} stands in risk-features/{elsewhere[feature.name]} too"
            yield f"features[{number}].name", why
    total = len(document.features) + len(elsewhere)
    if total > features.FEATURES_MAX:
        yield "features", f"makes {total} in all; {features.FEATURES_MAX} are the most"


def _of_model(book: Rulebook, name: str) -> Iterator[tuple[str, str]]:
    document = book.models[name]
    yield from artefact.faults(document, book.types())
    for other, model in book.models.items():
        if other == name:
            continue
        if model.version == document.version:
            yield "version", f"is that of risk-model/{other} too"
        if model.mode == document.mode == ModelMode.LIVE:
            yield "mode", f"risk-model/{other} is live: put it into the shadow first"


def _models_without(book: Rulebook) -> Iterator[str]:
    types = book.types()
    for name, model in book.models.items():
        missing = [fact for fact in model.facts if fact not in types]
        if missing:
            yield f"risk-model/{name} reads {', '.join(missing[:_TOLD_MAX])}"


def _rules_without(book: Rulebook, compiling: Compiling) -> Iterator[str]:
    """Rules that ask what is not there, those that are off too: they may be put on again."""
    types, names = book.types(), book.list_names()
    for name, document in book.rules.items():
        for rule in document.rules:
            try:
                compiling.expression(rule.when, types, names)
            except BadExpression as error:
                yield f"rule {rule.name} (risk-rules/{name}): {error.message}"


def _meaning_changed(before: Rulebook, after: Rulebook) -> Iterator[str]:
    """The numbers under a feature's name would be another's until its window has passed."""
    now = {feature.name: feature for feature in after.all_features().features}
    for feature in before.all_features().features:
        other = now.get(feature.name)
        if other is None or other == feature:
            continue
        users = [*_users_of(after, FEATURE_PREFIX + feature.name)]
        if users:
            yield (
                f"feature {feature.name} would count something else, and is asked by"
                f" {', '.join(users[:3])}: give the new one a new name"
            )
    for name, document in before.lists.items():
        changed_list = after.lists.get(name)
        if changed_list is None or changed_list.holds == document.holds:
            continue
        asked = f'"{name}"'
        users = [f"rule {rule.name}" for rule in after.all_rules().rules if asked in rule.when]
        if users:
            yield f"list {name} would hold something else, and is asked by {', '.join(users[:3])}"


def _users_of(book: Rulebook, fact: str) -> Iterator[str]:
    types, names = book.types(), book.list_names()
    compiling = Compiling()
    for rule in book.all_rules().rules:
        if fact not in rule.when:
            continue
        try:
            if fact in compiling.expression(rule.when, types, names).names:
                yield f"rule {rule.name}"
        except BadExpression:
            # `_rules_without` tells of it.
            continue
    for name, model in book.models.items():
        if fact in model.facts:
            yield f"risk-model/{name}"
