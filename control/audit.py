"""The audit log: who did what, when and why (invariant 7).

What was allowed is recorded in the same store commit as its effect, so neither is without the
other. Refused attempts are recorded too.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from typing import NamedTuple

from router.store.model import AUDIT_PREFIX, Store

ALLOWED = "allowed"


class AuditRecord(NamedTuple):
    audit_id: str
    # Unix ms of the controller: for people, never compared.
    time_ms: int
    actor: str
    action: str
    detail: str
    reason: str
    verdict: str
    # Its place in the hash chain (control/chain); 0 and empty before it has one.
    sequence: int = 0
    previous: str = ""


def new_id(prefix: str) -> str:
    """IDs that sort by time within one controller."""
    return f"{prefix}-{time.time_ns() // 1_000_000:012x}-{secrets.token_hex(4)}"


def audit_record(
    actor: str, action: str, detail: str, reason: str, verdict: str = ALLOWED
) -> AuditRecord:
    return AuditRecord(
        new_id("audit"), time.time_ns() // 1_000_000, actor, action, detail, reason, verdict
    )


def audit_put(record: AuditRecord) -> Mapping[str, str]:
    """What to put beside the recorded change."""
    return {AUDIT_PREFIX + record.audit_id: json.dumps(record._asdict())}


async def record_denial(store: Store, record: AuditRecord) -> None:
    await store.commit(expect={}, puts=audit_put(record))


async def list_audit(store: Store) -> list[AuditRecord]:
    """Newest first."""
    listing = await store.list(AUDIT_PREFIX)
    return [
        AuditRecord(**json.loads(listing.items[key].value))
        for key in sorted(listing.items, reverse=True)
    ]
