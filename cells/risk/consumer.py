"""From the stream to the features of a cell's Redis, for ever.

    RISK ──▶ read after the position ──▶ apply and move the position, in one script

Of all cells' decisions: a device, an address, a card and a payee are known to users of many homes.
So a cell that gains slots knows its new users already, and nothing is handed over.

Positions are Redis's own, feature by feature: an empty Redis is filled from the first message, a
new feature too, beside the others, which go on meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from cells.cancellation import go_on_unless_cancelled
from cells.outbox.stream import connect_jetstream
from cells.risk.layout import State
from cells.risk.reading import Message, MessageReader, is_end
from cells.risk.stream import RECORDS_A_MESSAGE_MAX, ensure_stream
from cells.risk.windows import SLACK_MS, Plan
from cells.risk.writer import FeatureWriter, new_state
from router.client.tls import TlsFiles
from router.risk.features import FeatureSet, Observation
from router.risk.record import STREAM, observations

log = structlog.get_logger(__name__)

_Reader = MessageReader[Observation]

_FETCH_WAIT_S = 0.5
# While there is something to fill.
_SHORT_WAIT_S = 0.02
# Features that are this close to the end of the stream have been filled.
_CLOSE_MS = 1000
_BACKOFF_BASE_S = 0.1
_BACKOFF_CAP_S = 5.0
# What a rebuild left is ended a little later, when nobody reads it any more.
_SWEEP_INTERVAL_S = 600.0


class Consumer:
    """One a cell is enough; two do no harm."""

    def __init__(
        self,
        nats_url: str,
        redis_url: str,
        cell: str,
        features: Callable[[], FeatureSet],
        nats_tls: TlsFiles | None = None,
    ) -> None:
        """`features`: those of the day; asked again and again."""
        self._nats_url = nats_url
        self._nats_tls = nats_tls
        self._writer = FeatureWriter(redis_url)
        self._cell = cell
        self._features = features
        self._plan = Plan.of(FeatureSet())
        # Where the features are, as long as nobody else has moved them; None: Redis is asked.
        self._states: Mapping[bytes, State] | None = None
        # Since the process began, for metrics.
        self.applied = 0
        # Messages that wait, as far as is known.
        self.behind = 0
        self._sweep_at = time.monotonic() + _SWEEP_INTERVAL_S

    async def run(self) -> None:
        """Consumes for ever; waits out whatever is away."""
        failures = 0
        name = f"cellpay-{self._cell}-risk-features"
        try:
            while True:
                go_on_unless_cancelled()
                try:
                    async with connect_jetstream(self._nats_url, name, self._nats_tls) as stream:
                        await ensure_stream(stream)
                        live = MessageReader(stream, observations)
                        filling = MessageReader(stream, observations)
                        await self._look_at(stream)
                        while True:
                            go_on_unless_cancelled()
                            await self._turn(stream, live, filling)
                            await self._sweep_sometimes()
                            failures = 0
                except Exception as error:
                    failures += 1
                    log.warning("features wait", error=type(error).__name__, tries=failures)
                    ceiling = min(_BACKOFF_CAP_S, _BACKOFF_BASE_S * 2.0 ** min(failures, 10))
                    await asyncio.sleep(random.uniform(0.5, 1.0) * ceiling)
        finally:
            await self._writer.close()

    async def _turn(self, stream: Any, live: _Reader, filling: _Reader) -> None:
        """What is next of those that have come furthest, and of those that are furthest behind."""
        plan = self._plan_of_the_day()
        if not plan.unique.features:
            await asyncio.sleep(_FETCH_WAIT_S)
            return
        states = self._states
        if states is None:
            states = self._states = await self._writer.states(plan)
        positions = {
            identity: states[identity].position if identity in states else 0
            for identity in plan.identities.values()
        }
        furthest, last = max(positions.values()), min(positions.values())
        messages = await live.after(furthest, _FETCH_WAIT_S if last == furthest else _SHORT_WAIT_S)
        if messages:
            self.behind = messages[-1].behind
            await self._apply(_at(plan, positions, furthest), states, messages)
        else:
            end = await self._look_at(stream)
            self.behind = end - furthest
            if self.behind == 0 or await is_end(stream, furthest):
                await self._move(_at(plan, positions, furthest), states, end, (), age_ms=0)
            # There is time to ask where others have moved them.
            self._states = None
        if last < furthest:
            behind = await filling.after(last, _FETCH_WAIT_S)
            known = [message for message in behind if message.position <= furthest]
            part = _at(plan, positions, last)
            if known:
                await self._apply(part, states, known, is_live=False)
            elif behind or await is_end(stream, last):
                # Nothing is left in between.
                await self._move(part, states, furthest, ())

    async def _apply(
        self,
        plan: Plan,
        states: Mapping[bytes, State],
        messages: Sequence[Message[Observation]],
        *,
        is_live: bool = True,
    ) -> None:
        """Some messages at once, as long as they are small."""
        seen: list[Observation] = []
        held = dict(states)
        for number, message in enumerate(messages):
            seen += _observations(message)
            following = messages[number + 1] if number + 1 < len(messages) else None
            if following and len(seen) + len(following.items) <= RECORDS_A_MESSAGE_MAX:
                continue
            age_ms = _age_ms(message) if is_live else None
            moved = await self._move(plan, held, message.position, seen, age_ms)
            if moved is None:
                return
            held.update(moved)
            seen = []

    async def _move(
        self,
        plan: Plan,
        states: Mapping[bytes, State],
        position: int,
        seen: Sequence[Observation],
        age_ms: int | None = None,
    ) -> Mapping[bytes, State] | None:
        """The plan's features have counted these and are at this position, which is so old; None
        when somebody else has moved them."""
        filled = age_ms is not None and age_ms <= _CLOSE_MS
        then: dict[bytes, State] = {}
        for identity in plan.identities.values():
            before = states.get(identity) or new_state()
            then[identity] = State(before.salt, position, before.filled or filled)
        known, self._states = self._states, None
        done = await self._writer.apply(plan, states, then, seen, age_ms=age_ms)
        if not done:
            log.info("somebody else has moved the features")
            return None
        self._states = {**(known or states), **then}
        self.applied += len(seen)
        return then

    async def _look_at(self, stream: Any) -> int:
        """The stream's last message. Fails when it is away or gone."""
        info = await stream.stream_info(STREAM)
        last = int(info.state.last_seq)
        # It may move them.
        self._states = None
        if await self._writer.adopt(str(info.created), last):
            log.error("the stream is another one, or has lost messages; what is known is kept")
        return last

    async def _sweep_sometimes(self) -> None:
        if time.monotonic() >= self._sweep_at:
            self._sweep_at = time.monotonic() + _SWEEP_INTERVAL_S
            if swept := await self._writer.sweep():
                log.info("what features of before had left is gone", keys=swept)

    def _plan_of_the_day(self) -> Plan:
        document = self._features()
        if document is not self._plan.document:
            self._plan, self._states = Plan.of(document), None
        return self._plan


def _age_ms(message: Message[Observation]) -> int:
    """How old all that is known is, once this is counted."""
    return max(0, time.time_ns() // 1_000_000 - message.stored_ms) if message.behind else 0


def _at(plan: Plan, positions: Mapping[bytes, int], position: int) -> Plan:
    """The plan of those features that are at this position."""
    if all(found == position for found in positions.values()):
        return plan
    return Plan.of(
        FeatureSet(
            tuple(
                feature
                for feature in plan.unique.features
                if positions[plan.identities[feature.name]] == position
            )
        )
    )


def _observations(message: Message[Observation]) -> list[Observation]:
    """Without what is dated amiss: what came from the future would end what is known."""
    latest = message.stored_ms + SLACK_MS
    seen = [item for item in message.items if item.at_ms <= latest]
    if len(seen) < len(message.items):
        count = len(message.items) - len(seen)
        log.error("decisions from the future are left out", count=count, position=message.position)
    return seen
