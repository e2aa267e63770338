"""Recovery: whoever owns a slot finishes what was begun with banks there (invariant 5).

Attempts whose end is not known are asked about, ever more seldom; refunds and payouts that are held
are tried again. A slot that has just come here brings both along.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import datetime
from functools import partial
from typing import Any

import structlog
from sqlalchemy import ARRAY, Select, Text, all_, cast, func, literal_column, select

from cells.channels.attempts import ATTEMPTS, OPEN_STATES, Attempt, AttemptState, attempts
from cells.channels.model import Operation
from cells.charges.model import ChargeRefund
from cells.charges.refunding import ChargeRefunding
from cells.charges.tables import CHARGE_REFUNDS
from cells.ledger.records import RecordType
from cells.payouts.driver import Paying
from cells.payouts.model import Payout
from cells.payouts.tables import PAYOUTS
from cells.reading import ReadEngine, any_slot, fetch
from cells.settings import BankingSettings
from router.guard import SlotsHere

log = structlog.get_logger(__name__)

_BATCH_MAX = 512
# Payouts that are held go to whichever channel routing says.
_ANY_CHANNEL = ""
Resolver = Callable[[Attempt, datetime], Awaitable[None]]


class BankRecovery:
    def __init__(
        self,
        engine: ReadEngine,
        here: SlotsHere,
        resolvers: Mapping[Operation, Resolver],
        refunding: ChargeRefunding,
        paying: Paying,
        settings: BankingSettings,
    ) -> None:
        self._engine = engine
        self._here = here
        self._resolvers = resolvers
        self._refunding = refunding
        self._paying = paying
        self._settings = settings
        # What is being worked on, and how much of it by channel.
        self._busy: set[str] = set()
        self._load: Counter[str] = Counter()

    async def run(self) -> None:
        """Looks for what waits, for ever. A bank that does not answer holds up only its own."""
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(self._settings.recovery_interval_s)
                owned = self._here.owned()
                if not owned:
                    continue
                try:
                    await self._begin(group, owned)
                except Exception as error:
                    log.warning("recovery with banks is held up", error=type(error).__name__)

    async def recover(self, slots: Collection[int]) -> int:
        """One round, to its end; returns how much was due."""
        async with asyncio.TaskGroup() as group:
            return await self._begin(group, slots)

    async def _begin(self, group: asyncio.TaskGroup, slots: Collection[int]) -> int:
        full = [name for name in list(self._load) if not self._has_room(name)]
        begun = 0
        for attempt, now in await self._due(slots, full):
            resolve = partial(self._resolvers[Operation(attempt.operation)], attempt, now)
            begun += self._start(group, attempt.attempt_id, attempt.channel, resolve)
        for refund in await self._held_refunds(slots):
            advance = partial(self._refunding.advance, refund)
            begun += self._start(group, refund.refund_id, refund.channel, advance)
        for payout, now in await self._held_payouts(slots):
            age_s = (now - payout.created_at).total_seconds()
            pay = partial(self._paying.advance, payout, age_s)
            begun += self._start(group, payout.payout_id, _ANY_CHANNEL, pay)
        return begun

    def _has_room(self, channel: str) -> bool:
        return self._load[channel] < self._settings.recovery_concurrency_max

    def _start(
        self,
        group: asyncio.TaskGroup,
        identifier: str,
        channel: str,
        work: Callable[[], Awaitable[Any]],
    ) -> bool:
        """Whether it was begun: it is not under way already, and the channel has room."""
        if identifier in self._busy or not self._has_room(channel):
            return False
        self._busy.add(identifier)
        self._load[channel] += 1
        group.create_task(self._work(identifier, channel, work))
        return True

    async def _work(
        self, identifier: str, channel: str, work: Callable[[], Awaitable[Any]]
    ) -> None:
        try:
            await work()
        except Exception as error:
            # One that resists must not stop the others.
            log.warning("an attempt resists", id=identifier, error=str(error)[:200])
        finally:
            self._busy.discard(identifier)
            self._load[channel] -= 1

    async def _due(
        self, slots: Collection[int], without: Collection[str]
    ) -> list[tuple[Attempt, datetime]]:
        rows = await fetch(self._engine, due_attempts(slots, self._settings, without))
        return [(Attempt(*row[:-1]), row[-1]) for row in rows]

    async def _held_refunds(self, slots: Collection[int]) -> list[ChargeRefund]:
        rows = await fetch(self._engine, held(CHARGE_REFUNDS, slots, self._settings.held_retry_s))
        return [ChargeRefund(*row[:-1]) for row in rows]

    async def _held_payouts(self, slots: Collection[int]) -> list[tuple[Payout, datetime]]:
        rows = await fetch(self._engine, held(PAYOUTS, slots, self._settings.held_retry_s))
        return [(Payout(*row[:-1]), row[-1]) for row in rows]


def due_attempts(
    slots: Collection[int], settings: BankingSettings, without: Collection[str] = ()
) -> Select[Any]:
    """Attempts that it is time to ask about, with the database's now. `without`: these channels.

    One that was only sent is left to whoever sent it, until that has surely ended; then, as for any
    that is not known, half its age passes between questions.
    """
    unanswered = _interval(settings.send_window_s + settings.answer_timeout_s)
    base, cap = _interval(settings.backoff_base_s), _interval(settings.backoff_cap_s)
    # The states are written out, not bound, so that the partial index is used.
    states = ", ".join(f"'{state}'" for state in OPEN_STATES)
    waited = (
        f"CASE attempts.state WHEN '{AttemptState.SENT}' THEN {unanswered} ELSE LEAST({cap},"
        f" GREATEST({base}, (attempts.touched_at - attempts.created_at) / 2)) END"
    )
    return (
        select(*(attempts.c[name] for name in ATTEMPTS.fields), func.now())
        .where(
            attempts.c.slot == any_slot(slots),
            attempts.c.channel != all_(cast(sorted(without), ARRAY(Text))),
            literal_column(f"attempts.state IN ({states})"),
            literal_column(f"attempts.touched_at + ({waited}) <= now()"),
        )
        .order_by(attempts.c.touched_at)
        .limit(_BATCH_MAX)
    )


def held(record: RecordType[Any], slots: Collection[int], retry_s: float) -> Select[Any]:
    """Refunds or payouts whose next turn has come, with the database's now."""
    table = record.table
    return (
        select(*(table.c[name] for name in record.fields), func.now())
        .where(
            table.c.slot == any_slot(slots),
            literal_column(f"{table.name}.state = 'held'"),
            table.c.touched_at <= func.now() - literal_column(_interval(retry_s)),
        )
        .order_by(table.c.touched_at)
        .limit(_BATCH_MAX)
    )


def _interval(seconds: float) -> str:
    return f"INTERVAL '{seconds:.3f} seconds'"
