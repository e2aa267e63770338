"""May this change of a policy go, and what does it leave behind? Pure."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from control.policies.model import Report, StoredPolicy
from router.errors import Violation
from router.policies.model import POLICIES_PREFIX, REPORTS_PREFIX, cells_of
from router.policies.rules import (
    InvalidPolicy,
    Policy,
    open_envelope,
    parse,
    parse_name,
    policy_key,
)
from router.store.model import Item


def check(kind: str, name: str, document: str, cells: Collection[str]) -> Policy:
    """Everything that is wrong with a policy, at once. Raises InvalidPolicy."""
    parsed = parse_name(kind, name)
    policy = Policy(parsed, name, 0, parse(parsed, document))
    strangers = [cell for cell in cells_of(policy.document) if cell not in cells]
    if strangers:
        known = ", ".join(sorted(cells))
        what = f"names cells that are not declared ({', '.join(strangers)}); there are: {known}"
        raise InvalidPolicy([Violation("document.cells", what)])
    return policy


def stored_policy(item: Item) -> StoredPolicy | None:
    """None for keys below the prefix that are none of these."""
    kind, slash, name = item.key.removeprefix(POLICIES_PREFIX).partition("/")
    if not slash:
        return None
    try:
        opened = open_envelope(item.value)
    except InvalidPolicy as error:
        return StoredPolicy(kind, name, "", item.revision, alarm=str(error))
    try:
        parse(parse_name(kind, name), opened.document)
        alarm = ""
    except InvalidPolicy as error:
        alarm = str(error)
    return StoredPolicy(
        kind, name, opened.document, item.revision, opened.reason, opened.actor, opened.time_ms,
        alarm,
    )  # fmt: skip


def report_of(item: Item) -> Report | None:
    """None when somebody wrote there what no process of ours writes."""
    try:
        raw: dict[str, Any] = json.loads(item.value)
        return Report(item.key.removeprefix(REPORTS_PREFIX), **raw)
    except (ValueError, TypeError):
        return None


def key_of(kind: str, name: str) -> str:
    """Raises InvalidPolicy: what is no name must not become a key."""
    return policy_key(parse_name(kind, name), name)
