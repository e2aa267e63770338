"""Drives a pending refund to its end: fetches its money from the merchant's home.

Each step is idempotent (the funding transfer's key is the refund's ID), so the request, its retry
and the recovery worker may all drive the same refund.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc
import structlog
from cellpay.transfers.v1 import funding_pb2, transfers_pb2

from cells.answers import resource_of
from cells.breakers.board import Breaker
from cells.ledger.worker import Lanes
from cells.payments.model import Refund, RefundEvent, RefundState
from cells.payments.rules import EndRefund
from cells.requests import money
from router.client import Mesh
from router.errors import details_of
from router.ids import Kind, collection_account_id
from router.minting import mint_now

log = structlog.get_logger(__name__)

_FINAL_REFUSALS = frozenset({grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND})

# The merchant's cell did not answer at all.
_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


class Refunding:
    def __init__(
        self,
        lanes: Lanes,
        mesh: Mesh,
        call_timeout_s: float,
        breaker: Breaker,
        deferred: Callable[[], bool],
    ) -> None:
        """`deferred`: whether refunds wait for better times; they stay pending meanwhile."""
        self._breaker = breaker
        self._deferred = deferred
        self._lanes = lanes
        self._mesh = mesh
        self._call_timeout_s = call_timeout_s

    async def advance(self, refund: Refund) -> Refund:
        """The refund as far as it goes now; still pending when the mesh does not answer."""
        if refund.state != RefundState.PENDING or self._deferred() or self._breaker.is_open():
            return refund
        event = await self._fund(refund)
        if event is None:
            return refund
        command_event = mint_now(Kind.EVENT, refund.slot)
        outcome = await self._lanes.submit(
            EndRefund(refund.slot, refund.refund_id, command_event, event)
        )
        ended: Refund = resource_of(outcome)
        return ended

    async def _fund(self, refund: Refund) -> RefundEvent | None:
        request = funding_pb2.FundCollectionRequest(
            merchant_id=refund.merchant_id,
            collection_account_id=collection_account_id(
                refund.slot, refund.merchant_id, refund.currency
            ),
            amount=money(refund.currency, refund.amount),
            idempotency_key=refund.refund_id,
        )
        try:
            transfer = await self._mesh.funding.FundCollection(
                request, timeout=self._call_timeout_s
            )
        except grpc.aio.AioRpcError as error:
            self._breaker.note(error if error.code() in _AWAY else None)
            if error.code() in _FINAL_REFUSALS and not _elsewhere(error):
                return RefundEvent.UNFUNDED
            log.info(
                "a refund waits for its funding", refund=refund.refund_id, code=error.code().name
            )
            return None
        self._breaker.note(None)
        if transfer.state == transfers_pb2.Transfer.STATE_CONFIRMED:
            return RefundEvent.FUNDED
        if transfer.state == transfers_pb2.Transfer.STATE_CANCELLED:
            return RefundEvent.UNFUNDED
        return None


def _elsewhere(error: grpc.aio.AioRpcError) -> bool:
    return details_of(error).reason in {"NOT_HOME", "SLOT_MOVED", "NOT_OWNER"}
