"""An operator's no: the automatic failover of a cell, held down for a stated time.

Who aborts a failover knows something that the control plane does not. Without this the watchman
would begin another one at its next look. The no lies under a lease: the store's clock ends it, and
it survives every controller.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

import grpc

from control.audit import audit_put, audit_record
from router.errors import Refusal
from router.store.model import FAILOVER_HOLDS_PREFIX, Lease, Store

HOLD_DEFAULT_S = 3_600
HOLD_MAX_S = 7 * 86_400


@dataclass(frozen=True, slots=True)
class Hold:
    actor: str
    reason: str
    # What the operator aborted.
    operation_id: str
    # As it was stated; how much of it is left the lease knows.
    hold_s: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Hold:
        document = json.loads(text)
        return Hold(**{item.name: document[item.name] for item in fields(Hold)})

    def __str__(self) -> str:
        return f"{self.actor} aborted {self.operation_id} ({self.reason})"


async def hold_down(store: Store, cells: Iterable[str], hold: Hold) -> Lease:
    """Before what it is for: nothing automatic can then slip in between. Revoke the lease when
    that could not be done. A cell that is held down already stays so as it is."""
    lease = await store.lease(hold.hold_s)
    for cell in cells:
        key = FAILOVER_HOLDS_PREFIX + cell
        await store.commit(expect={key: 0}, puts={key: hold.to_json()}, lease=lease)
    return lease


async def release(store: Store, cell: str, actor: str, reason: str) -> None:
    """Raises Refusal when the cell is not held down."""
    key = FAILOVER_HOLDS_PREFIX + cell
    item = await store.get(key)
    record = audit_record(actor, "failover.release", cell, reason)
    released = item is not None and await store.commit(
        expect={key: item.revision}, puts=audit_put(record), deletes=[key]
    )
    if not released:
        raise Refusal(
            grpc.StatusCode.FAILED_PRECONDITION,
            "NOT_HELD_DOWN",
            f"nobody holds the automatic failover of cell {cell[:64]!r} down",
            metadata={"cell": cell[:64]},
        )
