"""From the stream to deliveries: one durable consumer that all cells share.

Each event of a merchant becomes a delivery at the merchant's home cell, whichever cell took it
from the stream. It is acknowledged only then; a repeat finds the delivery that is there.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Iterator, Sequence
from typing import Any, Protocol

import grpc
import structlog
from cellpay.notifications.v1 import notifications_pb2 as pb
from nats.js.api import AckPolicy, ConsumerConfig

from cells.outbox.stream import STREAM, SUBJECTS, connect_stream, go_on_unless_cancelled
from router.errors import Refusal
from router.slots import slot_of_user

log = structlog.get_logger(__name__)

DURABLE = "notifications"
_BATCH_MAX = 256
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
_ACK_PENDING_MAX = 4096
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
    def __init__(self, deliveries: Deliveries, cell: str, nats_url: str) -> None:
        self._deliveries = deliveries
        self._cell = cell
        self._nats_url = nats_url

    async def run(self) -> None:
        """Consumes for ever; waits out whatever is away."""
        failures = 0
        while True:
            go_on_unless_cancelled()
            try:
                async with connect_stream(
                    self._nats_url, f"cellpay-{self._cell}-notifications"
                ) as stream:
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
        """One batch; raises when the consumer is gone from the server."""
        try:
            messages = await subscription.fetch(_BATCH_MAX, timeout=_FETCH_WAIT_S)
        except TimeoutError:
            await subscription.consumer_info()
            return
        neighbours: dict[int, list[tuple[Any, pb.EnqueueDeliveryRequest]]] = {}
        async with asyncio.TaskGroup() as group:
            for message in messages:
                request = delivery_request(message.data)
                if request is None:
                    log.error("a message is no event of ours; given up", subject=message.subject)
                    await message.term()
                elif not request.merchant_id:
                    await message.ack()
                else:
                    slot = slot_of_user(request.merchant_id)
                    neighbours.setdefault(slot // _NEIGHBOURS, []).append((message, request))
            for taken in neighbours.values():
                for part in _parts(taken):
                    group.create_task(self._take(part))

    async def _take(self, taken: Sequence[tuple[Any, pb.EnqueueDeliveryRequest]]) -> None:
        """Acknowledges each message once its event has its delivery; else it comes again."""
        request = pb.EnqueueDeliveriesRequest(deliveries=[item for _, item in taken])
        try:
            answer = await self._deliveries.EnqueueDeliveries(request, timeout=_CALL_WAIT_S)
        except (grpc.aio.AioRpcError, Refusal) as error:
            for message, item in taken:
                await _again(message, item, _code(error))
            return
        for (message, item), status in zip(taken, answer.error_statuses, strict=True):
            if not status:
                await message.ack()
                continue
            refusal = Refusal.from_status(status)
            if refusal.reason in _ELSEWHERE:
                # The home of its neighbours is not its own.
                await self._take_alone(message, item)
            else:
                await _again(message, item, refusal.code)

    async def _take_alone(self, message: Any, request: pb.EnqueueDeliveryRequest) -> None:
        try:
            await self._deliveries.EnqueueDelivery(request, timeout=_CALL_WAIT_S)
        except (grpc.aio.AioRpcError, Refusal) as error:
            await _again(message, request, _code(error))
        else:
            await message.ack()


async def _again(message: Any, request: pb.EnqueueDeliveryRequest, code: grpc.StatusCode) -> None:
    tries = int(message.metadata.num_delivered)
    log.warning(
        "an event has no delivery yet", event_id=request.event_id, tries=tries, code=code.name
    )
    await message.nak(delay=_spread(tries, _NAK_BASE_S, _NAK_CAP_S))


def _parts(
    taken: Sequence[tuple[Any, pb.EnqueueDeliveryRequest]],
) -> Iterator[Sequence[tuple[Any, pb.EnqueueDeliveryRequest]]]:
    """Pieces that fit into a message."""
    first = size = 0
    for number, (_, request) in enumerate(taken):
        added = len(request.body) + _OVERHEAD_BYTES
        if size + added > _REQUEST_BYTES_MAX and number > first:
            yield taken[first:number]
            first, size = number, 0
        size += added
    yield taken[first:]


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


def delivery_request(data: bytes) -> pb.EnqueueDeliveryRequest | None:
    """What the merchant will hear of an event; None when the bytes are no envelope of ours."""
    try:
        event = json.loads(data)
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
        )
    except (ValueError, KeyError, TypeError):
        return None


def _code(error: grpc.aio.AioRpcError | Refusal) -> grpc.StatusCode:
    return error.code if isinstance(error, Refusal) else error.code()


def _spread(tries: int, base_s: float, cap_s: float) -> float:
    return random.uniform(0.5, 1.0) * min(cap_s, base_s * 2.0 ** min(tries, 16))
