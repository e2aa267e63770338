"""The guard that a cell puts before its services: is this cell the home of this request?

It keeps honest clients from the wrong cell and parks requests while their slot moves. It is the
first of two checks (style.md, "assert in pairs"): the fence inside each writing transaction is
what keeps a deposed cell from committing (invariant 3). `GuardedServer` wraps each handler once,
when it is registered, so a call costs no interceptor.

Answers to a request for a slot of another cell:
    UNAVAILABLE / SLOT_MOVED            the slot was here until lately, or is on its way: try again,
                                        any client or proxy may; nothing was executed
    FAILED_PRECONDITION / NOT_HOME      the slot was not here: the caller's map is wrong
Both name the owner and the epoch in ErrorInfo, and both are safe to retry.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

import grpc
import structlog
from google.protobuf.message import DecodeError

from router.access import Access
from router.admission.gate import Admission
from router.call import Call
from router.errors import Refusal, Violation, abort, bad_request
from router.home import SlotFinder, find_method, home_field, is_bulk, slot_finder
from router.metrics import Calls, SlotCalls
from router.ownership import access_of, authorise, of_merchant
from router.receiving import Absent, one_message
from router.signing.call import RECEIVED
from router.slotmap import SlotMap
from router.slots import SLOT_COUNT, SlotRange
from router.tally import Tally
from router.tracing.calls import attributes_of, traceparent_of
from router.tracing.current import current
from router.tracing.model import Root, SpanKind
from router.tracing.rules import failure_of
from router.tracing.tracer import Tracer
from router.waiting import heard

log = structlog.get_logger(__name__)

Behaviour = Callable[[Any, Any], Awaitable[Any]]


class SlotsHere:
    """What this cell believes of its slots: the map, what moves away, what is under way."""

    def __init__(self, cell: str, *, alive: bool = True) -> None:
        self.cell = cell
        self._map: SlotMap | None = None
        self._mine = [False] * SLOT_COUNT
        self._was_mine = [False] * SLOT_COUNT
        self._draining: dict[int, float] = {}
        self._in_flight = [0] * SLOT_COUNT
        self._changed = asyncio.Event()
        self._alive = alive
        # What the last map that brought any has brought; nothing while there was only one map.
        self.newcomers: frozenset[int] = frozenset()

    @property
    def map(self) -> SlotMap | None:
        return self._map

    def is_home(self, slot: int) -> bool:
        return self._mine[slot]

    def owned(self) -> frozenset[int]:
        return frozenset(slot for slot in range(SLOT_COUNT) if self._mine[slot])

    def publish(self, slot_map: SlotMap) -> frozenset[int]:
        """Takes a new map; returns the slots gained by it."""
        before = self._map
        gained = set()
        self._map = slot_map
        for entry in slot_map.ranges:
            mine = entry.cell == self.cell
            for slot in range(entry.first, entry.last + 1):
                if mine and not self._mine[slot]:
                    gained.add(slot)
                self._was_mine[slot] = self._was_mine[slot] or self._mine[slot]
                self._mine[slot] = mine
                if slot in self._draining and before and before.at(slot) != entry:
                    del self._draining[slot]
        if gained and before is not None:
            self.newcomers = frozenset(gained)
        self._wake()
        return frozenset(gained)

    def set_alive(self, alive: bool) -> None:
        """False while this cell cannot know that it holds its lease: it then takes nothing."""
        if alive != self._alive:
            self._alive = alive
            self._wake()

    def takes_work(self) -> bool:
        """Whether it knows its slots and may serve them."""
        return self._map is not None and self._alive

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def drain(self, ranges: Iterable[SlotRange], hold_s: float) -> int:
        """Parks new requests of these slots; returns when those under way have ended.

        Parked requests go on after `hold_s` at the latest, should the move never come.
        """
        slots = [slot for piece in ranges for slot in piece.slots() if self._mine[slot]]
        until = asyncio.get_running_loop().time() + hold_s
        for slot in slots:
            self._draining[slot] = until
        drained = sum(self._in_flight[slot] for slot in slots)
        while any(self._in_flight[slot] for slot in slots):
            if asyncio.get_running_loop().time() > until:
                break
            await asyncio.sleep(0.001)
        return drained

    async def _parked(self, slot: int) -> None:
        loop = asyncio.get_running_loop()
        while (until := self._draining.get(slot)) is not None:
            changed = self._changed
            left = until - loop.time()
            if left <= 0:
                self._draining.pop(slot, None)
                return
            await heard(changed, left)

    def _refusal(self, slot: int) -> Refusal:
        if self._map is None or not self._alive:
            return Refusal(
                grpc.StatusCode.UNAVAILABLE,
                "CELL_NOT_READY",
                f"cell {self.cell} does not know its slots now",
                metadata={"cell": self.cell},
            )
        owner = self._map.at(slot)
        moved = self._was_mine[slot]
        return Refusal(
            grpc.StatusCode.UNAVAILABLE if moved else grpc.StatusCode.FAILED_PRECONDITION,
            "SLOT_MOVED" if moved else "NOT_HOME",
            f"slot {slot} is at home in cell {owner.cell}, not in {self.cell}",
            metadata={"slot": str(slot), "owner": owner.cell, "epoch": str(owner.epoch)},
        )

    def _moving(self, slot: int) -> Refusal:
        return Refusal(
            grpc.StatusCode.UNAVAILABLE,
            "SLOT_MOVING",
            f"slot {slot} is on its way to another cell; nothing was executed",
            metadata={"slot": str(slot)},
            retry_after_ms=20,
        )

    async def enter(self, slot: int) -> None:
        """Holds the slot here until `leave`. Raises Refusal when it is not here."""
        if self._draining and slot in self._draining:
            await self._parked(slot)
        if not (self._mine[slot] and self._alive):
            raise self._refusal(slot)
        self._in_flight[slot] += 1

    def enter_now(self, slot: int) -> None:
        """As `enter`, for one of many: what moves away is refused, for to wait for one slot while
        others are held would hold up their move."""
        if slot in self._draining:
            raise self._moving(slot)
        if not (self._mine[slot] and self._alive):
            raise self._refusal(slot)
        self._in_flight[slot] += 1

    def leave(self, slot: int) -> None:
        self._in_flight[slot] -= 1


class _Malformed:
    """Bytes that are no valid message (bad wire format or wrong UTF-8)."""


_MALFORMED = _Malformed()


def require_wellformed(message: Any) -> None:
    """For services of streams, whose messages the guard does not see. Raises Refusal."""
    if isinstance(message, Absent):
        raise message.refusal
    if message is _MALFORMED:
        raise Refusal(
            grpc.StatusCode.INVALID_ARGUMENT,
            "MALFORMED_REQUEST",
            "the request is no valid message: bad wire format or a string not in UTF-8",
        )


class Signing(Protocol):
    """What looks at signatures (router/signing/gate.py)."""

    def wrap(
        self, name: str, request_type: Any, finder: SlotFinder, behaviour: Behaviour
    ) -> Behaviour: ...

    def require(self, name: str, context: Any) -> None:
        """Raises Refusal for a stream that should be signed."""
        ...


def _safe(deserializer: Callable[[bytes], Any], *, keep: bool = False) -> Callable[[bytes], Any]:
    """`keep`: the bytes are a signature's business too; they stay with the call."""

    def deserialize(data: bytes) -> Any:
        if keep:
            RECEIVED.set(data)
        try:
            return deserializer(data)
        except DecodeError:
            return _MALFORMED

    return deserialize


