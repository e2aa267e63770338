"""ChargesService: proto to model and back."""

from __future__ import annotations

from typing import Any

import grpc
from cellpay.charges.v1 import charges_pb2 as pb
from cellpay.charges.v1 import charges_pb2_grpc

from cells.answers import not_found
from cells.channels.choosing import Ask
from cells.channels.desk import Desk
from cells.channels.instruments import InstrumentFacts
from cells.channels.model import Operation
from cells.charges.model import Charge, ChargeRefund, ChargeState, IfOrderEnded, RefundState
from cells.charges.refunds import RefundCharge
from cells.charges.rules import CreateCharge
from cells.charges.tables import CHARGE_REFUNDS, CHARGES
from cells.ledger.model import Reason
from cells.orders.tables import ORDERS
from cells.reading import ReadEngine, fetch_row
from cells.requests import (
    Checker,
    idempotency_of,
    masked,
    money,
    timeout_of,
    timestamp,
)
from cells.resources import Resource, list_of_user
from cells.risk.asking import Asked, Whence, requested
from cells.risk.cases.model import Operation as RiskOperation
from cells.risk.screening import Screening
from router.errors import Refusal
from router.ids import Kind, slot_of_id
from router.minting import mint_now
from router.slots import slot_of_user

_STATES_OUT = {
    ChargeState.PROCESSING: pb.Charge.STATE_PROCESSING,
    ChargeState.REVERSING: pb.Charge.STATE_REVERSING,
    ChargeState.SUCCEEDED: pb.Charge.STATE_SUCCEEDED,
    ChargeState.FAILED: pb.Charge.STATE_FAILED,
}
_REFUND_STATES_OUT = {
    RefundState.HELD: pb.ChargeRefund.STATE_PENDING,
    RefundState.SENDING: pb.ChargeRefund.STATE_PENDING,
    RefundState.SUCCEEDED: pb.ChargeRefund.STATE_SUCCEEDED,
    RefundState.FAILED: pb.ChargeRefund.STATE_FAILED,
}
_IF_ORDER_ENDED = {
    pb.IF_ORDER_ENDED_UNSPECIFIED: IfOrderEnded.KEEP,
    pb.IF_ORDER_ENDED_KEEP: IfOrderEnded.KEEP,
    pb.IF_ORDER_ENDED_GIVE_BACK: IfOrderEnded.GIVE_BACK,
}

_CHARGE = Resource(CHARGES, Kind.CHARGE, Reason.CHARGE_NOT_FOUND, "charge")
_REFUND = Resource(CHARGE_REFUNDS, Kind.REFUND, Reason.REFUND_NOT_FOUND, "refund of a charge")


def charge_message(charge: Charge) -> pb.Charge:
    return pb.Charge(
        charge_id=charge.charge_id,
        user_id=charge.user_id,
        instrument_id=charge.instrument_id,
        amount=money(charge.currency, charge.amount),
        refunded=money(charge.currency, charge.refunded),
        state=_STATES_OUT[ChargeState(charge.state)],
        failure_reason=charge.reason if charge.state == ChargeState.FAILED else "",
        order_id=charge.order_id,
        payment_id=charge.payment_id,
        create_time=timestamp(charge.created_at),
    )


def refund_message(refund: ChargeRefund) -> pb.ChargeRefund:
    return pb.ChargeRefund(
        refund_id=refund.refund_id,
        charge_id=refund.charge_id,
        amount=money(refund.currency, refund.amount),
        state=_REFUND_STATES_OUT[RefundState(refund.state)],
        reason=refund.reason,
        failure_reason=refund.failure if refund.state == RefundState.FAILED else "",
        create_time=timestamp(refund.created_at),
    )


def with_card(whence: Whence, instrument_id: str, facts: InstrumentFacts) -> Whence:
    """The instrument is the one that money moves with, whatever else the caller said."""
    return whence._replace(card=instrument_id, card_scheme=facts.scheme, card_country=facts.country)


