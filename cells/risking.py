"""What serve.py starts of risk: the screening, what it asks, where its decisions are told, and the
services of challenges and reviews."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

from cellpay.risk.v1 import risk_pb2_grpc
from prometheus_client.metrics_core import Metric

from cells.database import make_engine
from cells.ledger.worker import Lanes
from cells.policing import Policing
from cells.reading import ReadEngine
from cells.risk.cases.factors import Factors
from cells.risk.cases.retention import Retention
from cells.risk.cases.service import ReviewsService, RiskService
from cells.risk.consumer import Consumer
from cells.risk.features import RedisFeatures
from cells.risk.figures import FeatureMetrics
from cells.risk.knowledge import Knowing
from cells.risk.lookups import RiskReader
from cells.risk.scorers import Scorers
from cells.risk.screening import Screening, Sources
from cells.risk.stream import Publisher
from cells.settings import CellSettings
from cells.vault.store import Vault
from router.guard import SlotsHere
from router.policies.model import Dependency, Feature, Mode
from router.risk.features import FeatureSet

# What a process that ends has decided is told for so long.
_DRAIN_S = 1.0


class Risking:
    def __init__(
        self,
        settings: CellSettings,
        lanes: Lanes,
        engine: ReadEngine,
        here: SlotsHere,
        vault: Vault,
        policing: Policing,
    ) -> None:
        risk = settings.risk
        board = policing.board
        assert policing.risk is not None, "a process that screens knows of risk"
        self._knowing: Knowing = policing.risk
        # Connections of its own: a read that waits for those of lists would hold up payments.
        self._engine = make_engine(
            settings.database_url,
            f"cellpay-{settings.cell}-risk",
            settings.database,
            pool_size=risk.groups_max,
            lanes=True,
        )
        self._features = RedisFeatures(
            settings.redis_url, board.of(Dependency.REDIS), wait_s=risk.features_wait_ms / 1000
        )
        self._publisher = Publisher(
            settings.nats_url, settings.cell, board.of(Dependency.NATS), settings.nats_tls
        )
        self._consumer = Consumer(
            settings.nats_url,
            settings.redis_url,
            settings.cell,
            self._features_of_the_day,
            settings.nats_tls,
        )
        self._scorers = Scorers()
        self._knowing.followers.append(self._scorers.hear)
        self.screening = Screening(
            lanes,
            [RiskReader(self._engine, here) for _ in range(risk.groups_max)],
            Sources(
                lambda: self._knowing.now,
                self._features,
                self._scorers,
                lambda: policing.mode(Feature.RISK_MODEL) == Mode.ON,
                self._knowing.hits,
            ),
            self._publisher,
            risk,
        )
        self._counts = False
        self._retention = Retention(engine.primary, here, risk.retention_s)
        self._factors = Factors(lanes, engine, vault.keyring, risk.passed_ttl_s)
        self._services = (
            RiskService(engine, self._factors),
            ReviewsService(lanes, risk.approved_ttl_s),
        )

    def _features_of_the_day(self) -> FeatureSet:
        known = self._knowing.now
        return known.features if known is not None else FeatureSet()

    def services(self) -> list[tuple[Callable[..., None], Any]]:
        """Each with the generated function that adds it to a server."""
        risk, reviews = self._services
        return [
            (risk_pb2_grpc.add_RiskServiceServicer_to_server, risk),
            (risk_pb2_grpc.add_ReviewsServiceServicer_to_server, reviews),
        ]

    async def run(self, *, consume: bool) -> None:
        """For ever. One process of a cell counts what all cells decide, and forgets what is old."""
        self._counts = consume
        try:
            async with asyncio.TaskGroup() as group:
                for runner in self.screening.runners():
                    group.create_task(runner())
                group.create_task(self._scorers.run())
                group.create_task(self._told())
                if consume:
                    group.create_task(self._counted())
                    group.create_task(self._retention.run())
        finally:
            await self.screening.close()
            await self._features.close()
            await self._engine.dispose()

    async def _told(self) -> None:
        """A mesh without risk has no stream for it."""
        await self._asked_for()
        await self._publisher.run()

    async def _counted(self) -> None:
        await self._asked_for()
        await self._consumer.run()

    async def _asked_for(self) -> None:
        while (known := self._knowing.now) is None or known.is_empty:
            await self._knowing.changed.wait()

    async def drain(self) -> None:
        """What was decided is told before the process ends."""
        if self._publisher.waiting:
            await self._publisher.drain(_DRAIN_S)

    def __call__(self) -> Iterator[Metric]:
        """For whoever scrapes."""
        yield from self.screening.figures()
        yield from self._scorers()
        yield from FeatureMetrics(self._publisher, self._consumer if self._counts else None)()
