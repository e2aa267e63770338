"""Merchants' public keys, as every process of the mesh knows them: followed from etcd.

A key's truth is the row at its merchant's home (cells/keys); what stands here is a copy, whose
version only ever rises. A revocation is in force within the watch's delay. With etcd away what was
known stays known.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping

import structlog

from router.signing.model import Algorithm, Key
from router.store.model import KEYS_PREFIX, Store

log = structlog.get_logger(__name__)


def encode_key(key: Key, version: int) -> str:
    return json.dumps(
        {
            "merchant_id": key.merchant_id,
            "algorithm": key.algorithm,
            "public": base64.b64encode(key.public).decode("ascii"),
            "not_before": key.not_before,
            "not_after": key.not_after,
            "revoked": key.revoked,
            "version": version,
        }
    )


def version_of(value: str) -> int:
    """Of a key in etcd; 0 for what is none of ours, which the next writer replaces."""
    try:
        return int(json.loads(value)["version"])
    except (ValueError, KeyError, TypeError):
        return 0


def decode_key(key_id: str, value: str) -> Key:
    """Raises ValueError, KeyError or TypeError."""
    raw = json.loads(value)
    return Key(
        key_id,
        str(raw["merchant_id"]),
        Algorithm(raw["algorithm"]),
        base64.b64decode(raw["public"], validate=True),
        int(raw["not_before"]),
        int(raw["not_after"]),
        bool(raw["revoked"]),
    )


class Registry:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._revisions: dict[str, int] = {}
        self._keys: dict[str, Key] = {}
        self._known = asyncio.Event()

    async def known(self) -> None:
        """Returns once etcd's keys are known: who looked before would refuse every merchant."""
        await self._known.wait()

    @property
    def keys(self) -> Mapping[str, Key]:
        return self._keys

    async def run(self) -> None:
        """For ever."""
        async for listing in self._store.watch(KEYS_PREFIX):
            found = {
                key.removeprefix(KEYS_PREFIX): (item.value, item.revision)
                for key, item in listing.items.items()
            }
            for key_id in self._keys.keys() - found.keys():
                # Nobody deletes one; whoever did has ended it.
                del self._keys[key_id]
                del self._revisions[key_id]
            for key_id, (value, revision) in found.items():
                if self._revisions.get(key_id) != revision:
                    self._take(key_id, value, revision)
            self._known.set()

    def _take(self, key_id: str, value: str, revision: int) -> None:
        self._revisions[key_id] = revision
        try:
            self._keys[key_id] = decode_key(key_id, value)
        except (ValueError, KeyError, TypeError):
            # Nothing is better than a key that may have been revoked by what cannot be read.
            self._keys.pop(key_id, None)
            self._revisions.pop(key_id, None)
            log.error("a merchant's key in etcd cannot be read", key_id=key_id)
