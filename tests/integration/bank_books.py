"""Dealings with banks for the books of `books.py`: a story for each state. All in euros."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cells.adjustments.model import Side
from cells.adjustments.rules import Adjust
from cells.channels.choosing import Following
from cells.channels.model import Answer, AnswerReason, Verdict
from cells.charges.model import IfOrderEnded
from cells.charges.refunds import AnswerRefund, RefundCharge, SendRefund
from cells.charges.rules import AnswerCharge, CreateCharge, ReverseCharge
from cells.payouts.rules import AnswerPayout, CreatePayout, GiveUpPayout, ReturnPayout, SendPayout
from router.ids import Kind, channel_account_id
from router.slots import slot_of_user

if TYPE_CHECKING:
    from tests.integration.books import Town

BANK = "north"
_SAID = {
    "approved": Answer(Verdict.APPROVED, AnswerReason.NONE, "00"),
    "declined": Answer(Verdict.DECLINED, AnswerReason.DO_NOT_HONOUR, "05"),
    "unknown": Answer(Verdict.UNKNOWN, AnswerReason.TIMED_OUT),
}


class Counter:
    """What a user of cell a does with a bank."""

    def __init__(self, town: Town, user: str) -> None:
        self.town = town
        self.user = user
        self.slot = slot_of_user(user)

    def new(self, kind: Kind) -> str:
        return self.town.new(kind, self.slot)

    async def do(self, command: Any) -> Any:
        (resource,) = await self.town.run("a", command)
        return resource

    async def charge(self, amount: int, *steps: str) -> Any:
        charge = await self.do(
            CreateCharge(
                self.slot, self.new(Kind.CHARGE), self.user, "", "ins", amount, "EUR",
                IfOrderEnded.KEEP, Following(self.new(Kind.ATTEMPT), BANK, "{}"),
                self.town.key(self.user, "CreateCharge"),
            )
        )  # fmt: skip
        for step in steps:
            if step == "overdue":
                charge = await self.do(
                    ReverseCharge(self.slot, charge.charge_id, self.new(Kind.ATTEMPT))
                )
                continue
            what, _, said = step.rpartition(" ")
            attempt = charge.void_id if what == "void" else charge.attempt_id
            charge = await self.do(
                AnswerCharge(
                    self.slot, charge.charge_id, attempt, BANK, "EUR", "", self.new(Kind.EVENT),
                    self.new(Kind.PAYMENT), self.new(Kind.EVENT), self.new(Kind.REFUND),
                    _SAID[said],
                )
            )  # fmt: skip
        return charge

    async def refund(self, charge_id: str, amount: int, said: str) -> Any:
        refund = await self.do(
            RefundCharge(
                self.slot, self.new(Kind.REFUND), charge_id, amount, "EUR", "",
                self.town.key(charge_id, "RefundCharge"),
            )
        )  # fmt: skip
        sent = await self.do(
            SendRefund(self.slot, refund.refund_id, self.new(Kind.ATTEMPT), BANK, "EUR")
        )
        return await self.do(
            AnswerRefund(
                self.slot, refund.refund_id, charge_id, sent.attempt_id, self.user, BANK, "EUR",
                self.new(Kind.EVENT), _SAID[said], retry=False,
            )
        )  # fmt: skip

    async def payout(self, amount: int, *steps: str) -> Any:
        payout = await self.do(
            CreatePayout(
                self.slot, self.new(Kind.PAYOUT), self.user, "ins", amount, "EUR", "",
                self.town.key(self.user, "CreatePayout"),
            )
        )  # fmt: skip
        for step in steps:
            event, party = self.new(Kind.EVENT), (self.user, BANK, "EUR")
            match step:
                case "sent":
                    following = Following(self.new(Kind.ATTEMPT), BANK, "{}")
                    command: Any = SendPayout(self.slot, payout.payout_id, "EUR", following)
                case "given up":
                    command = GiveUpPayout(
                        self.slot, payout.payout_id, self.user, "EUR", event, "NO_CHANNEL"
                    )
                case "returned":
                    command = ReturnPayout(
                        self.slot, payout.payout_id, payout.attempt_id, *party, event, "NONE"
                    )
                case _:
                    command = AnswerPayout(
                        self.slot, payout.payout_id, payout.attempt_id, *party, event,
                        _SAID[step], retry=False,
                    )  # fmt: skip
            payout = await self.do(command)
        return payout

    async def adjust(self, break_id: str, source: Side, target: Side, amount: int) -> Any:
        user = self.user if Side.USER in (source, target) else ""
        return await self.do(
            Adjust(
                self.slot, break_id, BANK, source, target, user, amount, "EUR",
                self.new(Kind.ATTEMPT), "", "checker",
            )
        )  # fmt: skip


async def fill_banks(town: Town, user: str) -> None:
    ids, counter = town.ids, Counter(town, user)
    charge = await counter.charge(300, "approved", "declined")
    ids["charge"], ids["charge_attempt"] = charge.charge_id, charge.attempt_id
    failed = await counter.charge(40, "declined")
    ids["charge_failed"], ids["failed_attempt"] = failed.charge_id, failed.attempt_id
    await counter.charge(41, "unknown", "overdue", "void approved")
    ids["charge_open"] = (await counter.charge(42, "unknown")).charge_id
    reversing = await counter.charge(43, "unknown", "overdue", "approved", "void unknown")
    ids["charge_reversing"] = reversing.charge_id
    refunds = {"approved": 50, "declined": 60, "unknown": 70}
    for said, amount in refunds.items():
        refund = await counter.refund(charge.charge_id, amount, said)
        ids[f"charge_refund_{said}"] = refund.refund_id
    stories: dict[str, tuple[int, list[str]]] = {
        "held": (11, []),
        "sending": (12, ["sent", "unknown"]),
        "paid": (13, ["sent", "approved"]),
        "failed": (14, ["sent", "declined"]),
        "given_up": (15, ["given up"]),
        "returned": (16, ["sent", "approved", "returned"]),
    }
    for story, (amount, steps) in stories.items():
        payout = await counter.payout(amount, *steps)
        ids[f"payout_{story}"] = payout.payout_id
        ids[f"payout_{story}_attempt"] = payout.attempt_id
    sides = [
        (Side.CHANNEL, Side.FEES, 3),
        (Side.SUSPENSE, Side.CHANNEL, 8),
        (Side.CHANNEL, Side.USER, 5),
    ]
    for number, (source, target, amount) in enumerate(sides):
        adjustment = await counter.adjust(f"break-{number}", source, target, amount)
        ids[f"adjustment_{number}"] = adjustment.adjustment_id
    ids["channel"] = channel_account_id(counter.slot, BANK, "EUR")
