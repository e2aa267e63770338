"""PaymentsService: step 3 of a payment's walk, proto to model and back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from cellpay.payments.v1 import payments_pb2 as pb
from cellpay.payments.v1 import payments_pb2_grpc
from sqlalchemy import select

from cells.answers import resource_of
from cells.bulk import Bulk, status_bytes
from cells.ledger.model import Outcome, Reason
from cells.ledger.worker import Lanes
from cells.orders.tables import orders
from cells.payments.model import Payment, Refund, RefundState
from cells.payments.outcomes import PaymentOutcomes
from cells.payments.refunding import Refunding
from cells.payments.rules import Pay, RefundPayment
from cells.payments.tables import PAYMENTS, REFUNDS, payments
from cells.reading import ReadEngine, fetch
from cells.replica import staleness_of
from cells.requests import (
    Checker,
    idempotency_of,
    masked,
    money,
    page_start,
    page_token,
    timeout_of,
    timestamp,
)
from cells.resources import Resource
from cells.risk.asking import Asked, requested
from cells.risk.cases.model import Operation
from cells.risk.screening import Screening
from router.errors import Refusal
from router.guard import require_wellformed
from router.ids import Kind, slot_of_id
from router.minting import mint_now
from router.slots import slot_of_user

# Messages of one stream that are under way at once.
_STREAM_WINDOW = 8
_REFUND_STATES_OUT = {
    RefundState.PENDING: pb.Refund.STATE_PENDING,
    RefundState.SUCCEEDED: pb.Refund.STATE_SUCCEEDED,
    RefundState.FAILED: pb.Refund.STATE_FAILED,
}

_PAYMENT = Resource(PAYMENTS, Kind.PAYMENT, Reason.PAYMENT_NOT_FOUND, "payment")
_REFUND = Resource(REFUNDS, Kind.REFUND, Reason.REFUND_NOT_FOUND, "refund")


def _state(payment: Payment) -> pb.Payment.State.ValueType:
    if payment.refunded == 0:
        return pb.Payment.STATE_SUCCEEDED
    if payment.refunded < payment.amount:
        return pb.Payment.STATE_PARTIALLY_REFUNDED
    return pb.Payment.STATE_REFUNDED


def payment_message(payment: Payment) -> pb.Payment:
    return pb.Payment(
        payment_id=payment.payment_id,
        order_id=payment.order_id,
        payer_id=payment.payer_id,
        merchant_id=payment.merchant_id,
        amount=money(payment.currency, payment.amount),
        refunded=money(payment.currency, payment.refunded),
        state=_state(payment),
        create_time=timestamp(payment.created_at),
    )


def refund_message(refund: Refund) -> pb.Refund:
    return pb.Refund(
        refund_id=refund.refund_id,
        payment_id=refund.payment_id,
        amount=money(refund.currency, refund.amount),
        state=_REFUND_STATES_OUT[RefundState(refund.state)],
        reason=refund.reason,
        create_time=timestamp(refund.created_at),
    )


def pay_command(request: pb.PayRequest) -> tuple[Pay, Asked]:
    """The command, and what risk is asked of it."""
    check = Checker()
    order_id = check.identifier("order_id", request.order_id, Kind.ORDER)
    idempotency = idempotency_of(check, "Pay", request)
    whence = requested(check, request)
    check.done()
    slot = slot_of_id(order_id)
    pay = Pay(
        slot, mint_now(Kind.PAYMENT, slot), mint_now(Kind.EVENT, slot), order_id,
        idempotency.key, idempotency.request_hash.hex(),
    )  # fmt: skip
    asked = Asked(Operation.PAY, slot, order_id, idempotency.key, "", "", 0, "", order_id, whence)
    return pay, asked


class PaymentsService(payments_pb2_grpc.PaymentsServiceServicer):
    def __init__(
        self,
        lanes: Lanes,
        engine: ReadEngine,
        refunding: Refunding,
        bulk: Bulk,
        screening: Screening,
        ended: PaymentOutcomes,
    ) -> None:
        """`ended`: where each payment is counted."""
        self._ended = ended
        self._lanes = lanes
        self._engine = engine
        self._refunding = refunding
        self._bulk = bulk
        self._screening = screening

    async def Pay(self, request: pb.PayRequest, context: Any) -> pb.Payment:
        command, asked = pay_command(request)
        try:
            outcome = await self._screening.submit(command, asked, context)
        except Refusal as refusal:
            self._ended.note(refusal)
            raise
        self._ended.note(outcome)
        return payment_message(resource_of(outcome))

    async def BatchPay(self, request: pb.BatchPayRequest, context: Any) -> pb.BatchPayResponse:
        results = await self._pay_many(request.payments, timeout_of(context), context)
        return pb.BatchPayResponse(results=results)

    # grpc.aio's style of reading and writing; the stubs only know that of generators.
    async def PayStream(self, requests: Any, context: Any) -> None:  # type: ignore[override]
        """Reads on while fewer than `_STREAM_WINDOW` messages are under way: the rest waits in
        HTTP/2's windows, at the caller."""
        window = asyncio.Semaphore(_STREAM_WINDOW)
        # One message may be written at a time.
        writing = asyncio.Lock()
        timeout_s = timeout_of(context)

        async def answer(first: int, request: pb.PayStreamRequest) -> None:
            try:
                results = await self._pay_many(request.payments, timeout_s, context)
                response = pb.PayStreamResponse(first=first, results=results)
                async with writing:
                    await context.write(response)
            finally:
                window.release()

        seen = 0
        try:
            async with asyncio.TaskGroup() as group:
                async for request in requests:
                    require_wellformed(request)
                    await window.acquire()
                    group.create_task(answer(seen, request))
                    seen += len(request.payments)
        except ExceptionGroup as errors:
            for error in errors.exceptions:
                if isinstance(error, Refusal):
                    raise error from None
            raise

    async def _pay_many(
        self, requests: Sequence[pb.PayRequest], timeout_s: float | None, context: Any
    ) -> list[pb.PayResult]:
        asked: dict[str, Asked] = {}

        def command_of(request: pb.PayRequest) -> Pay:
            command, item = pay_command(request)
            asked[command.payment_id] = item
            return command

        async def submit(
            commands: Sequence[Pay], timeout_s: float | None
        ) -> Sequence[Outcome | Refusal]:
            wanted = [asked[command.payment_id] for command in commands]
            return await self._screening.submit_many(commands, wanted, context, timeout_s)

        outcomes = await self._bulk.run(
            "payments", requests, command_of, timeout_s, submit, ended=self._ended.note
        )
        return [
            pb.PayResult(error_status=status_bytes(outcome))
            if isinstance(outcome, Refusal)
            else pb.PayResult(payment=payment_message(outcome))
            for outcome in outcomes
        ]

    async def GetPayment(self, request: pb.GetPaymentRequest, context: Any) -> pb.Payment:
        payment = await _PAYMENT.get(self._engine, request.payment_id, context)
        return masked(payment_message(payment), request.read_mask)

    async def RefundPayment(self, request: pb.RefundPaymentRequest, context: Any) -> pb.Refund:
        check = Checker()
        payment_id = check.identifier("payment_id", request.payment_id, Kind.PAYMENT)
        partial = request.HasField("amount")
        amount = check.amount("amount", request.amount) if partial else None
        reason = check.text("reason", request.reason)
        idempotency = idempotency_of(check, "RefundPayment", request)
        check.done()
        slot = slot_of_id(payment_id)
        command = RefundPayment(
            slot, mint_now(Kind.REFUND, slot), mint_now(Kind.EVENT, slot), payment_id, amount,
            request.amount.currency if partial else None, reason, idempotency,
        )  # fmt: skip
        refund: Refund = resource_of(await self._lanes.submit(command, timeout_of(context)))
        return refund_message(await self._refunding.advance(refund))

    async def GetRefund(self, request: pb.GetRefundRequest, context: Any) -> pb.Refund:
        refund = await _REFUND.get(self._engine, request.refund_id, context)
        return masked(refund_message(refund), request.read_mask)

    async def ListPayments(
        self, request: pb.ListPaymentsRequest, context: Any
    ) -> pb.ListPaymentsResponse:
        check = Checker()
        payer_id = check.name("payer_id", request.payer_id)
        size = check.page_size(request.page_size)
        start = page_start(check, request.page_token, 1)
        check.done()
        statement = (
            select(*(payments.c[name] for name in PAYMENTS.fields))
            .join(
                orders,
                (orders.c.slot == payments.c.slot) & (orders.c.payment_id == payments.c.payment_id),
            )
            .where(
                orders.c.slot == slot_of_user(payer_id),
                orders.c.payer_id == payer_id,
                orders.c.payment_id != "",
            )
            .order_by(orders.c.order_id.desc())
            .limit(size + 1)
        )
        if start:
            statement = statement.where(orders.c.order_id < start[0])
        rows = [
            Payment(*row) for row in await fetch(self._engine, statement, staleness_of(context))
        ]
        listed = rows[:size]
        return pb.ListPaymentsResponse(
            payments=[payment_message(payment) for payment in listed],
            next_page_token=page_token([listed[-1].order_id]) if len(rows) > size else "",
        )
