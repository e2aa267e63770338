"""Risk documents are written one after the other: each change is checked against all the others as
they are, and a key that every change touches makes sure that they still are at its commit."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import grpc

from control.policies.history import archive_prefix, outdated
from router.errors import Refusal, Violation
from router.policies.model import POLICIES_PREFIX, RISK_REVISION_KEY, RiskDocument
from router.policies.risk import (
    Reference,
    broken_by,
    changed,
    own_faults,
    rulebook_of,
)
from router.policies.rules import InvalidPolicy, PolicySet, policy_key, take
from router.risk.compiling import Compiling
from router.risk.model import RULES_MAX
from router.store.model import Store, StoreUnavailable

# Of all that one request to etcd may hold (1.5 MiB), with room for keys and comparisons.
COMMIT_BYTES_MAX = 1_500_000
# Each try lost to another writer who got on.
_TRIES_MAX = 20
# Compiled expressions: edits gather.
_KEPT_MAX = 2 * RULES_MAX


class RiskWriter:
    """One a controller: what it compiled for the last check it need not compile for the next."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._compiling = Compiling()
        self._known = PolicySet()
        # The compiled is one thread's at a time.
        self._turn = asyncio.Lock()

    async def write(
        self,
        of: Reference,
        document: RiskDocument | None,
        revision: int | None,
        puts: Mapping[str, str],
        *,
        check_only: bool = False,
    ) -> int | None:
        """The new revision; None when the policy is not at `revision` (None: at any).

        `puts`: the policy and what goes with it; `document` None: it is deleted. Raises
        InvalidPolicy, and Refusal for what others still ask for.
        """
        key = policy_key(of.kind, of.name)
        async with self._turn:
            for _ in range(_TRIES_MAX):
                listing = await self._store.list(POLICIES_PREFIX)
                item = listing.items.get(key)
                now = item.revision if item else 0
                if revision is not None and now != revision:
                    return None
                stored = {k: (value.value, value.revision) for k, value in listing.items.items()}
                await asyncio.to_thread(self._check, stored, of, document)
                if check_only:
                    return now
                last = stored[RISK_REVISION_KEY][1] if RISK_REVISION_KEY in stored else 0
                done = await self._commit({key: now, RISK_REVISION_KEY: last}, of, document, puts)
                if done is not None:
                    return done
        raise StoreUnavailable("risk documents are changed by others all the time")

    async def _commit(
        self,
        expect: Mapping[str, int],
        of: Reference,
        document: RiskDocument | None,
        puts: Mapping[str, str],
    ) -> int | None:
        archive = archive_prefix(of.kind, of.name)
        archived = (await self._store.list(archive)).items
        deletes = outdated(archived, {key: "" for key in puts if key.startswith(archive)})
        if document is None:
            deletes.append(policy_key(of.kind, of.name))
        size = sum(len(value.encode()) for value in puts.values())
        if size > COMMIT_BYTES_MAX:
            what = f"needs {size} bytes of etcd with its history; {COMMIT_BYTES_MAX} are the most"
            raise InvalidPolicy([Violation("document", what)])
        return await self._store.commit(
            expect=expect, puts={**puts, RISK_REVISION_KEY: "{}"}, deletes=deletes
        )

    def _check(
        self, stored: Mapping[str, tuple[str, int]], of: Reference, document: RiskDocument | None
    ) -> None:
        """In a thread: a large set takes seconds the first time."""
        if self._compiling.size > _KEPT_MAX:
            self._compiling = Compiling()
        self._known = take(self._known, stored)
        before = rulebook_of(self._known)
        after = rulebook_of(changed(self._known, of, document))
        if document is not None:
            violations = own_faults(after, of, self._compiling)
            if violations:
                raise InvalidPolicy(violations)
        broken = broken_by(before, after, of, self._compiling)
        if not broken:
            return
        if document is None:
            raise _in_use(of, broken)
        raise InvalidPolicy([Violation("document", why) for why in broken])


def _in_use(of: Reference, broken: list[str]) -> Refusal:
    more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
    return Refusal(
        grpc.StatusCode.FAILED_PRECONDITION,
        "POLICY_IN_USE",
        f"{of.kind}/{of.name} is asked for: {broken[0]}{more}",
        metadata={"kind": of.kind, "name": of.name, "asked_by": "; ".join(broken)[:1024]},
    )
