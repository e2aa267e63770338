"""PayoutsService: proto to model and back."""

from __future__ import annotations

from typing import Any

from cellpay.payouts.v1 import payouts_pb2 as pb
from cellpay.payouts.v1 import payouts_pb2_grpc

from cells.channels.desk import Desk
from cells.charges.service import own_instrument, with_card
from cells.ledger.model import Reason
from cells.payouts.model import Payout, PayoutState
from cells.payouts.rules import CreatePayout
from cells.payouts.tables import PAYOUTS
from cells.reading import ReadEngine
from cells.requests import (
    Checker,
    idempotency_of,
    masked,
    money,
    timeout_of,
    timestamp,
)
from cells.resources import Resource, list_of_user
from cells.risk.asking import Asked, requested
from cells.risk.cases.model import Operation
from cells.risk.screening import Screening
from router.ids import Kind
from router.minting import mint_now
from router.slots import slot_of_user

_STATES_OUT = {
    PayoutState.HELD: pb.Payout.STATE_PENDING,
    PayoutState.SENDING: pb.Payout.STATE_PENDING,
    PayoutState.PAID: pb.Payout.STATE_PAID,
    PayoutState.FAILED: pb.Payout.STATE_FAILED,
    PayoutState.RETURNED: pb.Payout.STATE_RETURNED,
}
_WITH_REASON = (PayoutState.FAILED, PayoutState.RETURNED)

_PAYOUT = Resource(PAYOUTS, Kind.PAYOUT, Reason.PAYOUT_NOT_FOUND, "payout")


def payout_message(payout: Payout) -> pb.Payout:
    return pb.Payout(
        payout_id=payout.payout_id,
        user_id=payout.user_id,
        instrument_id=payout.instrument_id,
        amount=money(payout.currency, payout.amount),
        state=_STATES_OUT[PayoutState(payout.state)],
        failure_reason=payout.reason if payout.state in _WITH_REASON else "",
        description=payout.description,
        create_time=timestamp(payout.created_at),
    )


class PayoutsService(payouts_pb2_grpc.PayoutsServiceServicer):
    def __init__(self, engine: ReadEngine, desk: Desk, screening: Screening) -> None:
        self._engine = engine
        self._desk = desk
        self._screening = screening

    async def CreatePayout(self, request: pb.CreatePayoutRequest, context: Any) -> pb.Payout:
        check = Checker()
        user_id = check.name("user_id", request.user_id)
        instrument_id = check.identifier("instrument_id", request.instrument_id, Kind.INSTRUMENT)
        amount = check.amount("amount", request.amount)
        description = check.text("description", request.description)
        idempotency = idempotency_of(check, "CreatePayout", request)
        whence = requested(check, request)
        check.done()
        facts = await own_instrument(self._desk, instrument_id, user_id)
        slot = slot_of_user(user_id)
        command = CreatePayout(
            slot, mint_now(Kind.PAYOUT, slot), user_id, instrument_id, amount,
            request.amount.currency, description, idempotency,
        )  # fmt: skip
        asked = Asked(
            Operation.PAYOUT, slot, user_id, idempotency.key, user_id, "", amount,
            request.amount.currency, "", with_card(whence, instrument_id, facts),
        )  # fmt: skip
        lanes = self._screening.screened(asked, context)
        return payout_message(await self._desk.paying.create(command, timeout_of(context), lanes))

    async def GetPayout(self, request: pb.GetPayoutRequest, context: Any) -> pb.Payout:
        payout = await _PAYOUT.get(self._engine, request.payout_id, context)
        return masked(payout_message(payout), request.read_mask)

    async def ListPayouts(
        self, request: pb.ListPayoutsRequest, context: Any
    ) -> pb.ListPayoutsResponse:
        listed, following = await list_of_user(self._engine, PAYOUTS, "user_id", request, context)
        return pb.ListPayoutsResponse(
            payouts=[payout_message(payout) for payout in listed], next_page_token=following
        )
