"""Does anything listen where a cell says it does? A death is known at once, its lost lease later.

One idle connection to each cell's first process; when it breaks, a new one is tried. Only a refused
connection counts: the machine answers that nobody listens there. Silence may be the network between
the cell and us alone, and is left to the lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import structlog

from control.view import View

log = structlog.get_logger(__name__)

_RETRY_S = 0.05
_CONNECT_TIMEOUT_S = 1.0
# Refused for so long: the process has gone, and is not just changing its listener.
_CONFIRM_S = 0.75
# A server closes connections that say nothing.
_AGAIN_S = 1.0


class Doors:
    def __init__(self, view: View) -> None:
        self._view = view
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Follows the live cells' addresses, for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                changed = self._view.changed
                wanted = {
                    (cell, live.addresses[0])
                    for cell, live in self._view.live.items()
                    if live.addresses
                }
                for door in set(self._tasks) - wanted:
                    self._tasks.pop(door).cancel()
                    self._view.set_gone(door[0], gone=False)
                for cell, address in wanted - set(self._tasks):
                    self._tasks[cell, address] = group.create_task(self._watch(cell, address))
                await changed.wait()

    async def _watch(self, cell: str, address: str) -> None:
        host, _, port = address.rpartition(":")
        refused_since: float | None = None
        while True:
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    reader, writer = await asyncio.open_connection(host, int(port))
            except ConnectionRefusedError:
                now = time.monotonic()
                refused_since = refused_since or now
                if now - refused_since >= _CONFIRM_S:
                    self._view.set_gone(cell, gone=True)
                await asyncio.sleep(_RETRY_S)
                continue
            except (OSError, TimeoutError):
                refused_since = None
                await asyncio.sleep(_AGAIN_S)
                continue
            refused_since = None
            self._view.set_gone(cell, gone=False)
            began = time.monotonic()
            try:
                with contextlib.suppress(OSError):
                    await reader.read()
            finally:
                writer.close()
            if time.monotonic() - began < _AGAIN_S:
                await asyncio.sleep(_RETRY_S)
