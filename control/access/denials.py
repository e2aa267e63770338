"""Refused calls in the audit log: each for itself, as long as they are few.

Each record is a commit of its own in the chain that operations commit to. Who is refused thousands
of times must not hold up a failover, nor fill etcd: beyond his share his refusals are counted, and
the sum is a record.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from control.audit import AuditRecord, audit_record, record_denial
from router.store.model import Store, StoreUnavailable

log = structlog.get_logger(__name__)

_BURST = 60.0
_PER_S = 1.0
# A sum is told after this.
_SUMMED_S = 10.0


@dataclass(slots=True)
class _Share:
    left: float
    at_s: float
    unrecorded: int = 0


class Denials:
    def __init__(
        self,
        store: Store,
        clock: Callable[[], float] = time.monotonic,
        summed_s: float = _SUMMED_S,
    ) -> None:
        self._store = store
        self._clock = clock
        self._summed_s = summed_s
        # By caller: as many as there are certificates.
        self._shares: dict[str, _Share] = {}

    async def record(self, record: AuditRecord) -> None:
        """In the log when it returns, or counted for `run`. Raises StoreUnavailable."""
        share = self._share(record.actor)
        if share.left >= 1:
            share.left -= 1
            await record_denial(self._store, record)
            return
        share.unrecorded += 1

    def _share(self, actor: str) -> _Share:
        now = self._clock()
        share = self._shares.setdefault(actor, _Share(_BURST, now))
        share.left = min(_BURST, share.left + (now - share.at_s) * _PER_S)
        share.at_s = now
        return share

    async def run(self) -> None:
        """For ever: sums."""
        while True:
            await asyncio.sleep(self._summed_s)
            for actor, share in list(self._shares.items()):
                if share.unrecorded:
                    await self._sum(actor, share)

    async def _sum(self, actor: str, share: _Share) -> None:
        count = share.unrecorded
        why = f"denied: {count} more within {self._summed_s:g} s, each without a role for it"
        try:
            await record_denial(
                self._store, audit_record(actor, "calls", f"{count} calls", "", why)
            )
        except StoreUnavailable:
            log.warning("refused calls wait for the audit log", actor=actor, count=count)
            return
        share.unrecorded -= count
