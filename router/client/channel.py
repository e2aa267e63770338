"""A channel that generated stubs take, which routes and retries.

Per call it sets `x-cellpay-slot` from the request's annotated field, a deadline, and an
idempotency key where the request has none. It then retries what may be retried: every write
carries a key and every read is safe, so an attempt that may or may not have run can be repeated
(invariant 2). Only this outermost caller retries (pitfall 24); waits grow with full jitter, so a
failover does not become a storm (pitfall 23).
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc
from google.protobuf.message import Message

from router.errors import Violation, bad_request, details_of
from router.home import find_method, slot_finder
from router.slots import SLOT_HEADER
from router.tracing.current import current, error_of, new_span_id, span
from router.tracing.interop import outside_traceparent
from router.tracing.model import Line, SpanKind
from router.tracing.rules import TRACEPARENT
from router.tracing.tracer import Tracer, root

Metadata = Sequence[tuple[str, str | bytes]]

_CODE = grpc.StatusCode
# The attempt did not run, or may have run and can be repeated under its key.
# DEADLINE_EXCEEDED is an attempt's own: the cell may be paused, and its successor will answer.
_RETRIED = frozenset(
    {_CODE.UNAVAILABLE, _CODE.ABORTED, _CODE.RESOURCE_EXHAUSTED, _CODE.DEADLINE_EXCEEDED}
)
# The cell says: not mine; nothing was executed. A new slot map is on its way to us.
_REROUTED = frozenset({"SLOT_MOVED", "NOT_HOME", "NOT_OWNER"})
# Switched off by a policy: it comes back in minutes, not within a call.
_SWITCHED_OFF = "FEATURE_DEGRADED"
# Retries of what a cell refused for its load are paid from tokens that successes earn, so that
# they stay a tenth of the calls however long the overload lasts (pitfall 24; gRFC A6).
_TOKENS_MAX = 100.0
_TOKENS_A_SUCCESS = 0.1


@dataclass(frozen=True, slots=True)
class CallPolicy:
    """How long and how often a call is tried."""

    # The whole call, attempts and waits together; a caller's own timeout wins.
    timeout_s: float = 15.0
    # One attempt: a cell that is paused must not eat the whole deadline.
    attempt_timeout_s: float = 3.0
    # False: one attempt only, for callers that are themselves called (the inner fail fast).
    retries: bool = True
    backoff_base_s: float = 0.02
    backoff_cap_s: float = 0.5
    # After a "not mine" nothing was executed and the next map is milliseconds away.
    reroute_wait_s: float = 0.003
    reroute_cap_s: float = 0.05


@dataclass(slots=True)
class CallFigures:
    """What this channel saw; the demo and the chaos tests print it."""

    calls: int = 0
    retries: int = 0
    failures: int = 0


class MeshChannel:
    """Stands where a grpc.aio.Channel stands, for unary methods."""

    def __init__(
        self, channel: grpc.aio.Channel, policy: CallPolicy, tracer: Tracer | None = None
    ) -> None:
        """`tracer`: where each call is a span; None: nowhere."""
        self._channel = channel
        self.policy = policy
        self.tracer = tracer
        self.figures = CallFigures()
        self.tokens = _TOKENS_MAX

    def unary_unary(
        self,
        path: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> MeshCall:
        call: Any = self._channel.unary_unary(path, request_serializer, response_deserializer)
        return MeshCall(self, path, call)

    def stream_stream(
        self,
        path: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """gRPC's own: a stream has no one request to route by, so its caller gives the metadata
        of `home_of`, and begins anew where it breaks."""
        call: Any = self._channel
        return call.stream_stream(path, request_serializer, response_deserializer)

    async def close(self) -> None:
        await self._channel.close(grace=None)


class MeshCall:
    """One method. Raises grpc.aio.AioRpcError, or Refusal for a request that has no home."""

    def __init__(self, channel: MeshChannel, path: str, call: Any) -> None:
        self._channel = channel
        self._call = call
        self._name = path[1:]
        method = find_method(path)
        self._slot = slot_finder(method.input_type) if method else None
        self._keyed = bool(method and "idempotency_key" in method.input_type.fields_by_name)

    async def __call__(
        self, request: Any, *, timeout: float | None = None, metadata: Metadata = ()
    ) -> Any:
        policy = self._channel.policy
        if timeout is not None:
            policy = replace(policy, timeout_s=timeout)
        if self._keyed and not request.idempotency_key:
            request = _with_key(request)
        if self._slot is not None:
            try:
                slot = self._slot(request)
            except ValueError as error:
                raise bad_request([Violation("home", str(error))]) from None
            metadata = (*metadata, (SLOT_HEADER, str(slot)))
        self._channel.figures.calls += 1
        if self._channel.tracer is None:
            return await self._attempts(request, metadata, policy)
        watching: span | root
        if current.get() is None:
            watching = root(
                self._channel.tracer, self._name, SpanKind.CLIENT, outside_traceparent()
            )
        else:
            watching = span(self._name, kind=SpanKind.CLIENT)
        with watching:
            metadata = (*metadata, (TRACEPARENT, watching.traceparent))
            return await self._attempts(request, metadata, policy)

    async def _attempts(self, request: Any, metadata: Metadata, policy: CallPolicy) -> Any:
        loop = asyncio.get_running_loop()
        until = loop.time() + policy.timeout_s
        figures = self._channel.figures
        tries = 0
        while True:
            left = until - loop.time()
            began = time.perf_counter()
            try:
                answer = await self._call(
                    request, timeout=min(left, policy.attempt_timeout_s), metadata=metadata
                )
                self._channel.tokens = min(_TOKENS_MAX, self._channel.tokens + _TOKENS_A_SUCCESS)
                return answer
            except grpc.aio.AioRpcError as error:
                tries += 1
                wait = _wait_s(error, tries, policy)
                if wait is not None and error.code() == _CODE.RESOURCE_EXHAUSTED:
                    wait = wait if self._channel.tokens >= 1 else None
                    self._channel.tokens = max(0.0, self._channel.tokens - 1)
                _note_attempt(began, tries, error)
                if wait is None or loop.time() + wait >= until:
                    figures.failures += 1
                    raise
            figures.retries += 1
            await asyncio.sleep(wait)


def _note_attempt(began: float, tries: int, error: grpc.aio.AioRpcError) -> None:
    """An attempt that failed, below its call's span; one that went well is the call's itself."""
    scope = current.get()
    if scope is not None:
        code, reason = error.code().name, details_of(error).reason
        said = {"cellpay.attempt": tries, "cellpay.code": code, "cellpay.reason": reason or ""}
        line = Line(
            new_span_id(), scope.span_id, "attempt", SpanKind.INTERNAL, began,
            time.perf_counter(), said, error_of(error),
        )  # fmt: skip
        scope.trace.add(line)


def home_of(slot: int) -> Metadata:
    """Sends a stream to the home of this slot."""
    return ((SLOT_HEADER, str(slot)),)


def _wait_s(error: grpc.aio.AioRpcError, tries: int, policy: CallPolicy) -> float | None:
    """How long to wait before the next attempt; None: do not try again."""
    if not policy.retries:
        return None
    details = details_of(error)
    if details.reason in _REROUTED:
        ceiling = policy.reroute_wait_s * 1.6 ** min(tries - 1, 16)
        return random.uniform(0.3, 1.0) * min(ceiling, policy.reroute_cap_s)
    if error.code() not in _RETRIED or details.reason == _SWITCHED_OFF:
        return None
    ceiling = min(policy.backoff_cap_s, policy.backoff_base_s * 2 ** min(tries, 16))
    wait = random.uniform(0, ceiling)
    return max(wait, (details.retry_after_ms or 0) / 1000)


def _with_key(request: Message) -> Message:
    copy: Any = type(request)()
    copy.CopyFrom(request)
    copy.idempotency_key = str(uuid.uuid4())
    return copy  # type: ignore[no-any-return]
