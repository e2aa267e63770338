"""Everything of signatures that a process of a cell has, put together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any

from cellpay.keys.v1 import answers_pb2_grpc, keys_pb2_grpc

from cells.keys.nonces import RedisNonces
from cells.keys.own import OwnKeys
from cells.keys.publishing import Publishing
from cells.keys.service import AnswersService, KeysService
from cells.ledger.worker import Lanes
from cells.policing import Policing
from cells.reading import ReadEngine
from cells.vault.kms import Kms
from router.guard import SlotsHere
from router.policies.model import Dependency, Signatures
from router.policies.rules import PolicySet
from router.signing.gate import SignatureGate
from router.signing.registry import Registry
from router.store.model import Store


class Signing:
    def __init__(
        self,
        store: Store,
        lanes: Lanes,
        engine: ReadEngine,
        here: SlotsHere,
        kms: Kms,
        redis_url: str,
        policing: Policing,
        hosts: Collection[str] = (),
    ) -> None:
        self._lanes = lanes
        self._engine = engine
        self._cell = here.cell
        self._registry = Registry(store)
        self._own = OwnKeys(store, kms)
        self._nonces = RedisNonces(redis_url, policing.board.of(Dependency.REDIS), here)
        self._publishing = Publishing(store, engine, here)
        self.gate = SignatureGate(
            lambda: self._registry.keys, self._nonces, self._own.signer, hosts=hosts
        )
        policing.followers.append(self._apply)

    def _apply(self, policies: PolicySet) -> None:
        self.gate.apply(policies.of(Signatures, self._cell))

    def services(self) -> list[tuple[Callable[..., None], Any]]:
        keys = KeysService(self._lanes, self._engine, self._publishing, self._own)
        return [
            (keys_pb2_grpc.add_KeysServiceServicer_to_server, keys),
            (answers_pb2_grpc.add_AnswersServiceServicer_to_server, AnswersService(self._own)),
        ]

    async def known(self) -> None:
        """Returns once signatures can be verified."""
        await self._registry.known()

    async def run(self, *, publish: bool) -> None:
        """For ever. `publish`: one process of a cell makes the copies in etcd good."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._registry.run())
            group.create_task(self._own.run())
            group.create_task(self._nonces.run())
            if publish:
                group.create_task(self._publishing.run())
