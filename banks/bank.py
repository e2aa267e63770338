"""A bank, whatever its tongue: behaviour, book, day and statement in one place.

A tongue decodes a request, calls `hear`, waits as told, calls `Plan.said`, and does to its answer
what `Plan.action` says.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from banks.behaviour import Action, Behaviour, Closed, choose, closed_at, thinking_s
from banks.book import Book
from banks.model import Asked, Operation, Said, Status, Why
from banks.statement import Made, Row, StatementOrders, statement

_LOG_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Plan:
    """What a tongue does about a request, step by step: wait, answer (or not), perhaps again."""

    action: Action
    # Before the answer.
    wait_s: float
    # None: no answer.
    said: Said | None
    # Of DELAY and PEND: the effect comes after the wait, by calling this; it gives the answer.
    later: Callable[[], Said] | None = None
    # DUPLICATE: the time until the second answer. PEND: until the outcome.
    again_s: float | None = None


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request as it came, for tests that count."""

    at: datetime
    operation: Operation
    reference: str
    arrival: int
    action: Action
    # The tongue's own word for it (an MTI, a path).
    wire: str


class Bank:
    def __init__(
        self,
        name: str,
        behaviour: Behaviour,
        cut_off: time = time(0, 0),
        zone: str = "UTC",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.name = name
        self.book = Book(name)
        self.orders = StatementOrders()
        self.arrivals: deque[Arrival] = deque(maxlen=_LOG_MAX)
        # Answers to requests that the tongue could not read, bad MACs, and the like.
        self.oddities: Counter[str] = Counter()
        # Network messages by their code, as far as the tongue has such.
        self.network: Counter[str] = Counter()
        # What else the tongue can be told to do (POST /do/{command}).
        self.commands: dict[str, Callable[[], None]] = {"hang-up": self.hang_up}
        # How to close each connection that is open.
        self.connections: set[Callable[[], None]] = set()
        self._seen: Counter[str] = Counter()
        self._cut_off = cut_off
        self._zone = ZoneInfo(zone)
        self._now = now
        self.behaviour = behaviour
        self._used = [0] * len(behaviour.rules)

    def behave(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self._used = [0] * len(behaviour.rules)

    def forget(self) -> None:
        """An empty book, as on the first day."""
        self.book = Book(self.name)
        self.arrivals.clear()
        self.oddities.clear()
        self.network.clear()
        self._seen.clear()

    @property
    def today(self) -> str:
        """The clearing date of what is done now. After the cut-off it is tomorrow's."""
        if self.behaviour.day:
            return self.behaviour.day
        local = self._now().astimezone(self._zone)
        late = self._cut_off != time(0, 0) and local.time() >= self._cut_off
        return (local.date() + timedelta(days=1 if late else 0)).isoformat()

    @property
    def closed(self) -> Closed | None:
        return closed_at(self.behaviour, self._now())

    def hear(self, asked: Asked, wire: str = "") -> Plan:
        """Decides, and has the effect unless it is to come later."""
        self._seen[asked.reference] += 1
        arrival = self._seen[asked.reference]
        wait_s = thinking_s(self.behaviour.latency, self.behaviour.seed, asked.reference, arrival)
        plan = self._under_maintenance(asked, wait_s) or self._ruled(asked, arrival, wait_s)
        self.arrivals.append(
            Arrival(self._now(), asked.operation, asked.reference, arrival, plan.action, wire)
        )
        return plan

    def ask(self, asked: Asked) -> Said:
        """Has the effect, whatever the behaviour."""
        return self._do(asked)

    def hang_up(self) -> None:
        """Closes the connections that the tongue has open."""
        closing, self.connections = self.connections, set()
        for close in closing:
            close()

    def statement(self, day: date) -> tuple[list[Row], list[Made]]:
        return statement(self.book, day.isoformat(), self.orders, self.behaviour.seed)

    def _under_maintenance(self, asked: Asked, wait_s: float) -> Plan | None:
        match self.closed:
            case None:
                return None
            case Closed.REFUSE:
                said = Said(Status.DECLINED, asked.amount, asked.currency, Why.MAINTENANCE)
                # Not written down: whoever comes again after the window is served.
                return Plan(Action.DECLINE, wait_s, said)
            case Closed.SILENT:
                return Plan(Action.LOSE, 0.0, None)
            case Closed.HANG_UP:
                return Plan(Action.HANG_UP, 0.0, None)

    def _ruled(self, asked: Asked, arrival: int, wait_s: float) -> Plan:
        number = choose(self.behaviour, asked, arrival, self._used)
        if number is None:
            return Plan(Action.APPROVE, wait_s, self._do(asked))
        self._used[number] += 1
        rule = self.behaviour.rules[number]
        after_s = rule.after_ms / 1000
        match rule.action:
            case Action.DECLINE:
                return Plan(rule.action, wait_s, self._refuse(asked, rule.code))
            case Action.LOSE | Action.HANG_UP:
                return Plan(rule.action, wait_s, None)
            case Action.SILENT:
                self._do(asked)
                return Plan(rule.action, wait_s, None)
            case Action.LATE:
                return Plan(rule.action, after_s, self._do(asked))
            case Action.DELAY:
                return Plan(rule.action, after_s, None, lambda: self._do(asked))
            case Action.PEND:
                return self._pend(asked, rule.code, wait_s, after_s)
            case Action.DUPLICATE:
                return Plan(rule.action, wait_s, self._do(asked), again_s=after_s)
            case _:
                return Plan(rule.action, wait_s, self._do(asked))

    def _do(self, asked: Asked) -> Said:
        behaviour = self.behaviour
        return self.book.do(
            asked, self.today, self._now(), behaviour.funds, behaviour.void_absent_approved
        )

    def _refuse(self, asked: Asked, code: str) -> Said:
        return self.book.refuse(asked, Why.TOLD, code, self.today, self._now())

    def _pend(self, asked: Asked, code: str, wait_s: float, after_s: float) -> Plan:
        if asked.operation is Operation.QUERY:
            return Plan(Action.APPROVE, wait_s, self.book.tell(asked))
        said = self.book.pend(asked, self.today, self._now())

        def settle() -> Said:
            settled = self.book.settle(asked, code, self.today, self._now(), self.behaviour.funds)
            return settled or self.book.tell(_query_of(asked))

        return Plan(Action.PEND, wait_s, said, settle, again_s=after_s)


def _query_of(asked: Asked) -> Asked:
    return Asked(Operation.QUERY, "", 0, asked.currency, original=asked.reference)


async def pause(seconds: float) -> None:
    if seconds > 0:
        await asyncio.sleep(seconds)
