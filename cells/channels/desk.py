"""All of a process's dealings with banks, put together: what serve.py starts and hands out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

import structlog

from cells.channels.asking import Asking
from cells.channels.choosing import Chooser
from cells.channels.drives import Drives
from cells.channels.instruments import Vault
from cells.channels.interface import Channel
from cells.channels.model import Heard, Operation
from cells.channels.recovery import BankRecovery
from cells.charges.driver import Charging
from cells.charges.refunding import ChargeRefunding
from cells.ledger.worker import Lanes
from cells.payouts.driver import Paying
from cells.reading import ReadEngine
from cells.settings import BankingSettings
from router.guard import SlotsHere

log = structlog.get_logger(__name__)

_HEARD_MAX = 10_000


class Ear:
    """Where channels put what banks say without being asked. Full, it forgets: recovery asks."""

    def __init__(self) -> None:
        self._heard: asyncio.Queue[Heard] = asyncio.Queue(_HEARD_MAX)

    def listen(self, heard: Heard) -> None:
        try:
            self._heard.put_nowait(heard)
        except asyncio.QueueFull:
            log.warning("more is heard than is taken in", channel=heard.channel)

    async def run(self, tell: Callable[[Heard], Awaitable[None]]) -> None:
        """Passes on for ever, one after the other."""
        while True:
            heard = await self._heard.get()
            try:
                await tell(heard)
            except Exception as error:
                log.warning(
                    "what a bank said is not taken in",
                    channel=heard.channel,
                    reference=heard.reference[:64],
                    error=str(error)[:200],
                )


class Deferred(NamedTuple):
    """Whether these wait for better times (a degradation policy)."""

    refunds: Callable[[], bool]
    payouts: Callable[[], bool]


class Desk:
    def __init__(
        self,
        lanes: Lanes,
        engine: ReadEngine,
        here: SlotsHere,
        channels: Mapping[str, Channel],
        chooser: Chooser,
        vault: Vault,
        settings: BankingSettings,
        deferred: Deferred,
    ) -> None:
        self.channels = channels
        self.chooser = chooser
        self.vault = vault
        self.drives = Drives(settings.in_flight_max, settings.wait_max_s)
        self.asking = asking = Asking(channels, vault, settings)
        self.charging = Charging(lanes, engine, asking, chooser, vault, self.drives, settings)
        self.refunding = ChargeRefunding(
            lanes, engine, asking, self.drives, settings, deferred.refunds
        )
        self.paying = Paying(
            lanes, engine, asking, chooser, vault, self.drives, settings, deferred.payouts
        )
        resolvers = {
            Operation.AUTHORISE: self.charging.resolve,
            Operation.VOID: self.charging.resolve,
            Operation.REFUND: self.refunding.resolve,
            Operation.PAYOUT: self.paying.resolve,
        }
        self.recovery = BankRecovery(engine, here, resolvers, self.refunding, self.paying, settings)

    async def run(self) -> None:
        """What every process of a cell does: keeps its connections, and drives what it began."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.drives.run())
            for channel in self.channels.values():
                group.create_task(_kept(channel))


async def _kept(channel: Channel) -> None:
    """A channel that falls over is started anew: the others and the cell go on."""
    while True:
        try:
            await channel.run()
        except Exception as error:
            log.error("a channel fell over", channel=channel.name, error=type(error).__name__)
        await asyncio.sleep(1.0)