async def own_instrument(desk: Desk, instrument_id: str, user_id: str) -> InstrumentFacts:
    """Raises Refusal NOT_FOUND also for another user's: nobody learns that it exists."""
    facts = await desk.vault.facts(instrument_id)
    if facts.user_id != user_id:
        raise Refusal(
            grpc.StatusCode.NOT_FOUND, "INSTRUMENT_NOT_FOUND", "the user has no such instrument"
        )
    return facts


class ChargesService(charges_pb2_grpc.ChargesServiceServicer):
    def __init__(self, engine: ReadEngine, desk: Desk, screening: Screening) -> None:
        self._engine = engine
        self._desk = desk
        self._screening = screening

    async def CreateCharge(self, request: pb.CreateChargeRequest, context: Any) -> pb.Charge:
        check = Checker()
        user_id = check.name("user_id", request.user_id)
        slot = slot_of_user(user_id)
        instrument_id = check.identifier("instrument_id", request.instrument_id, Kind.INSTRUMENT)
        order_id = request.order_id
        if order_id:
            check.identifier("order_id", order_id, Kind.ORDER)
        amount = check.amount("amount", request.amount)
        if_order_ended = _IF_ORDER_ENDED.get(request.if_order_ended, IfOrderEnded.KEEP)
        if request.if_order_ended not in _IF_ORDER_ENDED:
            check.wrong("if_order_ended", "is no such choice")
        idempotency = idempotency_of(check, "CreateCharge", request)
        whence = requested(check, request)
        check.done()
        if order_id and slot_of_id(order_id) != slot:
            raise not_found(Reason.ORDER_NOT_FOUND, "order of this user")
        facts = await own_instrument(self._desk, instrument_id, user_id)
        order = await fetch_row(self._engine, ORDERS, slot, order_id) if order_id else None
        charge_id = mint_now(Kind.CHARGE, slot)
        ask = Ask(
            Operation.AUTHORISE, charge_id, user_id, facts, amount, request.amount.currency,
            order.merchant_id if order else "",
        )  # fmt: skip
        command = CreateCharge(
            slot, charge_id, user_id, order_id, instrument_id, amount, request.amount.currency,
            if_order_ended, await self._desk.charging.first(ask), idempotency,
        )  # fmt: skip
        asked = Asked(
            RiskOperation.CHARGE, slot, user_id, idempotency.key, user_id,
            order.merchant_id if order else "", amount, request.amount.currency, order_id,
            with_card(whence, instrument_id, facts), payee_is_merchant=order is not None,
        )  # fmt: skip
        lanes = self._screening.screened(asked, context)
        charge = await self._desk.charging.create(command, ask, timeout_of(context), lanes)
        return charge_message(charge)

    async def GetCharge(self, request: pb.GetChargeRequest, context: Any) -> pb.Charge:
        charge = await _CHARGE.get(self._engine, request.charge_id, context)
        return masked(charge_message(charge), request.read_mask)

    async def ListCharges(
        self, request: pb.ListChargesRequest, context: Any
    ) -> pb.ListChargesResponse:
        listed, following = await list_of_user(self._engine, CHARGES, "user_id", request, context)
        return pb.ListChargesResponse(
            charges=[charge_message(charge) for charge in listed], next_page_token=following
        )

    async def RefundCharge(self, request: pb.RefundChargeRequest, context: Any) -> pb.ChargeRefund:
        check = Checker()
        charge_id = check.identifier("charge_id", request.charge_id, Kind.CHARGE)
        partial = request.HasField("amount")
        amount = check.amount("amount", request.amount) if partial else None
        reason = check.text("reason", request.reason)
        idempotency = idempotency_of(check, "RefundCharge", request)
        check.done()
        slot = slot_of_id(charge_id)
        command = RefundCharge(
            slot, mint_now(Kind.REFUND, slot), charge_id, amount,
            request.amount.currency if partial else None, reason, idempotency,
        )  # fmt: skip
        return refund_message(await self._desk.refunding.create(command, timeout_of(context)))

    async def GetChargeRefund(
        self, request: pb.GetChargeRefundRequest, context: Any
    ) -> pb.ChargeRefund:
        refund = await _REFUND.get(self._engine, request.refund_id, context)
        return masked(refund_message(refund), request.read_mask)
