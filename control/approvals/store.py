"""Approvals in the store. A key under a lease beside each says that it has not run out: the store's
clock alone decides, and whoever uses or decides an approval compares that key too."""

from __future__ import annotations

from typing import NamedTuple

import grpc

from control.approvals.model import Approval
from control.audit import audit_put, audit_record
from router.errors import Refusal
from router.store.model import Store

APPROVALS_PREFIX = "/cellpay/approvals/"
_ALIVE_PREFIX = "/cellpay/approvals-alive/"


class Found(NamedTuple):
    approval: Approval
    alive: bool
    # What a change of it must compare.
    expect: dict[str, int]


async def ask(store: Store, approval: Approval, ttl_s: int, reason: str) -> None:
    """The lease first: an approval without one would be born expired, which harms nobody."""
    lease = await store.lease(ttl_s)
    alive = {_ALIVE_PREFIX + approval.approval_id: ""}
    await store.commit(expect={}, puts=alive, lease=lease)
    detail = f"{approval.approval_id}: {approval.action} {approval.parameters}"
    record = audit_record(approval.requester, "approval.ask", detail[:1024], reason)
    key = APPROVALS_PREFIX + approval.approval_id
    await store.commit(expect={key: 0}, puts={key: approval.to_json(), **audit_put(record)})


async def find(store: Store, approval_id: str) -> Found:
    """Raises Refusal when there is none."""
    key = APPROVALS_PREFIX + approval_id
    item = await store.get(key)
    if item is None or not approval_id:
        raise Refusal(
            grpc.StatusCode.NOT_FOUND,
            "APPROVAL_NOT_FOUND",
            f"there is no approval {approval_id[:64]!r}",
        )
    alive_key = _ALIVE_PREFIX + approval_id
    alive = await store.get(alive_key)
    expect = {key: item.revision, alive_key: alive.revision if alive else 0}
    return Found(Approval.from_json(item.value), alive is not None, expect)


async def decided(store: Store, found: Found, after: Approval, action: str, reason: str) -> bool:
    """Stores a decision and its audit record; False when another was first."""
    detail = f"{after.approval_id}: {after.action} {after.parameters} of {after.requester}"
    record = audit_record(after.approver, action, detail[:1024], reason)
    key = APPROVALS_PREFIX + after.approval_id
    puts = {key: after.to_json(), **audit_put(record)}
    return await store.commit(expect=found.expect, puts=puts) is not None


async def list_approvals(store: Store) -> list[Found]:
    """Newest first."""
    listing = await store.list(APPROVALS_PREFIX)
    alive = (await store.list(_ALIVE_PREFIX)).items
    found = []
    for key in sorted(listing.items, reverse=True):
        approval = Approval.from_json(listing.items[key].value)
        found.append(Found(approval, _ALIVE_PREFIX + approval.approval_id in alive, {}))
    return found
