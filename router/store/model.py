"""The seam to etcd: a small key-value store with compare-and-set, leases and watches.

Two implementations (`etcd.py`, `memory.py`) pass one contract test suite
(tests/integration/test_store_contract.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import NamedTuple, Protocol

SLOT_MAP_KEY = "/cellpay/slotmap"
PREFERRED_SLOT_MAP_KEY = "/cellpay/slotmap-preferred"
DECLARED_CELLS_PREFIX = "/cellpay/cells/declared/"
LIVE_CELLS_PREFIX = "/cellpay/cells/live/"
# Cell and process → its address, of processes that joined it from elsewhere, under their leases.
JOINED_CELLS_PREFIX = "/cellpay/cells/joined/"
# Cells that were told to end, under their leases: their slots are moved away.
LEAVING_CELLS_PREFIX = "/cellpay/cells/leaving/"
# Cells whose slots were moved away for that: they are given back to who comes again.
AWAY_CELLS_PREFIX = "/cellpay/cells/away/"
# Of each process of a cell: how its payments fare.
CELL_HEALTH_PREFIX = "/cellpay/cells/health/"
# Cells that were failed over without being asked: until they are restored they are held out.
HELD_CELLS_PREFIX = "/cellpay/cells/held/"
# Cells whose failover an operator has aborted, under leases: none starts by itself meanwhile.
FAILOVER_HOLDS_PREFIX = "/cellpay/cells/failover-held-down/"
OPERATIONS_PREFIX = "/cellpay/operations/"
RUNNING_OPERATION_KEY = "/cellpay/operation-running"
# Operations that wait or are paused.
OPEN_OPERATIONS_PREFIX = "/cellpay/operations-open/"
AUDIT_PREFIX = "/cellpay/audit/"
FAILOVER_POLICY_KEY = "/cellpay/policies/failover"
LEADER_KEY = "/cellpay/controller/leader"
# Cell → addresses that xDS names in place of its own, under the lease of a drill.
DETOURS_PREFIX = "/cellpay/detours/"
# Cell and channel → that its breaker is open, under a lease of the process that found it away.
CHANNEL_BREAKERS_PREFIX = "/cellpay/channel-breakers/"
# Public keys of merchants: copies of what stands at their homes.
KEYS_PREFIX = "/cellpay/keys/"
# Our own, by which answers and webhooks are signed; the private halves are wrapped by the KMS.
OWN_KEYS_PREFIX = "/cellpay/own-keys/"
RUNNING_DRILL_KEY = "/cellpay/drill-running"


class StoreUnavailable(Exception):
    """The store did not answer; whether a commit took effect is unknown."""


class Item(NamedTuple):
    key: str
    value: str
    # etcd's mod_revision: when this key last changed.
    revision: int


class Listing(NamedTuple):
    items: Mapping[str, Item]
    # The store's revision that this listing shows.
    revision: int


class Lease(Protocol):
    """A promise to be alive. Keys put under it vanish when it is not refreshed for `ttl_s`."""

    @property
    def ttl_s(self) -> int: ...

    async def refresh(self) -> bool:
        """True while the lease lives; False for ever once it has expired. StoreUnavailable."""
        ...

    async def revoke(self) -> None: ...


class Store(Protocol):
    """Linearizable. Every method may raise StoreUnavailable; reads are then safe to repeat."""

    async def get(self, key: str) -> Item | None: ...

    async def list(self, prefix: str) -> Listing: ...

    async def commit(
        self,
        *,
        expect: Mapping[str, int],
        puts: Mapping[str, str],
        deletes: Iterable[str] = (),
        lease: Lease | None = None,
    ) -> int | None:
        """Atomic compare-and-set: every key of `expect` must have that mod revision (0: absent).

        Returns the new revision, or None when an expectation failed and nothing was written.
        """
        ...

    async def lease(self, ttl_s: int) -> Lease: ...

    def watch(self, prefix: str) -> AsyncIterator[Listing]:
        """All keys under the prefix now, and again after each change (changes may coalesce).

        Level-triggered: it survives outages of the store by listing again, so no consumer needs
        to think of missed events. Never ends by itself; raises only when closed.
        """
        ...

    async def close(self) -> None: ...
