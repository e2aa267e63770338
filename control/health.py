"""Automatic failover: a lost lease starts a failover, if the policy says so.

Slots are never given back by themselves: a flapping cell stays out until somebody restores it
(pitfall 26).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import structlog

from control.leader import Leadership
from control.operations.model import OperationKind
from control.operations.service import start_operation
from control.operations.steps import Wish, dead_cell
from control.view import View
from router.errors import Refusal
from router.store.model import FAILOVER_POLICY_KEY, Store, StoreUnavailable

log = structlog.get_logger(__name__)

_LOOK_INTERVAL_S = 0.5


async def automatic_failover_is_on(store: Store) -> bool:
    item = await store.get(FAILOVER_POLICY_KEY)
    return item is not None and bool(json.loads(item.value)["automatic"])


class Watchman:
    def __init__(
        self,
        store: Store,
        view: View,
        leadership: Leadership,
        *,
        actor: str,
        startup_grace_s: float,
        dead_confirm_s: float,
    ) -> None:
        self._store = store
        self._view = view
        self._leadership = leadership
        self._actor = actor
        self._grace_until = time.monotonic() + startup_grace_s
        self._confirm_s = dead_confirm_s

    async def run(self) -> None:
        """Looks at each change of the view, and now and then, for ever."""
        while True:
            changed = self._view.changed
            wait_s = _LOOK_INTERVAL_S
            try:
                wait_s = await self._look()
            except Refusal as refusal:
                log.info("no failover now", reason=refusal.reason, why=refusal.message)
            except StoreUnavailable as error:
                log.warning("etcd is away", why=str(error))
            with contextlib.suppress(TimeoutError):
                # Not wait_for: on Python 3.11 it loses a cancellation that comes with the result.
                async with asyncio.timeout(wait_s):
                    await changed.wait()

    async def _look(self) -> float:
        """Starts a failover if one is due; returns how long to wait before the next look."""
        known = self._view.known()
        loop = asyncio.get_running_loop()
        if not self._leadership.leads or known is None:
            return _LOOK_INTERVAL_S
        if loop.time() < self._leadership.unsettled_until:
            return _LOOK_INTERVAL_S
        grace_over = time.monotonic() > self._grace_until
        cell = dead_cell(known, self._view.seen_alive, grace_over=grace_over)
        if cell is None:
            return _LOOK_INTERVAL_S
        missing_s = self._view.missing_for_s(cell)
        if missing_s < self._confirm_s:
            return self._confirm_s - missing_s
        if not await automatic_failover_is_on(self._store):
            return _LOOK_INTERVAL_S
        wish = Wish(OperationKind.FAILOVER, cell)
        operation = await start_operation(
            self._store,
            known,
            self._view.revision,
            wish,
            self._actor,
            f"cell {cell} lost its lease",
        )
        log.warning("automatic failover", cell=cell, operation=operation.operation_id)
        return _LOOK_INTERVAL_S
