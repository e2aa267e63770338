"""From merchants' homes to every cell: rows of keys become keys in etcd.

A copy is replaced only by one of a higher version, compared and set at once: a cell that was
deposed, and still believes a revoked key valid, changes nothing.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Collection

import grpc
import structlog
from sqlalchemy import ColumnElement, func, literal_column, select

from cells.keys.model import MerchantKey
from cells.keys.rules import public_key_of
from cells.keys.tables import MERCHANT_KEYS, merchant_keys
from cells.reading import ReadEngine, any_slot, fetch
from router.errors import Refusal
from router.guard import SlotsHere
from router.signing.registry import encode_key, version_of
from router.store.model import KEYS_PREFIX, Store, StoreUnavailable

log = structlog.get_logger(__name__)

_TRIES_MAX = 5
_LOOK_INTERVAL_S = 2.0
# Rows that were changed in this time are looked at each time, all of them now and then.
_LATELY_S = 120
_LOOKS_BETWEEN_ALL = 60


class Publishing:
    def __init__(self, store: Store, engine: ReadEngine, here: SlotsHere) -> None:
        self._store = store
        self._engine = engine
        self._here = here
        # Key ID → the version that etcd has, as far as we know.
        self._published: dict[str, int] = {}

    async def publish(self, row: MerchantKey) -> None:
        """Every cell knows of it when this returns, or soon. Raises Refusal when etcd is away: the
        row stands, and `run` makes the copy good."""
        try:
            await self._publish(row)
        except StoreUnavailable:
            raise Refusal(
                grpc.StatusCode.UNAVAILABLE,
                "KEYS_NOT_PUBLISHED",
                "it is done at home, and other cells hear of it as soon as etcd is back: "
                "retry with the same idempotency key to know when",
                retry_after_ms=500,
            ) from None

    async def _publish(self, row: MerchantKey) -> None:
        key = KEYS_PREFIX + row.key_id
        value = encode_key(public_key_of(row, base64.b64decode(row.public)), row.version)
        for _ in range(_TRIES_MAX):
            item = await self._store.get(key)
            if item is not None and version_of(item.value) >= row.version:
                break
            revision = item.revision if item is not None else 0
            if await self._store.commit(expect={key: revision}, puts={key: value}) is not None:
                log.info("a merchant's key is published", key_id=row.key_id, state=row.state)
                break
        else:
            raise StoreUnavailable("somebody else is always faster")
        self._published[row.key_id] = row.version

    async def run(self) -> None:
        """Publishes what a cell that died in between did not, for ever."""
        looks = 0
        owned: Collection[int] = ()
        while True:
            now_owned = self._here.owned()
            all_of_them = looks % _LOOKS_BETWEEN_ALL == 0 or now_owned != owned
            try:
                await self._look(now_owned, all_of_them=all_of_them)
                looks += 1
                owned = now_owned
            except (Refusal, StoreUnavailable) as error:
                log.info("merchants' keys wait to be published", why=str(error))
            await asyncio.sleep(_LOOK_INTERVAL_S)

    async def _look(self, owned: Collection[int], *, all_of_them: bool) -> None:
        conditions: list[ColumnElement[bool]] = [merchant_keys.c.slot == any_slot(owned)]
        if not all_of_them:
            lately = func.now() - literal_column(f"interval '{_LATELY_S} seconds'")
            conditions.append(merchant_keys.c.touched_at > lately)
        statement = select(*(merchant_keys.c[name] for name in MERCHANT_KEYS.fields))
        for values in await fetch(self._engine, statement.where(*conditions)):
            row = MerchantKey(*values)
            if all_of_them or self._published.get(row.key_id, 0) < row.version:
                await self._publish(row)
