"""The choice of channels in a process of a cell: its chooser, the cell's Redis and breakers.

    policies ──▶ Chooser ──▶ decision ──▶ begin ─▶ the bank ─▶ end
                   ▲  ▲                     │                   │
       Redis ──────┘  └── etcd: breakers ◀──┴───────────────────┘

A channel that one process found away, the cell's others leave alone as well: its breaker stands in
etcd under a lease, so that it vanishes even if nobody closes it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from math import ceil

import structlog

from cells.breakers.board import CLOSED, OPEN, Board
from cells.channels.model import Answer, Verdict
from cells.choice.calendar import moment_of
from cells.choice.chooser import Chooser
from cells.choice.model import Decision, Facts, Usage
from cells.choice.shared import FAULTS, SharedStatistics, Volume
from cells.choice.statistics import Delta, Key
from router.policies.model import Dependency
from router.policies.rules import PolicySet
from router.store.model import CHANNEL_BREAKERS_PREFIX, Store, StoreUnavailable

log = structlog.get_logger(__name__)

_SYNC_INTERVAL_S = 1.0
# Longer than its reset, so that a breaker is closed by a trial, and by this only if nobody tries.
_BREAKER_TTL_S = 30
# Turns of breakers that may wait for etcd.
_TURNS_MAX = 1024


class Choosing:
    def __init__(
        self,
        store: Store,
        cell: str,
        redis_url: str,
        board: Board,
        clock: Callable[[], float] = time.monotonic,
        redis_wait_s: float = 0.1,
    ) -> None:
        """`redis_wait_s`: what a charge may wait for its quota before Redis counts as away."""
        self.chooser = Chooser(board, clock)
        self._store = store
        self._cell = cell
        self._clock = clock
        self._shared = SharedStatistics(redis_url, board.of(Dependency.REDIS), redis_wait_s)
        self._volumes: dict[Volume, int] = {}
        self._turns: asyncio.Queue[tuple[str, bool]] = asyncio.Queue(_TURNS_MAX)
        # Channels whose breakers others hold open.
        self._held: frozenset[str] = frozenset()

    def apply(self, policies: PolicySet) -> None:
        """After the board has applied them."""
        self.chooser.apply(policies, self._cell)

    def choose(self, facts: Facts) -> Decision:
        return self.chooser.choose(facts)

    async def begin(self, facts: Facts, channel: str) -> bool:
        """Before the bank is asked: the quota is taken, and a half open breaker's one trial. False:
        not this one now, go on to the next."""
        candidate = self.chooser.terms.field_of(facts).candidates.get(channel)
        if candidate is None or self.chooser.breaker(channel).is_open():
            return False
        breaker = self._shared.breaker
        if not candidate.has_quota or breaker.is_open():
            return self.chooser.take_quota(facts, candidate)
        moment = moment_of(candidate.zone, facts.at_ms)
        try:
            taken, used = await self._shared.take(candidate, facts.currency, facts.amount, moment)
        except FAULTS as error:
            breaker.note(error)
            log.warning("quotas are this process's own: Redis is away", error=type(error).__name__)
            return self.chooser.take_quota(facts, candidate)
        breaker.note(None)
        statistics = self.chooser.statistics
        own = statistics.usage(channel, facts.currency, facts.at_ms)
        known = Usage(used.minute, used.day, used.day_amount, own.month_amount)
        statistics.set_usage(channel, facts.currency, facts.at_ms, known)
        return taken

    def end(self, facts: Facts, channel: str, answer: Answer, latency_ms: float) -> None:
        """How it went, as far as was known when its time was up. Must be called once for each
        `begin` that said True."""
        breaker = self.chooser.breaker(channel)
        before = breaker.state
        self.chooser.note(facts, channel, answer, latency_ms)
        if answer.verdict is Verdict.APPROVED and channel in self.chooser.terms.channels:
            zone = self.chooser.terms.channels[channel].zone
            volume = Volume(channel, facts.currency, moment_of(zone, facts.at_ms).month)
            self._volumes[volume] = self._volumes.get(volume, 0) + facts.amount
        if breaker.state != before and breaker.state in {OPEN, CLOSED}:
            self._turn(channel, breaker.state == OPEN)

    def _turn(self, channel: str, is_open: bool) -> None:
        try:
            self._turns.put_nowait((channel, is_open))
        except asyncio.QueueFull:
            log.warning("the cell does not hear of a breaker", channel=channel)

    async def run(self) -> None:
        """For ever."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._sync())
                group.create_task(self._tell_turns())
                group.create_task(self._hear_turns())
        finally:
            await self._shared.close()

    async def _sync(self) -> None:
        while True:
            await asyncio.sleep(_SYNC_INTERVAL_S)
            if not self.chooser.terms.channels:
                continue
            await self.sync()
            self.chooser.refresh()

    async def sync(self) -> None:
        """Sends what was observed, and hears what the others did."""
        breaker = self._shared.breaker
        if breaker.is_open():
            return
        try:
            await self._send()
            await self._hear()
        except FAULTS as error:
            breaker.note(error)
            log.info("statistics are this process's own: Redis is away", error=type(error).__name__)
        else:
            breaker.note(None)

    async def _send(self) -> None:
        terms, statistics = self.chooser.terms, self.chooser.statistics
        unsent = statistics.take_unsent()
        by_channel: dict[str, dict[Key, Delta]] = {}
        for key, delta in unsent.items():
            by_channel.setdefault(key.channel, {})[key] = delta
        try:
            while by_channel:
                channel = next(iter(by_channel))
                await self._shared.add(channel, by_channel[channel], terms.choice)
                del by_channel[channel]
        finally:
            # One that was under way may be counted twice: it is statistics, not money.
            for rest in by_channel.values():
                statistics.give_back(rest)
        volumes, self._volumes = self._volumes, {}
        try:
            await self._shared.add_volumes(volumes)
        except FAULTS:
            for volume, amount in volumes.items():
                self._volumes[volume] = self._volumes.get(volume, 0) + amount
            raise

    async def _hear(self) -> None:
        terms, statistics = self.chooser.terms, self.chooser.statistics
        now_s = self._clock()
        statistics.share(await self._shared.seen(terms.channels, now_s), now_s)
        at_ms = time.time_ns() // 1_000_000
        wanted = {
            Volume(name, currency, moment_of(channel.zone, at_ms).month)
            for name, channel in terms.channels.items()
            for currency in channel.amounts
            if channel.commitments or any(len(table.tiers) > 1 for table in channel.fees)
        }
        for volume, amount in (await self._shared.volumes(wanted)).items():
            own = statistics.usage(volume.channel, volume.currency, at_ms)
            unsent = self._volumes.get(volume, 0)
            known = Usage(own.minute, own.day, own.day_amount, amount + unsent)
            statistics.set_usage(volume.channel, volume.currency, at_ms, known)

    async def _tell_turns(self) -> None:
        while True:
            channel, is_open = await self._turns.get()
            try:
                await self._tell(channel, is_open)
            except StoreUnavailable as error:
                log.info("etcd does not hear of a breaker", channel=channel, why=str(error))

    async def _tell(self, channel: str, is_open: bool) -> None:
        key = f"{CHANNEL_BREAKERS_PREFIX}{self._cell}/{channel}"
        if is_open:
            reset_s = self.chooser.breaker(channel).reset_s
            lease = await self._store.lease(ceil(reset_s) + _BREAKER_TTL_S)
            await self._store.commit(expect={}, puts={key: OPEN}, lease=lease)
        else:
            await self._store.commit(expect={}, puts={}, deletes=[key])

    async def _hear_turns(self) -> None:
        prefix = f"{CHANNEL_BREAKERS_PREFIX}{self._cell}/"
        revisions: Mapping[str, int] = {}
        async for listing in self._store.watch(prefix):
            now = {key.removeprefix(prefix): item.revision for key, item in listing.items.items()}
            for channel, revision in now.items():
                if revisions.get(channel) != revision:
                    self._hear_turn(channel, True)
            for channel in revisions.keys() - now.keys():
                self._hear_turn(channel, False)
            revisions = now

    def _hear_turn(self, channel: str, is_open: bool) -> None:
        if channel not in self.chooser.terms.channels:
            return
        breaker = self.chooser.breaker(channel)
        if is_open:
            breaker.open()
        else:
            breaker.close()
        self.chooser.look_at(channel)
        log.info("a channel's breaker, as the cell says", channel=channel, state=breaker.state)
