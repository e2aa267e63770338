"""Policies in etcd: each change is one commit with its audit record, by compare-and-set."""

from __future__ import annotations

from collections.abc import Mapping

from control.policies.model import Report, StoredPolicy
from control.policies.rules import report_of, stored_policy
from router.policies.model import POLICIES_PREFIX, REPORTS_PREFIX
from router.store.model import Store


async def read_policy(store: Store, key: str) -> StoredPolicy | None:
    item = await store.get(key)
    return stored_policy(item) if item else None


async def list_policies(store: Store) -> list[StoredPolicy]:
    """By kind, then by name."""
    listing = await store.list(POLICIES_PREFIX)
    found = (stored_policy(listing.items[key]) for key in sorted(listing.items))
    return [policy for policy in found if policy is not None]


async def write_policy(
    store: Store, key: str, value: str, revision: int | None, record: Mapping[str, str]
) -> int | None:
    """The new revision; None when the policy is not at `revision` (None: at any)."""
    expect = {} if revision is None else {key: revision}
    return await store.commit(expect=expect, puts={key: value, **record})


async def delete_policy(store: Store, key: str, revision: int, record: Mapping[str, str]) -> bool:
    """False when the policy is not at `revision`."""
    done = await store.commit(expect={key: revision}, puts=record, deletes=[key])
    return done is not None


async def list_reports(store: Store) -> list[Report]:
    listing = await store.list(REPORTS_PREFIX)
    found = (report_of(listing.items[key]) for key in sorted(listing.items))
    return [report for report in found if report is not None]
