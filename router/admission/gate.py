"""The gate before a cell's methods: one attribute to look at while no policy applies.

In the order of their cost: what is switched off, the limit of concurrency, rates (which ask
Redis). Bulk methods count as one call; their latency says nothing of a payment's, so it is not
looked at.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import grpc

from router.admission.gradient import Gradient, after_window, begin
from router.admission.rules import (
    CRITICALITY_HEADER,
    Admitting,
    Decision,
    NamedRate,
    decide,
    overloaded,
    share_of,
)
from router.errors import Refusal, rate_limited
from router.identity import principal_of
from router.policies.model import Concurrency, Criticality, RateBy
from router.slots import USER_HEADER

Behaviour = Callable[[Any, Any], Awaitable[Any]]

_WINDOW_S = 0.1
_WINDOW_CALLS_MIN = 10
_CRITICALITIES: Mapping[str, Criticality] = {item.value: item for item in Criticality}
_FIELDS = {RateBy.MERCHANT: ("merchant_id",), RateBy.USER: ("payer_id", "user_id")}


class RateLimiter(Protocol):
    """Token buckets that a cell's processes share."""

    async def take(self, buckets: Sequence[tuple[str, NamedRate]]) -> tuple[str, int] | None:
        """A token of each, or of none: then the bucket that is empty, and for how many ms.

        Bounded in time; when the buckets cannot be reached it answers by each policy's choice.
        """
        ...


class Limiter:
    """The adaptive limit of concurrency, of one process."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._settings: Concurrency | None = None
        self._gradient = Gradient(0.0)
        self._shares: dict[Criticality, int] = {}
        self._in_flight = 0
        self._peak = 0
        self._sum_s = 0.0
        self._calls = 0
        self._window_ends = 0.0

    @property
    def limit(self) -> int:
        return int(self._gradient.limit) if self._settings else 0

    def configure(self, settings: Concurrency | None) -> None:
        """What was learned is kept unless the policy has changed."""
        if settings != self._settings:
            self._settings = settings
            self._gradient = begin(settings) if settings else Gradient(0.0)
            self._new_shares()

    def _new_shares(self) -> None:
        self._shares = {item: share_of(self._gradient.limit, item) for item in Criticality}

    def enter(self, criticality: Criticality) -> float:
        """When the call began. Raises Refusal; else `leave` must follow."""
        if self._in_flight >= self._shares.get(criticality, self._in_flight + 1):
            raise overloaded(criticality)
        self._in_flight += 1
        self._peak = max(self._peak, self._in_flight)
        return self._clock()

    def leave(self, began: float, *, counts: bool) -> None:
        self._in_flight -= 1
        if not counts or self._settings is None:
            return
        now = self._clock()
        self._sum_s += now - began
        self._calls += 1
        if now >= self._window_ends and self._calls >= _WINDOW_CALLS_MIN:
            self._gradient = after_window(
                self._gradient, self._settings, self._sum_s / self._calls, self._peak
            )
            self._sum_s, self._calls, self._peak = 0.0, 0, self._in_flight
            self._window_ends = now + _WINDOW_S
            self._new_shares()


class _Method:
    """What is decided of a method now, where its handler finds it."""

    __slots__ = ("counts", "decision", "finders")

    def __init__(self, request_type: Any, *, counts: bool) -> None:
        self.decision: Decision | None = None
        # Whether its latency is a payment's, not a batch's.
        self.counts = counts
        fields = set(request_type.fields_by_name) if request_type else set()
        self.finders = {
            by: next((name for name in names if name in fields), "")
            for by, names in _FIELDS.items()
        }


class Admission:
    def __init__(self, rates: RateLimiter | None = None) -> None:
        self._rates = rates
        self._methods: dict[str, _Method] = {}
        self._admitting = Admitting()
        self.limiter = Limiter()
        self.refused: Counter[str] = Counter()

    def apply(self, admitting: Admitting) -> None:
        """In force for the next call of every method."""
        self._admitting = admitting
        chosen = admitting.concurrency
        self.limiter.configure(chosen.concurrency if chosen else None)
        for name, method in self._methods.items():
            method.decision = decide(name, admitting)

    def wrap(self, name: str, request_type: Any, behaviour: Behaviour, *, bulk: bool) -> Behaviour:
        """`name`: service and method, without the first slash."""
        # Several servers of a process offer the same methods.
        method = self._methods.setdefault(name, _Method(request_type, counts=not bulk))
        method.decision = decide(name, self._admitting)

        async def admitted(request: Any, context: Any) -> Any:
            decision = method.decision
            if decision is None:
                return await behaviour(request, context)
            return await self._admit(name, method, decision, behaviour, request, context)

        return admitted

    async def _admit(
        self,
        name: str,
        method: _Method,
        decision: Decision,
        behaviour: Behaviour,
        request: Any,
        context: Any,
    ) -> Any:
        try:
            if decision.refusal is not None:
                raise decision.refusal
            _check_deadline(context)
            if not decision.limited:
                await self._take_tokens(name, method, decision, request, context)
                return await behaviour(request, context)
            began = self.limiter.enter(_criticality(context, decision.criticality))
        except Refusal as refusal:
            self.refused[refusal.reason] += 1
            raise
        counts = False
        try:
            await self._take_tokens(name, method, decision, request, context)
            answer = await behaviour(request, context)
            counts = method.counts
            return answer
        finally:
            self.limiter.leave(began, counts=counts)

    async def _take_tokens(
        self, name: str, method: _Method, decision: Decision, request: Any, context: Any
    ) -> None:
        if not decision.rates or self._rates is None:
            return
        buckets = []
        for item in decision.rates:
            whose = _whose(item.rate.by, name, method, request, context)
            if whose:
                buckets.append((f"{item.name}:{item.rate.by}:{whose}", item))
        empty = await self._rates.take(buckets) if buckets else None
        if empty is not None:
            bucket, wait_ms = empty
            raise rate_limited(bucket.split(":")[2], retry_after_ms=wait_ms)


def _whose(by: RateBy, name: str, method: _Method, request: Any, context: Any) -> str:
    """Whose bucket; empty when the call does not say."""
    match by:
        case RateBy.API:
            return name
        case RateBy.CALLER:
            caller = principal_of(context)
            return caller.spiffe_id if caller else ""
        case RateBy.MERCHANT | RateBy.USER:
            field = method.finders[by]
            found = str(getattr(request, field)) if field else ""
            if not found and by == RateBy.USER:
                return _metadata(context, USER_HEADER)
            return found


def _metadata(context: Any, wanted: str) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == wanted:
            return value if isinstance(value, str) else ""
    return ""


def _criticality(context: Any, default: Criticality) -> Criticality:
    """What the caller says; nonsense is as if it had said nothing."""
    return _CRITICALITIES.get(_metadata(context, CRITICALITY_HEADER), default)


def _check_deadline(context: Any) -> None:
    left = context.time_remaining()
    if left is not None and left <= 0:
        raise Refusal(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "DEADLINE_EXCEEDED",
            "the deadline passed before the call began; nothing was executed",
        )
