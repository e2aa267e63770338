"""What serve.py starts of dealings with banks: channels as configured, their desk, the services."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from cellpay.channels.v1 import channels_pb2 as pb
from cellpay.channels.v1 import channels_pb2_grpc
from cellpay.charges.v1 import charges_pb2_grpc
from cellpay.payouts.v1 import payouts_pb2_grpc

from cells.adjustments.service import AdjustmentsService
from cells.channels.choosing import InOrder
from cells.channels.desk import Deferred, Desk, Ear
from cells.channels.model import Heard
from cells.channels.registry import open_channel
from cells.channels.service import VERDICTS_OUT, ReportsService
from cells.charges.service import ChargesService
from cells.choice.desk import ByPolicy
from cells.choice.worker import Choosing
from cells.ledger.worker import Lanes
from cells.payouts.service import PayoutsService
from cells.policing import Policing
from cells.reading import ReadEngine
from cells.risk.screening import Screening
from cells.settings import CellSettings
from cells.vault.facts import RegisteredInstruments
from cells.vault.store import Vault
from router.client import Mesh
from router.guard import SlotsHere
from router.policies.model import Feature, Mode

# Reports of callbacks that are on their way to their homes at once.
_TELLING_MAX = 8


class Banking:
    def __init__(
        self,
        settings: CellSettings,
        lanes: Lanes,
        engine: ReadEngine,
        here: SlotsHere,
        vault: Vault,
        policing: Policing,
        choosing: Choosing,
        mesh: Mesh,
        screening: Screening,
    ) -> None:
        """Raises ValueError when a channel is configured wrongly."""
        ear = Ear()
        channels = {item.name: open_channel(item, ear.listen) for item in settings.channels}
        self.desk = Desk(
            lanes,
            engine,
            here,
            channels,
            ByPolicy(choosing, channels, InOrder(channels, settings.channels)),
            RegisteredInstruments(vault),
            settings.banking,
            Deferred(
                lambda: policing.mode(Feature.REFUNDS) != Mode.ON,
                lambda: policing.mode(Feature.PAYOUTS) != Mode.ON,
            ),
        )
        self._lanes = lanes
        self._engine = engine
        self._ear = ear
        self._mesh = mesh
        self._screening = screening
        self._timeout_s = settings.transfers.branch_call_timeout_s

    def services(self) -> list[tuple[Callable[..., None], Any]]:
        """Each with the generated function that adds it to a server."""
        desk, engine = self.desk, self._engine
        return [
            (
                charges_pb2_grpc.add_ChargesServiceServicer_to_server,
                ChargesService(engine, desk, self._screening),
            ),
            (
                payouts_pb2_grpc.add_PayoutsServiceServicer_to_server,
                PayoutsService(engine, desk, self._screening),
            ),
            (
                channels_pb2_grpc.add_ReportsServiceServicer_to_server,
                ReportsService(engine, desk),
            ),
            (
                channels_pb2_grpc.add_AdjustmentsServiceServicer_to_server,
                AdjustmentsService(self._lanes),
            ),
        ]

    async def run(self, *, recover: bool) -> None:
        """For ever. One process of a cell recovers."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.desk.run())
            for _ in range(_TELLING_MAX):
                group.create_task(self._ear.run(self._tell))
            if recover:
                group.create_task(self.desk.recovery.run())

    async def _tell(self, heard: Heard) -> None:
        """To the home of the attempt, which need not be here."""
        answer = heard.answer
        await self._mesh.reports.Report(
            pb.ReportRequest(
                reference=heard.reference,
                channel=heard.channel,
                verdict=VERDICTS_OUT[answer.verdict],
                reason=answer.reason if answer.reason != "NONE" else "",
                code=answer.code,
                bank_reference=answer.bank_reference,
                clearing_date=answer.clearing_date,
            ),
            timeout=self._timeout_s,
        )
