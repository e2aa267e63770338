"""From the stream to deliveries: one durable consumer that all cells share.

Each event of a merchant becomes a delivery at the merchant's home cell, whichever cell took it
from the stream. A message is acknowledged when all its events have theirs; a repeat finds them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import grpc
import structlog
from cellpay.notifications.v1 import notifications_pb2 as pb
from nats.js.api import AckPolicy, ConsumerConfig

from cells.bulk import REQUESTS_MAX
from cells.cancellation import go_on_unless_cancelled
from cells.outbox.stream import STREAM, SUBJECTS, connect_stream
from router.client.tls import TlsFiles
from router.errors import Refusal
from router.slots import slot_of_user
from router.tracing.model import SpanKind
from router.tracing.rules import parse_traceparent
from router.tracing.tracer import Tracer, root

log = structlog.get_logger(__name__)

DURABLE = "notifications"
# Each holds up to 128 events. More at once, from every relay to the home of one merchant, would
# fill the lane that payments go through.
_MESSAGES_MAX = 2
# Slots that are neighbours mostly have one home; their events share a call.
_NEIGHBOURS = 64
_ELSEWHERE = frozenset({"NOT_HOME", "SLOT_MOVED", "SLOT_MOVING", "NOT_OWNER"})
# What a server of the mesh takes is 1 MiB; characters of a body may be three bytes each.
_REQUEST_BYTES_MAX = 300_000
_OVERHEAD_BYTES = 200
_FETCH_WAIT_S = 2.0
_CALL_WAIT_S = 10.0
# Longer than a batch may take: every call has its own deadline, and they run at once. What a
# killed relay had taken comes again after this.
_ACK_WAIT_S = 15.0
_ACK_PENDING_MAX = 256
_NAK_BASE_S = 0.25
_NAK_CAP_S = 30.0
_BACKOFF_BASE_S = 0.2
_BACKOFF_CAP_S = 5.0


class Deliveries(Protocol):
    """What it needs of the mesh: the stub of NotificationsService. Idempotent by event."""

    def EnqueueDelivery(
        self, request: pb.EnqueueDeliveryRequest, *, timeout: float
    ) -> Awaitable[pb.Delivery]: ...

    def EnqueueDeliveries(
        self, request: pb.EnqueueDeliveriesRequest, *, timeout: float
    ) -> Awaitable[pb.EnqueueDeliveriesResponse]: ...


class Consumer:
    def __init__(
        self,
        deliveries: Deliveries,
        cell: str,
        nats_url: str,
        nats_tls: TlsFiles | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer
        self._deliveries = deliveries
        self._cell = cell
        self._nats_url = nats_url
        self._nats_tls = nats_tls

    async def run(self) -> None:
        """Consumes for ever; waits out whatever is away."""
        failures = 0
        while True:
            go_on_unless_cancelled()
            try:
                name = f"cellpay-{self._cell}-notifications"
                async with connect_stream(self._nats_url, name, self._nats_tls) as stream:
                    subscription = await _subscribe(stream)
                    while True:
                        go_on_unless_cancelled()
                        await self._consume(subscription)
                        failures = 0
            except Exception as error:
                failures += 1
                log.warning("the consumer waits", error=type(error).__name__, tries=failures)
                await asyncio.sleep(_spread(failures, _BACKOFF_BASE_S, _BACKOFF_CAP_S))

    async def _consume(self, subscription: Any) -> None:
        """Some messages; raises when the consumer is gone from the server."""
        try:
            messages = await subscription.fetch(_MESSAGES_MAX, timeout=_FETCH_WAIT_S)
        except TimeoutError:
            await subscription.consumer_info()
            return
        taken: list[_Message] = []
        neighbours: dict[int, list[_Item]] = {}
        for message in messages:
            requests = delivery_requests(message.data)
            if requests is None:
                log.error("a message holds no events of ours; given up", subject=message.subject)
                await message.term()
                continue
            mine = _Message(message)
            taken.append(mine)
            for request in requests:
                slot = slot_of_user(request.merchant_id)
                neighbours.setdefault(slot // _NEIGHBOURS, []).append(_Item(mine, request))
        async with asyncio.TaskGroup() as group:
            for items in neighbours.values():
                for part in _parts(items):
                    group.create_task(self._take(part))
        for mine in taken:
            await mine.end()

    async def _take(self, items: Sequence[_Item]) -> None:
        """Sees to it that each event has its delivery; where it has not, its message fails."""
        try:
            with self._consuming(items):
                deliveries = [item.request for item in items]
                request = pb.EnqueueDeliveriesRequest(deliveries=deliveries)
                answer = await self._deliveries.EnqueueDeliveries(request, timeout=_CALL_WAIT_S)
        except (grpc.aio.AioRpcError, Refusal) as error:
            for item in items:
                item.fail(_code(error))
            return
        for item, status in zip(items, answer.error_statuses, strict=True):
            if not status:
                continue
            refusal = Refusal.from_status(status)
            if refusal.reason in _ELSEWHERE:
                # The home of its neighbours is not its own.
                await self._take_alone(item)
            else:
                item.fail(refusal.code)

    @contextlib.contextmanager
    def _consuming(self, items: Sequence[_Item]) -> Iterator[None]:
        """A span in the trace of each event that is in the sample; the call is in the first's."""
        with contextlib.ExitStack() as stack:
            for item in reversed(items) if self._tracer is not None else ():
                parent = parse_traceparent(item.request.traceparent)
                if parent is not None and parent.sampled:
                    watching = root(
                        self._tracer, "event.consume", SpanKind.CONSUMER, item.request.traceparent
                    )
                    watching = stack.enter_context(watching)
                    watching.note(event_id=item.request.event_id)
                    item.request.traceparent = watching.traceparent
            yield

    async def _take_alone(self, item: _Item) -> None:
        try:
            await self._deliveries.EnqueueDelivery(item.request, timeout=_CALL_WAIT_S)
        except (grpc.aio.AioRpcError, Refusal) as error:
            item.fail(_code(error))