class GuardedServer:
    """Looks like a grpc.aio.Server to generated `add_…_to_server` functions."""

    def __init__(
        self,
        server: grpc.aio.Server,
        here: SlotsHere,
        access: Mapping[str, Access] | None = None,
        faults: Mapping[type[Exception], Callable[[Any], Refusal]] | None = None,
        admission: Admission | None = None,
        tallies: Mapping[str, Tally] | None = None,
        calls: Calls | None = None,
        signing: Signing | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """`access`: `package.Service/Method` → who may call; what it does not name is refused.
        None: another gate decides (the control plane's).

        `faults`: exceptions of outside systems → what the caller hears of them. `admission`: the
        policies' limits, before the slot is looked at. `tallies`: full service name → where its
        calls are counted. `calls`: where all are, for metrics. `signing`: what looks at
        signatures, at the home of a request and nowhere else. `tracer`: where each call is a span;
        None: nowhere.
        """
        self._signing = signing
        self._calls = calls or Calls()
        self._tracer = tracer
        self._admission = admission
        self._server = server
        self._here = here
        self._access = access
        self._faults = dict(faults or {})
        self._tallies = dict(tallies or {})

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Generated code registers twice; the handlers below are the guarded ones."""

    def add_registered_method_handlers(
        self, service_name: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        guarded = {
            name: self._wrap(service_name, name, cast(Any, handler), handlers)
            for name, handler in handlers.items()
        }
        # Not add_registered_method_handlers: grpc.aio (1.85) waits for each registered method by
        # a future of its own, and goes through all of them at every call that comes.
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service_name, guarded),)
        )

    def _is_newcomer(self, finder: SlotFinder | None) -> Callable[[Any], bool]:
        """Asked within the guard: there the request has a slot."""
        here = self._here
        if finder is None:
            return lambda request: False
        return lambda request: bool(here.newcomers) and finder(request) in here.newcomers

    def _wrap(
        self, service: str, name: str, handler: Any, siblings: Mapping[str, Any]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        if handler.request_streaming != handler.response_streaming:
            raise TypeError(f"{service}/{name}: the guard knows no half streams")
        method = find_method(f"/{service}/{name}")
        finder = slot_finder(method.input_type) if method else None
        field = home_field(method.input_type) if method else None
        behaviour = handler.stream_stream or handler.unary_unary
        bulk = method is not None and is_bulk(method.input_type)
        if service in self._tallies and not bulk and not handler.request_streaming:
            # Within the guard: what is parked while its slot moves does not count as slow.
            # Bulk has an outcome for each of its many, and counts them itself.
            behaviour = self._tallies[service].watch(behaviour, self._is_newcomer(finder))
        access = access_of(self._access, f"{service}/{name}")
        if access is not None:
            behaviour = of_merchant(access, service, siblings, behaviour)
        if self._signing is not None:
            behaviour = _signed(self._signing, f"{service}/{name}", handler, finder, behaviour)
        if finder is not None and not bulk:
            counted = self._calls.of_slots(f"{service}/{name}")
            behaviour = _at_home(self._here, finder, field or "", behaviour, counted)
        if self._admission is not None and method and not handler.request_streaming:
            name_in_full = f"{service}/{name}"
            behaviour = self._admission.wrap(name_in_full, method.input_type, behaviour, bulk=bulk)
        # A stream lives as long as its caller likes: it is no request to be slow.
        tracer = None if handler.request_streaming else self._tracer
        answering = _Answering(f"{service}/{name}", access, self._faults, self._calls, tracer)
        behaviour = answering.wrap(behaviour)
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            # Not unary_unary: router/receiving.py says why.
            else grpc.stream_unary_rpc_method_handler
        )
        return make(
            behaviour if handler.request_streaming else one_message(behaviour),
            request_deserializer=_safe(
                handler.request_deserializer,
                keep=self._signing is not None and not handler.request_streaming,
            ),
            response_serializer=handler.response_serializer,
        )


def _signed(
    signing: Signing, name: str, handler: Any, finder: SlotFinder | None, behaviour: Behaviour
) -> Behaviour:
    """What has no home has no memory of nonces either; no merchant is served there."""
    if not handler.request_streaming:
        method = find_method(f"/{name}")
        if method is None or finder is None:
            return behaviour
        return signing.wrap(name, method.input_type, finder, behaviour)

    async def refused_if_required(request: Any, context: Any) -> Any:
        signing.require(name, context)
        return await behaviour(request, context)

    return refused_if_required


def _at_home(
    here: SlotsHere, finder: SlotFinder, field: str, behaviour: Behaviour, counted: SlotCalls
) -> Behaviour:
    async def guarded(request: Any, context: Any) -> Any:
        try:
            slot = finder(request)
        except ValueError as error:
            raise bad_request([Violation(field, str(error))]) from None
        scope = current.get()
        if isinstance(scope, Root):
            scope.slot = slot
        await here.enter(slot)
        began = time.perf_counter()
        code = "INTERNAL"
        try:
            answer = await behaviour(request, context)
            code = "OK"
            return answer
        except Refusal as refusal:
            code = refusal.code.name
            raise
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        finally:
            here.leave(slot)
            counted.note(slot, code, time.perf_counter() - began)

    return guarded


class _Answering:
    """Turns refusals into statuses and faults into an INTERNAL that says nothing (pitfall 34);
    counts each call, and makes it the root of what its trace has here."""

    def __init__(
        self,
        name: str,
        access: Access | None,
        faults: Mapping[type[Exception], Callable[[Any], Refusal]],
        calls: Calls,
        tracer: Tracer | None,
    ) -> None:
        self._name = name
        self._access = access
        self._faults = faults
        self._fault_types = tuple(faults)
        self._calls = calls
        self._tracer = tracer

    def wrap(self, behaviour: Behaviour) -> Behaviour:
        tracer, name, calls = self._tracer, self._name, self._calls

        async def answer(request: Any, served: Any) -> Any:
            context: Any = Call(served)
            began = time.perf_counter()
            code, reason = "CANCELLED", ""
            root = None
            calls.under_way += 1
            if tracer is not None:
                root = tracer.begin(name, SpanKind.SERVER, traceparent_of(context))
                token = current.set(root)
            response = None
            try:
                require_wellformed(request)
                if self._access is not None:
                    authorise(context, self._access)
                response = await behaviour(request, context)
                code = "OK"
                return response
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception as error:
                heard = self._heard(error)
                code, reason = heard.code.name, heard.reason
                try:
                    await abort(served, heard)
                finally:
                    # It knows this frame: together they would live until cycles are looked for.
                    del heard
            finally:
                calls.under_way -= 1
                trace_id = ""
                if root is not None and tracer is not None:
                    current.reset(token)
                    failure = failure_of(code, reason)
                    if tracer.end(
                        root, failure, lambda: attributes_of(name, code, request, response)
                    ):
                        trace_id = root.trace.trace_id
                calls.note(name, code, time.perf_counter() - began, trace_id)

        return answer

    def _heard(self, error: Exception) -> Refusal:
        """What the caller hears of it."""
        if isinstance(error, Refusal):
            return error
        if isinstance(error, self._fault_types):
            return self._faults[type(error)](error)
        log.exception("a request failed", method=self._name)
        return Refusal(
            grpc.StatusCode.INTERNAL,
            "INTERNAL",
            "the cell failed; retry with the same idempotency key to learn the outcome",
        )
