"""Lanes: concurrent commands gather for a moment and commit together.

A slot always uses the same lane, so two groups do not fight over one slot's rows. While one group
waits for the disk the next one gathers: the group grows with the load, and an idle lane adds no
wait. Keeps invariant 4: a caller hears of an effect only after the commit, and never hears
"failed" of what may have committed (pitfalls 10 to 13).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from cells.database import KeptConnection, forget_plans, is_away, is_contention, sqlstate_of
from cells.gathering import gathered
from cells.ledger.book import MoneyBroken
from cells.ledger.model import Command, Outcome
from cells.ledger.store import commit_group
from cells.settings import LaneSettings
from router.errors import Refusal
from router.tracing.current import current, error_of, new_span_id
from router.tracing.groups import Group, Waited
from router.tracing.model import LINES_MAX, Line, Scope, SpanKind

log = structlog.get_logger(__name__)

_CONTENTION_TRIES_MAX = 10
_PLANS_S = 1.0


class _Answer(Protocol):
    """Where an outcome goes: a future, or a place in a batch."""

    def done(self) -> bool: ...

    def set_result(self, result: Outcome, /) -> None: ...

    def set_exception(self, exception: Refusal, /) -> None: ...


class _Batch:
    """Outcomes of many commands, and one future for all of them."""

    __slots__ = ("future", "left", "outcomes")

    def __init__(self, count: int, future: asyncio.Future[None]) -> None:
        self.outcomes: list[Outcome | Refusal] = [_UNANSWERED] * count
        self.left = count
        self.future = future


class _Place:
    __slots__ = ("batch", "number")

    def __init__(self, batch: _Batch, number: int) -> None:
        self.batch = batch
        self.number = number

    def done(self) -> bool:
        # Done early: its caller has gone.
        return self.batch.future.done()

    def set_result(self, outcome: Outcome | Refusal, /) -> None:
        batch = self.batch
        batch.outcomes[self.number] = outcome
        batch.left -= 1
        if not batch.left:
            batch.future.set_result(None)

    set_exception = set_result


_UNANSWERED = Refusal(grpc.StatusCode.INTERNAL, "UNANSWERED", "the lane lost this command")


@dataclass(slots=True)
class _Pending:
    command: Command
    future: _Answer
    deadline: float
    # Whose trace it belongs to, and since when it waits; None: nothing is recorded.
    scope: Scope | None = None
    queued: float = 0.0

    def fail(self, refusal: Refusal) -> None:
        if self.scope is not None:
            line = Line(
                new_span_id(), self.scope.span_id, "ledger.wait", SpanKind.INTERNAL, self.queued,
                time.perf_counter(), None, error_of(refusal),
            )  # fmt: skip
            self.scope.trace.add(line)
        if not self.future.done():
            self.future.set_exception(refusal)


@dataclass(slots=True)
class LaneFigures:
    """What a lane did: for tests, status and the benchmark."""

    groups: int = 0
    commands: int = 0
    retries: int = 0
    bisections: int = 0
    group_max: int = 0
    # Commands that found the queue full.
    refused: int = 0
    # In transactions that committed.
    commit_s: float = 0.0


class Lane:
    """One queue, one transaction at a time."""

    def __init__(self, engine: AsyncEngine, cell: str, settings: LaneSettings) -> None:
        self._connection = KeptConnection(engine)
        self._cell = cell
        self._settings = settings
        self._queue: deque[_Pending] = deque()
        self._filled = asyncio.Event()
        self._plans_until = 0.0
        self.figures = LaneFigures()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def submit(self, command: Command, timeout_s: float | None) -> Outcome:
        """The command's outcome, after its commit. Raises Refusal when it could not be had."""
        if len(self._queue) >= self._settings.queue_max:
            self.figures.refused += 1
            raise _full()
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        pending = _Pending(command, future, self._deadline(timeout_s))
        scope = current.get()
        if scope is not None:
            pending.scope, pending.queued = scope, time.perf_counter()
        self._queue.append(pending)
        self._filled.set()
        return await future

    def add_batch(
        self,
        batch: _Batch,
        commands: Iterable[tuple[int, Command]],
        timeout_s: float | None,
        scopes: Sequence[Scope | None],
    ) -> None:
        """Commands with their places in the batch. `scopes`: by place; empty: the caller's."""
        deadline = self._deadline(timeout_s)
        whole = current.get()
        queued = time.perf_counter()
        for number, command in commands:
            place = _Place(batch, number)
            if len(self._queue) >= self._settings.queue_max:
                self.figures.refused += 1
                place.set_exception(_full())
            else:
                scope = scopes[number] if scopes else whole
                self._queue.append(_Pending(command, place, deadline, scope, queued))
        self._filled.set()

    def _deadline(self, timeout_s: float | None) -> float:
        limit = self._settings.deadline_default_s
        wait = limit if timeout_s is None else min(timeout_s, limit)
        return asyncio.get_running_loop().time() + wait

    async def run(self) -> None:
        """Commits groups for ever. Ends only by a broken money invariant (fail-stop)."""
        try:
            while True:
                await self._filled.wait()
                await gathered(self._queue, self._settings)
                group = self._take()
                if group:
                    await self._commit(group)
                    await self._plan_anew()
        finally:
            await self._connection.give_back()

    async def _plan_anew(self) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._plans_until:
            return
        self._plans_until = now + _PLANS_S
        try:
            await forget_plans(self._connection)
        except Exception as error:
            # The next group will find out what there is to find out.
            log.info("plans were not made anew", error=type(error).__name__)

    def _take(self) -> list[_Pending]:
        """Up to a full group, without those whose caller has gone or whose time is up."""
        now = asyncio.get_running_loop().time()
        group: list[_Pending] = []
        while self._queue and len(group) < self._settings.batch_size_max:
            pending = self._queue.popleft()
            if pending.future.done():
                continue
            if pending.deadline <= now:
                pending.fail(_expired("nothing was executed"))
                continue
            group.append(pending)
        if not self._queue:
            self._filled.clear()
        return group

    async def _commit(self, group: list[_Pending]) -> None:
        """Commits a group whatever happens: again, in halves, or not at all; then answers."""
        uncertain = False
        tries = 0
        watch = _watch(group)
        while group:
            tries += 1
            began = asyncio.get_running_loop().time()
            if watch is not None:
                watch.begin()
            try:
                outcomes = await commit_group(
                    self._connection,
                    self._cell,
                    [pending.command for pending in group],
                    [pending.scope for pending in group] if watch is not None else (),
                    watch,
                )
            except MoneyBroken:
                log.critical("a money invariant broke: this cell stops", exc_info=True)
                raise
            except Exception as error:
                self.figures.retries += 1
                if is_contention(error) and tries < _CONTENTION_TRIES_MAX:
                    await asyncio.sleep(random.uniform(0, 0.004 * 2 ** min(tries, 6)))
                elif is_away(error):
                    uncertain = True
                    log.warning("the database is away", error=type(error).__name__, tries=tries)
                    await asyncio.sleep(random.uniform(0, min(0.5, 0.02 * 2 ** min(tries, 5))))
                    group = _unexpired(group)
                else:
                    await self._bisect(group, error)
                    return
                continue
            self.figures.commit_s += asyncio.get_running_loop().time() - began
            if watch is not None:
                _tell_members(group, watch)
            self._answer(group, outcomes, uncertain)
            return

    def _answer(
        self, group: Sequence[_Pending], outcomes: Sequence[Outcome], uncertain: bool
    ) -> None:
        self.figures.groups += 1
        self.figures.commands += len(group)
        self.figures.group_max = max(self.figures.group_max, len(group))
        if uncertain:
            log.info("the database is back", commands=len(group))
        for pending, outcome in zip(group, outcomes, strict=True):
            if not pending.future.done():
                pending.future.set_result(outcome)

    async def _bisect(self, group: list[_Pending], error: Exception) -> None:
        """The database refuses the group: the healthy rest commits, the poison fails alone."""
        if len(group) == 1:
            log.error(
                "the database refuses a command",
                command=type(group[0].command).__name__,
                sqlstate=sqlstate_of(error),
                error=type(error).__name__,
            )
            group[0].fail(
                Refusal(
                    grpc.StatusCode.INTERNAL,
                    "REFUSED_BY_DATABASE",
                    "the database refused this command; nothing was executed",
                )
            )
            return
        self.figures.bisections += 1
        middle = len(group) // 2
        await self._commit(group[:middle])
        await self._commit(group[middle:])


