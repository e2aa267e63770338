"""Breakers around what the relay asks: the stream, and the cells that take deliveries.

What a breaker stops waits where it is: rows in the outbox, messages in the stream. An open breaker
is a fault like any other to the loops around, so they back off and come again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import nats.errors
from cellpay.notifications.v1 import notifications_pb2 as pb
from sqlalchemy.ext.asyncio import AsyncEngine

from cells.breakers.board import Breaker
from cells.notifications.consumer import Deliveries
from cells.outbox.worker import OutboxRelay
from cells.settings import OutboxSettings
from router.client.tls import TlsFiles
from router.errors import Refusal
from router.tracing.tracer import Tracer

_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
_STREAM_FAULTS = (nats.errors.Error, OSError, TimeoutError)

T = TypeVar("T")


class BreakingOutbox(OutboxRelay):
    def __init__(
        self,
        engine: AsyncEngine,
        cell: str,
        nats_url: str,
        settings: OutboxSettings,
        breaker: Breaker,
        nats_tls: TlsFiles | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        super().__init__(engine, cell, nats_url, settings, nats_tls, tracer)
        self._breaker = breaker

    async def relay_rows(self, stream: Any) -> bool:
        self._breaker.check()
        try:
            full = await super().relay_rows(stream)
        except _STREAM_FAULTS as error:
            self._breaker.note(error)
            raise
        self._breaker.note(None)
        return full


class BreakingDeliveries:
    """Stands where the stub of NotificationsService stands."""

    def __init__(self, deliveries: Deliveries, breaker: Breaker) -> None:
        self._deliveries = deliveries
        self._breaker = breaker

    async def EnqueueDelivery(
        self, request: pb.EnqueueDeliveryRequest, *, timeout: float
    ) -> pb.Delivery:
        return await self._through(self._deliveries.EnqueueDelivery, request, timeout)

    async def EnqueueDeliveries(
        self, request: pb.EnqueueDeliveriesRequest, *, timeout: float
    ) -> pb.EnqueueDeliveriesResponse:
        return await self._through(self._deliveries.EnqueueDeliveries, request, timeout)

    async def _through(self, call: Callable[..., Awaitable[T]], request: Any, timeout: float) -> T:
        if self._breaker.is_open():
            raise Refusal(
                grpc.StatusCode.UNAVAILABLE, "BREAKER_OPEN", "deliveries are not taken for now"
            )
        try:
            answer = await call(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            self._breaker.note(error if error.code() in _AWAY else None)
            raise
        self._breaker.note(None)
        return answer
