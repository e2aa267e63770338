"""Our own keys: by which answers and webhooks are signed, the same in every cell.

They lie in etcd, their private halves wrapped by the KMS. The newest signs; older ones stay listed
for as long as somebody may look at what they signed. A process that needs one and finds none makes
it: of two that do so at once one is the first, and the other takes its key.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from tongsuopy.crypto import serialization as sm_serialization
from tongsuopy.crypto.asymciphers import ec as sm_ec

from cells.vault.kms import Kms, KmsFault, Wrapped
from router.signing.keys import BadKey, Signer
from router.signing.model import Algorithm
from router.store.model import OWN_KEYS_PREFIX, Item, Store, StoreUnavailable

log = structlog.get_logger(__name__)

# Whoever signs by SM2 and SM3 may have to verify by them; Ed25519 is for all others.
OURS = (Algorithm.ED25519, Algorithm.SM2_SM3)
_PERIOD_S = 90 * 86_400
_LISTED_S = 2 * _PERIOD_S
_LOOK_INTERVAL_S = 30.0


class OwnKey(NamedTuple):
    key_id: str
    number: int
    made_s: int
    signer: Signer


def new_private(algorithm: Algorithm) -> bytes:
    """PEM, PKCS #8."""
    if algorithm == Algorithm.SM2_SM3:
        sm2: bytes = sm_ec.generate_private_key(sm_ec.SM2()).private_bytes(
            sm_serialization.Encoding.PEM,
            sm_serialization.PrivateFormat.PKCS8,
            sm_serialization.NoEncryption(),
        )
        return sm2
    return ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


class OwnKeys:
    def __init__(self, store: Store, kms: Kms) -> None:
        self._store = store
        self._kms = kms
        self._keys: dict[str, OwnKey] = {}
        self._newest: Mapping[Algorithm, OwnKey] = {}

    def signer(self, algorithm: Algorithm) -> Signer | None:
        """What answers a request that was signed by this algorithm; None while there is none."""
        mine = algorithm if algorithm == Algorithm.SM2_SM3 else Algorithm.ED25519
        found = self._newest.get(mine)
        return found.signer if found else None

    def listed(self) -> list[OwnKey]:
        """Those whose signatures somebody may still look at, the newest first."""
        since = int(time.time()) - _LISTED_S
        newest = set(self._newest.values())
        known = [key for key in self._keys.values() if key.made_s > since or key in newest]
        return sorted(known, key=lambda key: (-key.made_s, key.key_id))

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._replace_old_ones())

    async def _follow(self) -> None:
        async for listing in self._store.watch(OWN_KEYS_PREFIX):
            for item in listing.items.values():
                await self._take(item)
            self._choose()

    async def _take(self, item: Item) -> None:
        key_id = item.key.removeprefix(OWN_KEYS_PREFIX)
        if key_id in self._keys:
            return
        try:
            raw: Any = json.loads(item.value)
            algorithm = Algorithm(raw["algorithm"])
            wrapped = Wrapped(raw["kms_version"], base64.b64decode(raw["wrapped"]))
            private = await self._kms.unwrap(wrapped, _context(key_id))
            signer = Signer(key_id, algorithm, private)
            number = int(key_id.rpartition("-")[2])
            self._keys[key_id] = OwnKey(key_id, number, int(raw["made_s"]), signer)
        except (KmsFault, BadKey, ValueError, KeyError, TypeError) as error:
            log.error("one of our keys cannot be used", key_id=key_id, error=type(error).__name__)

    def _choose(self) -> None:
        newest: dict[Algorithm, OwnKey] = {}
        for key in sorted(self._keys.values(), key=lambda key: key.number):
            newest[key.signer.algorithm] = key
        self._newest = newest

    async def _replace_old_ones(self) -> None:
        while True:
            try:
                listing = await self._store.list(OWN_KEYS_PREFIX)
                for item in listing.items.values():
                    await self._take(item)
                self._choose()
                for algorithm in OURS:
                    await self._make(algorithm)
            except (KmsFault, StoreUnavailable) as error:
                log.info("our signing keys wait", why=str(error))
            await asyncio.sleep(_LOOK_INTERVAL_S)

    async def _make(self, algorithm: Algorithm) -> None:
        newest = self._newest.get(algorithm)
        now = int(time.time())
        if newest is not None and newest.made_s + _PERIOD_S > now:
            return
        number = newest.number + 1 if newest else 1
        key_id = f"cellpay-{algorithm}-{number}"
        wrapped = await self._kms.wrap(new_private(algorithm), _context(key_id))
        value = json.dumps(
            {
                "algorithm": algorithm,
                "made_s": now,
                "wrapped": base64.b64encode(wrapped.data).decode("ascii"),
                "kms_version": wrapped.version,
            }
        )
        key = OWN_KEYS_PREFIX + key_id
        if await self._store.commit(expect={key: 0}, puts={key: value}) is not None:
            log.info("a signing key was made", key_id=key_id, audit=True)


def _context(key_id: str) -> bytes:
    return f"cellpay.own-keys.1/{key_id}".encode()