def _watch(group: Sequence[_Pending]) -> Group | None:
    """None: nobody in the group is recorded."""
    for pending in group:
        if pending.scope is not None:
            return Group(len(group))
    return None


def _tell_members(group: Sequence[_Pending], watch: Group) -> None:
    """Each member's trace hears of the commit: once, however many of the commands are its own."""
    watch.end()
    last = None
    for pending in group:
        scope = pending.scope
        if scope is not None and scope is not last:
            last = scope
            if not scope.trace.ended and len(scope.trace.lines) < LINES_MAX:
                scope.trace.lines.append(Waited(scope.span_id, pending.queued, watch))


def _unexpired(group: list[_Pending]) -> list[_Pending]:
    now = asyncio.get_running_loop().time()
    kept = []
    for pending in group:
        if pending.deadline > now:
            kept.append(pending)
        else:
            pending.fail(
                Refusal(
                    grpc.StatusCode.UNAVAILABLE,
                    "OUTCOME_UNKNOWN",
                    "the database is away; retry with the same key to learn the outcome",
                    retry_after_ms=500,
                )
            )
    return kept


def _full() -> Refusal:
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "LANE_FULL",
        "the cell has more to do than it can; nothing was executed",
        retry_after_ms=100,
    )


def _expired(what: str) -> Refusal:
    return Refusal(
        grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", f"the deadline passed; {what}"
    )


class Lanes:
    """All lanes of a cell. A slot's commands run in the order in which they came."""

    def __init__(self, engine: AsyncEngine, cell: str, settings: LaneSettings) -> None:
        self.lanes = [Lane(engine, cell, settings) for _ in range(settings.count)]

    async def submit(self, command: Command, timeout_s: float | None = None) -> Outcome:
        return await self.lanes[command.slot % len(self.lanes)].submit(command, timeout_s)

    async def submit_many(
        self,
        commands: Sequence[Command],
        timeout_s: float | None = None,
        scopes: Sequence[Scope | None] = (),
    ) -> Sequence[Outcome | Refusal]:
        """Each command's outcome, or why it could not be had, in their order. `scopes`: the
        commands' places in their traces; without, all are at the caller's."""
        if not commands:
            return []
        batch = _Batch(len(commands), asyncio.get_running_loop().create_future())
        shares: dict[int, list[tuple[int, Command]]] = {}
        for number, command in enumerate(commands):
            shares.setdefault(command.slot % len(self.lanes), []).append((number, command))
        for lane, share in shares.items():
            self.lanes[lane].add_batch(batch, share, timeout_s, scopes)
        await batch.future
        return batch.outcomes

    def runners(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        return [lane.run for lane in self.lanes]