class _Message:
    """A message whose events are on their way to their deliveries."""

    def __init__(self, message: Any) -> None:
        self._message = message
        self._failed: dict[str, grpc.StatusCode] = {}

    def fail(self, event_id: str, code: grpc.StatusCode) -> None:
        self._failed[event_id] = code

    async def end(self) -> None:
        """Acknowledges it when all its events have their deliveries; else all come again, and
        those that are there are found."""
        if not self._failed:
            await self._message.ack()
            return
        tries = int(self._message.metadata.num_delivered)
        event_id, code = next(iter(self._failed.items()))
        log.warning(
            "events have no delivery yet",
            events=len(self._failed), event_id=event_id, tries=tries, code=code.name,
        )  # fmt: skip
        await self._message.nak(delay=_spread(tries, _NAK_BASE_S, _NAK_CAP_S))


class _Item(NamedTuple):
    message: _Message
    request: pb.EnqueueDeliveryRequest

    def fail(self, code: grpc.StatusCode) -> None:
        self.message.fail(self.request.event_id, code)


def _parts(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    """Pieces that fit into a call."""
    first = size = 0
    for number, item in enumerate(items):
        added = len(item.request.body) + _OVERHEAD_BYTES
        if number > first and (size + added > _REQUEST_BYTES_MAX or number - first == REQUESTS_MAX):
            yield items[first:number]
            first, size = number, 0
        size += added
    yield items[first:]


async def _subscribe(stream: Any) -> Any:
    return await stream.pull_subscribe(
        SUBJECTS,
        durable=DURABLE,
        stream=STREAM,
        config=ConsumerConfig(
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=_ACK_WAIT_S,
            max_deliver=-1,
            max_ack_pending=_ACK_PENDING_MAX,
        ),
    )


def delivery_requests(data: bytes) -> list[pb.EnqueueDeliveryRequest] | None:
    """What merchants will hear of a message's events; None when the bytes are no lines of ours."""
    try:
        events = [json.loads(line) for line in data.splitlines()]
        return [_delivery_request(event) for event in events if event["merchant_id"]]
    except (ValueError, KeyError, TypeError):
        return None


def _delivery_request(event: Mapping[str, Any]) -> pb.EnqueueDeliveryRequest:
    body = {
        "id": event["id"],
        "type": event["type"],
        "timestamp": event["time"],
        "data": event["data"],
    }
    return pb.EnqueueDeliveryRequest(
        merchant_id=event["merchant_id"],
        event_id=event["id"],
        event_type=event["type"],
        body=json.dumps(body, separators=(",", ":")),
        traceparent=event.get("traceparent", ""),
    )


def _code(error: grpc.aio.AioRpcError | Refusal) -> grpc.StatusCode:
    return error.code if isinstance(error, Refusal) else error.code()


def _spread(tries: int, base_s: float, cap_s: float) -> float:
    return random.uniform(0.5, 1.0) * min(cap_s, base_s * 2.0 ** min(tries, 16))
