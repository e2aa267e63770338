"""Policies in etcd: each change is one commit with its audit record, by compare-and-set."""

from __future__ import annotations

from collections.abc import Mapping

from control.policies.history import Change, archive_key, changes_of, unpacked
from control.policies.model import Report, StoredPolicy
from control.policies.rules import report_of, stored_policy
from router.policies.model import POLICIES_PREFIX, REPORTS_PREFIX
from router.store.model import AUDIT_PREFIX, Store


async def read_policy(store: Store, key: str) -> StoredPolicy | None:
    item = await store.get(key)
    return stored_policy(item) if item else None


async def list_policies(store: Store) -> list[StoredPolicy]:
    """By kind, then by name."""
    listing = await store.list(POLICIES_PREFIX)
    found = (stored_policy(listing.items[key]) for key in sorted(listing.items))
    return [policy for policy in found if policy is not None]


async def write_policy(
    store: Store, key: str, revision: int | None, puts: Mapping[str, str]
) -> int | None:
    """The new revision; None when the policy is not at `revision` (None: at any).

    `puts`: the policy and its audit record.
    """
    expect = {} if revision is None else {key: revision}
    return await store.commit(expect=expect, puts=puts)


async def delete_policy(store: Store, key: str, revision: int, record: Mapping[str, str]) -> bool:
    """False when the policy is not at `revision`."""
    done = await store.commit(expect={key: revision}, puts=record, deletes=[key])
    return done is not None


async def list_reports(store: Store) -> list[Report]:
    listing = await store.list(REPORTS_PREFIX)
    found = (report_of(listing.items[key]) for key in sorted(listing.items))
    return [report for report in found if report is not None]


async def list_changes(store: Store, kind: str, name: str) -> list[Change]:
    """Of a policy, or of all of a kind; newest first."""
    listing = await store.list(AUDIT_PREFIX)
    found = changes_of(list(listing.items.values()))
    return [item for item in reversed(found) if item.kind == kind and name in {"", item.name}]


async def read_document(store: Store, change: Change) -> str | None:
    """As it was written then; None when that is kept no more, or it was deleted."""
    if change.sha256:
        item = await store.get(archive_key(change.kind, change.name, change.sha256))
        return unpacked(item.value) if item else None
    return change.document or None
