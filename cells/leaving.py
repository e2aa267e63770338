"""How a process of a cell ends without failing a call.

A further process that is not needed: it is out of the mesh already, so it waits until nobody calls
it. The cell itself, told to end (SIGTERM: Kubernetes, an operator): it asks the control plane to
move its slots away, by a key under its lease that the leading controller obeys
(control/leaving.py), and goes on working until they are gone or its patience is over. A second
signal ends that patience.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Awaitable

import structlog

from cells.joining import Joining
from cells.membership import Membership
from cells.settings import CellSettings
from cells.workers import EMPTY_SIGNAL, Workers
from router.guard import SlotsHere
from router.metrics import Calls
from router.store.model import LEAVING_CELLS_PREFIX

log = structlog.get_logger(__name__)

_POLL_S = 0.05
_ASK_AGAIN_POLLS = 20


class Signals:
    """What this process has been told."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._asked = asyncio.Event()
        self._now = asyncio.Event()
        self.empty_first = False
        loop.add_signal_handler(signal.SIGTERM, self._end)
        loop.add_signal_handler(signal.SIGINT, self._end_now)
        loop.add_signal_handler(EMPTY_SIGNAL, self._empty)

    def _end(self) -> None:
        if self._asked.is_set():
            self._now.set()
        self._asked.set()

    def _end_now(self) -> None:
        self._asked.set()
        self._now.set()

    def _empty(self) -> None:
        self.empty_first = True
        self._asked.set()

    async def asked(self) -> None:
        await self._asked.wait()

    async def within(self, limit_s: float, *what: Awaitable[None]) -> None:
        """Waits for all of it, at most so long, and no longer when told to end at once."""

        async def until_now() -> None:
            await self._now.wait()
            raise TimeoutError

        async def run(one: Awaitable[None]) -> None:
            await one

        try:
            async with asyncio.timeout(limit_s), asyncio.TaskGroup() as group:
                watching = group.create_task(until_now())
                tasks = [group.create_task(run(one)) for one in what]
                await asyncio.wait(tasks)
                watching.cancel()
        except* TimeoutError:
            log.warning("it ends before everything has left", limit_s=limit_s)


async def until_quiet(calls: Calls, quiet_s: float) -> None:
    """Until nothing has been under way, nor come, for so long."""
    loop = asyncio.get_running_loop()
    seen, since = calls.ended, loop.time()
    while loop.time() - since < quiet_s:
        await asyncio.sleep(_POLL_S)
        if calls.under_way or calls.ended != seen:
            seen, since = calls.ended, loop.time()


class Leaving:
    """The way out of a process of a cell."""

    def __init__(
        self,
        settings: CellSettings,
        membership: Membership,
        here: SlotsHere,
        workers: Workers,
        joining: Joining,
        calls: Calls,
    ) -> None:
        self._joining = joining
        self._settings = settings.leaving
        self._elasticity = settings.elasticity
        self._membership = membership
        self._here = here
        self._workers = workers
        self._calls = calls

    async def slots_away(self, signals: Signals) -> None:
        """Of the first process: returns when the cell may end."""
        if not self._settings.grace_s:
            return
        log.warning("the cell leaves: it asks for other homes for its slots")
        await signals.within(self._settings.grace_s, self._until_homeless())
        emptying = (self._workers.empty(), until_quiet(self._calls, self._settings.quiet_s))
        await signals.within(self._settings.empty_max_s, *emptying)

    async def emptied(self, signals: Signals) -> None:
        """Of a further process, which the mesh has forgotten: returns when it may end."""
        limits = self._elasticity
        await signals.within(limits.leave_max_s, until_quiet(self._calls, limits.quiet_s))

    async def parted(self, signals: Signals) -> None:
        """Of a process that had joined: the mesh forgets it first, then it may end."""

        async def part() -> None:
            await self._joining.leave()
            await until_quiet(self._calls, self._elasticity.quiet_s)

        await signals.within(self._elasticity.leave_max_s, part())

    def stop_workers(self) -> None:
        self._workers.stop()

    async def leave(self) -> None:
        await self._membership.leave()

    async def _until_homeless(self) -> None:
        key = LEAVING_CELLS_PREFIX + self._here.cell
        value = json.dumps({"incarnation": self._membership.incarnation})
        while self._here.owned():
            # Again and again: a lease that was lost took the key with it.
            await self._membership.tell(key, value)
            if not await self._membership.has_heirs():
                log.warning("no cell stays that could take the slots")
                return
            for _ in range(_ASK_AGAIN_POLLS):
                if not self._here.owned():
                    return
                await asyncio.sleep(_POLL_S)
