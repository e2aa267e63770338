"""Role bindings and the approval policy in the store, followed by every controller."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import structlog

from control.access.rules import DEFAULT_BINDINGS, Bindings, Role
from router.store.model import Store

log = structlog.get_logger(__name__)

ACCESS_PREFIX = "/cellpay/access/"
BINDINGS_PREFIX = f"{ACCESS_PREFIX}bindings/"
APPROVAL_POLICY_KEY = f"{ACCESS_PREFIX}approvals"


@dataclass(slots=True)
class Access:
    """What is stored. Reads are judged by the last listing, so they go on while the store is away;
    before the first one, by the defaults."""

    store: Store
    bindings: dict[str, frozenset[Role]] = field(default_factory=lambda: dict(DEFAULT_BINDINGS))

    async def follow(self) -> None:
        async for listing in self.store.watch(BINDINGS_PREFIX):
            values = {key: item.value for key, item in listing.items.items()}
            self.bindings = parse_bindings(values)

    async def read(self) -> Bindings:
        """As the store has them at this moment."""
        listing = await self.store.list(BINDINGS_PREFIX)
        self.bindings = parse_bindings({key: item.value for key, item in listing.items.items()})
        return self.bindings


def parse_bindings(stored: Mapping[str, str]) -> dict[str, frozenset[Role]]:
    found = dict(DEFAULT_BINDINGS)
    for key, value in stored.items():
        found[key.removeprefix(BINDINGS_PREFIX)] = _roles(key, value)
    return found


def _roles(key: str, value: str) -> frozenset[Role]:
    """A role of a later version gives nothing here, nor does a binding that nobody can read: it
    ends no controller, and lets nobody in."""
    try:
        roles = json.loads(value)["roles"]
        return frozenset(Role(role) for role in roles if role in set(Role))
    except (ValueError, TypeError, KeyError) as error:
        log.error("a role binding is unreadable and gives nothing", key=key, why=repr(error))
        return frozenset()


def binding_put(subject: str, roles: Iterable[Role]) -> dict[str, str]:
    return {BINDINGS_PREFIX + subject: json.dumps({"roles": sorted(roles)})}


async def approvals_are_required(store: Store) -> bool:
    """On unless somebody stored that they are off: a store that has lost its data is strict."""
    item = await store.get(APPROVAL_POLICY_KEY)
    return item is None or bool(json.loads(item.value)["required"])


def approval_policy_put(required: bool) -> dict[str, str]:
    return {APPROVAL_POLICY_KEY: json.dumps({"required": required})}


async def seed_access(
    store: Store, bindings: Mapping[str, Iterable[Role]], *, required: bool
) -> None:
    """The settings' bindings and policy, where nothing is stored yet."""
    puts = approval_policy_put(required)
    for subject, roles in bindings.items():
        puts.update(binding_put(subject, roles))
    for key, value in puts.items():
        await store.commit(expect={key: 0}, puts={key: value})
