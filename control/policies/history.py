"""Policies as they once were, from the audit log: each change stands in it with its document, in
the same commit and so at the same revision. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from control.audit import ALLOWED
from router.policies.rules import InvalidPolicy, Policy, PolicySet, parse, parse_name, policy_key
from router.store.model import Item


class Change(NamedTuple):
    revision: int
    kind: str
    name: str
    # Empty: it was deleted.
    document: str


def changes_of(records: Sequence[Item]) -> list[Change]:
    """Of policies, in the order in which they were made."""
    found = (_change_of(item) for item in sorted(records, key=lambda item: item.revision))
    return [change for change in found if change is not None]


def _change_of(item: Item) -> Change | None:
    try:
        record = json.loads(item.value)
        kind, verb = str(record["action"]).removeprefix("policy.").split(".")
        detail, verdict = str(record["detail"]), record["verdict"]
    except (ValueError, KeyError, TypeError):
        return None
    if verdict != ALLOWED or not str(record["action"]).startswith("policy."):
        return None
    if verb == "delete":
        return Change(item.revision, kind, detail, "")
    name, colon, document = detail.partition(": ")
    return Change(item.revision, kind, name, document) if verb == "set" and colon else None


def states(changes: Sequence[Change]) -> Iterator[PolicySet]:
    """What was in force after each change."""
    policies: dict[str, Policy] = {}
    for change in changes:
        key = policy_key(change.kind, change.name)
        if change.document:
            try:
                kind = parse_name(change.kind, change.name)
                document = parse(kind, change.document)
            except InvalidPolicy:
                # Of a time with other rules; it is no policy of today's.
                continue
            policies[key] = Policy(kind, change.name, change.revision, document)
        else:
            policies.pop(key, None)
        yield PolicySet(dict(policies))


def laid_over(policies: PolicySet, documents: Mapping[str, object]) -> PolicySet:
    """With other documents by `kind/name`; null takes one away. Raises InvalidPolicy."""
    found = dict(policies.policies)
    for path, document in documents.items():
        kind, _, name = path.partition("/")
        parsed = parse_name(kind, name)
        key = policy_key(kind, name)
        if document is None:
            found.pop(key, None)
        else:
            found[key] = Policy(parsed, name, 0, parse(parsed, json.dumps(document)))
    return PolicySet(found)
