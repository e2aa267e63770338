"""NotificationsService: proto to model and back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import grpc
from cellpay.notifications.v1 import notifications_pb2 as pb
from cellpay.notifications.v1 import notifications_pb2_grpc
from sqlalchemy import literal, select, tuple_

from cells.answers import resource_of
from cells.bulk import Bulk, status_bytes
from cells.ledger.worker import Lanes
from cells.notifications.model import Delivery, DeliveryState, Endpoint
from cells.notifications.rules import (
    SECRET_BYTES_MAX,
    SECRET_BYTES_MIN,
    EnqueueDelivery,
    RedeliverDelivery,
    SetEndpoint,
    url_fault,
)
from cells.notifications.secrets import Secrets
from cells.notifications.tables import DELIVERIES, ENDPOINTS, deliveries
from cells.reading import ReadEngine, fetch, fetch_row
from cells.replica import staleness_of
from cells.requests import (
    Checker,
    idempotency_of,
    page_start,
    page_token,
    timeout_of,
    timestamp,
)
from router.errors import Refusal
from router.ids import Kind, slot_of_id
from router.slots import slot_of_user
from router.tracing.rules import parse_traceparent

_BODY_BYTES_MAX = 64 * 1024
_STATES_OUT = {
    DeliveryState.PENDING: pb.Delivery.STATE_PENDING,
    DeliveryState.DELIVERED: pb.Delivery.STATE_DELIVERED,
    DeliveryState.DEAD: pb.Delivery.STATE_DEAD,
    DeliveryState.SKIPPED: pb.Delivery.STATE_SKIPPED,
}
_STATES_IN = {message: state for state, message in _STATES_OUT.items()}


def endpoint_message(endpoint: Endpoint) -> pb.Endpoint:
    """Without its secret, which is never returned."""
    return pb.Endpoint(
        merchant_id=endpoint.endpoint_id,
        url=endpoint.url,
        update_time=timestamp(endpoint.updated_at),
    )


def delivery_message(delivery: Delivery) -> pb.Delivery:
    return pb.Delivery(
        delivery_id=delivery.delivery_id,
        event_id=delivery.event_id,
        event_type=delivery.event_type,
        merchant_id=delivery.merchant_id,
        state=_STATES_OUT[DeliveryState(delivery.state)],
        attempts=delivery.attempts,
        last_error=delivery.last_error,
        create_time=timestamp(delivery.created_at),
    )


class NotificationsService(notifications_pb2_grpc.NotificationsServiceServicer):
    def __init__(
        self,
        lanes: Lanes,
        engine: ReadEngine,
        bulk: Bulk,
        *,
        secrets: Secrets,
        allow_private: bool,
    ) -> None:
        """`allow_private`: webhooks may go to private addresses and by plain http (a laptop)."""
        self._lanes = lanes
        self._engine = engine
        self._bulk = bulk
        self._secrets = secrets
        self._allow_private = allow_private

    async def SetEndpoint(self, request: pb.SetEndpointRequest, context: Any) -> pb.Endpoint:
        check = Checker()
        merchant_id = check.name("merchant_id", request.merchant_id)
        fault = url_fault(request.url, allow_private=self._allow_private)
        if fault:
            check.wrong("url", fault)
        if not SECRET_BYTES_MIN <= len(request.secret) <= SECRET_BYTES_MAX:
            check.wrong(
                "secret",
                f"has {len(request.secret)} bytes; {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX}",
            )
        idempotency = idempotency_of(check, "SetEndpoint", request)
        check.done()
        sealed = await self._secrets.seal(merchant_id, request.secret)
        command = SetEndpoint(
            slot_of_user(merchant_id), merchant_id, request.url, sealed.plain, idempotency,
            sealed.sealed, sealed.kms_version,
        )  # fmt: skip
        outcome = await self._lanes.submit(command, timeout_of(context))
        return endpoint_message(resource_of(outcome))

    async def GetEndpoint(self, request: pb.GetEndpointRequest, context: Any) -> pb.Endpoint:
        check = Checker()
        merchant_id = check.name("merchant_id", request.merchant_id)
        check.done()
        slot = slot_of_user(merchant_id)
        endpoint = await fetch_row(self._engine, ENDPOINTS, slot, merchant_id)
        if endpoint is None:
            raise Refusal(
                grpc.StatusCode.NOT_FOUND, "ENDPOINT_NOT_FOUND", "the merchant has no endpoint"
            )
        return endpoint_message(endpoint)

    async def ListDeliveries(
        self, request: pb.ListDeliveriesRequest, context: Any
    ) -> pb.ListDeliveriesResponse:
        check = Checker()
        merchant_id = check.name("merchant_id", request.merchant_id)
        state = _STATES_IN.get(request.state)
        if state is None and request.state != pb.Delivery.STATE_UNSPECIFIED:
            check.wrong("state", "is not a state of a delivery")
        size = check.page_size(request.page_size)
        start = _page_start(check, request.page_token)
        check.done()
        statement = (
            select(*(deliveries.c[name] for name in DELIVERIES.fields))
            .where(
                deliveries.c.slot == slot_of_user(merchant_id),
                deliveries.c.merchant_id == merchant_id,
            )
            .order_by(deliveries.c.created_at.desc(), deliveries.c.delivery_id.desc())
            .limit(size + 1)
        )
        if state is not None:
            statement = statement.where(deliveries.c.state == state)
        if start is not None:
            statement = statement.where(
                tuple_(deliveries.c.created_at, deliveries.c.delivery_id)
                < tuple_(literal(start[0]), literal(start[1]))
            )
        rows = [
            Delivery(*row) for row in await fetch(self._engine, statement, staleness_of(context))
        ]
        listed = rows[:size]
        more = len(rows) > size
        return pb.ListDeliveriesResponse(
            deliveries=[delivery_message(delivery) for delivery in listed],
            next_page_token=_page_token(listed[-1]) if more else "",
        )

    async def RedeliverDelivery(
        self, request: pb.RedeliverDeliveryRequest, context: Any
    ) -> pb.Delivery:
        check = Checker()
        identifier = check.identifier("delivery_id", request.delivery_id, Kind.DELIVERY)
        idempotency = idempotency_of(check, "RedeliverDelivery", request)
        check.done()
        command = RedeliverDelivery(slot_of_id(identifier), identifier, idempotency)
        outcome = await self._lanes.submit(command, timeout_of(context))
        return delivery_message(resource_of(outcome))

    async def EnqueueDelivery(
        self, request: pb.EnqueueDeliveryRequest, context: Any
    ) -> pb.Delivery:
        outcome = await self._lanes.submit(_enqueue_command(request), timeout_of(context))
        return delivery_message(resource_of(outcome))

    async def EnqueueDeliveries(
        self, request: pb.EnqueueDeliveriesRequest, context: Any
    ) -> pb.EnqueueDeliveriesResponse:
        outcomes = await self._bulk.run(
            "deliveries",
            request.deliveries,
            _enqueue_command,
            timeout_of(context),
            trace_of=_trace_of,
        )
        return pb.EnqueueDeliveriesResponse(
            error_statuses=[
                status_bytes(outcome) if isinstance(outcome, Refusal) else b""
                for outcome in outcomes
            ]
        )


def _enqueue_command(request: pb.EnqueueDeliveryRequest) -> EnqueueDelivery:
    check = Checker()
    merchant_id = check.name("merchant_id", request.merchant_id)
    event_id = check.identifier("event_id", request.event_id, Kind.EVENT)
    event_type = check.name("event_type", request.event_type)
    if not 0 < len(request.body.encode()) <= _BODY_BYTES_MAX or not _one_line(request.body):
        check.wrong("body", f"must be a JSON document of at most {_BODY_BYTES_MAX} bytes")
    check.done()
    slot = slot_of_user(merchant_id)
    # What is no traceparent goes no further: merchants receive it as a header.
    traceparent = request.traceparent if parse_traceparent(request.traceparent) else ""
    return EnqueueDelivery(slot, merchant_id, event_id, event_type, request.body, traceparent)


def _trace_of(request: pb.EnqueueDeliveryRequest) -> tuple[str, str]:
    """Only of the sample: there is one for each event, behind messages, where nobody waits."""
    parent = parse_traceparent(request.traceparent)
    return "delivery.enqueue", request.traceparent if parent and parent.sampled else ""


def _one_line(body: str) -> bool:
    """JSON writes control characters as escapes."""
    return body.isprintable() or not any(character < " " for character in body)


def _page_token(last: Delivery) -> str:
    return page_token([last.created_at.astimezone(UTC).isoformat(), last.delivery_id])


def _page_start(check: Checker, token: str) -> tuple[datetime, str] | None:
    values = page_start(check, token, 2)
    if values is None:
        return None
    try:
        slot_of_id(values[1])
        return datetime.fromisoformat(values[0]).astimezone(UTC), values[1]
    except (ValueError, OverflowError):
        check.wrong("page_token", "is not a token that this method returned")
        return None
