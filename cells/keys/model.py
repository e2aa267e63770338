"""A merchant's public key as it is kept at the merchant's home."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class KeyState(StrEnum):
    ACTIVE = "active"
    # For good.
    REVOKED = "revoked"


class KeyEvent(StrEnum):
    EXPIRE = "expire"
    REVOKE = "revoke"


# Anything absent is refused. That its time has run out is no state: the verifier's clock says so.
TRANSITIONS: Mapping[KeyState, Mapping[KeyEvent, KeyState]] = {
    KeyState.ACTIVE: {KeyEvent.EXPIRE: KeyState.ACTIVE, KeyEvent.REVOKE: KeyState.REVOKED},
    KeyState.REVOKED: {KeyEvent.REVOKE: KeyState.REVOKED},
}


class MerchantKey(NamedTuple):
    slot: int
    # Computed from the merchant and the key: the same one again is found, also after it ended.
    key_id: str
    merchant_id: str
    algorithm: str
    # SubjectPublicKeyInfo, DER, base 64.
    public: str
    state: str
    # Seconds since 1970, as signatures have them; `not_after` 0: until it is revoked.
    not_before: int
    not_after: int
    reason: str
    # One more at each change: the copy in etcd is never replaced by an older one.
    version: int
    created_at: datetime
    touched_at: datetime
