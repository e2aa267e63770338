"""AdjustmentsService: proto to model and back."""

from __future__ import annotations

from typing import Any

from cellpay.channels.v1 import channels_pb2 as pb
from cellpay.channels.v1 import channels_pb2_grpc

from cells.adjustments.model import Adjustment, Side
from cells.adjustments.rules import Adjust
from cells.answers import resource_of
from cells.ledger.worker import Lanes
from cells.requests import Checker, money, timeout_of, timestamp
from router.ids import slot_of_id
from router.slots import slot_of_user

_SIDES = {
    pb.SIDE_CHANNEL: Side.CHANNEL,
    pb.SIDE_FEES: Side.FEES,
    pb.SIDE_SUSPENSE: Side.SUSPENSE,
    pb.SIDE_USER: Side.USER,
}
_SIDES_OUT = {side: value for value, side in _SIDES.items()}


def adjustment_message(adjustment: Adjustment) -> pb.Adjustment:
    return pb.Adjustment(
        adjustment_id=adjustment.adjustment_id,
        break_id=adjustment.break_id,
        channel=adjustment.channel,
        source=_SIDES_OUT[Side(adjustment.source)],
        target=_SIDES_OUT[Side(adjustment.target)],
        amount=money(adjustment.currency, adjustment.amount),
        user_id=adjustment.user_id,
        subject_id=adjustment.subject_id,
        reason=adjustment.reason,
        approved_by=adjustment.approved_by,
        create_time=timestamp(adjustment.created_at),
    )


class AdjustmentsService(channels_pb2_grpc.AdjustmentsServiceServicer):
    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes

    async def Adjust(self, request: pb.AdjustRequest, context: Any) -> pb.Adjustment:
        check = Checker()
        slot = slot_of_id(request.subject_id)
        break_id = check.name("break_id", request.break_id)
        channel = check.name("channel", request.channel)
        sides = []
        for field in ("source", "target"):
            side = _SIDES.get(getattr(request, field))
            if side is None:
                check.wrong(field, "must be given")
            sides.append(side or Side.SUSPENSE)
        amount = check.amount("amount", request.amount)
        user_id = request.user_id
        if Side.USER in sides:
            check.name("user_id", user_id)
            if user_id and slot_of_user(user_id) != slot:
                check.wrong("user_id", "is not at home in the subject's slot")
        elif user_id:
            check.wrong("user_id", "belongs to an adjustment with a user's side only")
        reason = check.text("reason", request.reason)
        approved_by = check.name("approved_by", request.approved_by)
        check.done()
        command = Adjust(
            slot, break_id, channel, sides[0], sides[1], user_id, amount,
            request.amount.currency, request.subject_id, reason, approved_by,
        )  # fmt: skip
        outcome = await self._lanes.submit(command, timeout_of(context))
        return adjustment_message(resource_of(outcome))
