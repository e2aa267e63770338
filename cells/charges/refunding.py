"""Drives refunds of charges: the hold first, then the bank that took the money.

A refund is never voided and never goes elsewhere: it is asked about until it is known. Where the
bank failed cleanly it is held again and tried later, a few times.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

import structlog

from cells.channels.asking import Asking, alarm
from cells.channels.attempts import ATTEMPTS, Attempt
from cells.channels.drives import Drives
from cells.channels.model import Answer, Operation
from cells.channels.rules import new_attempt
from cells.channels.writing import written
from cells.charges.model import ChargeRefund, RefundState
from cells.charges.refunds import AnswerRefund, RefundCharge, SendRefund
from cells.charges.tables import CHARGE_REFUNDS
from cells.ledger.worker import Lanes
from cells.reading import ReadEngine, fetch_row
from cells.settings import BankingSettings
from router.ids import Kind
from router.minting import mint_now

log = structlog.get_logger(__name__)


class ChargeRefunding:
    def __init__(
        self,
        lanes: Lanes,
        engine: ReadEngine,
        asking: Asking,
        drives: Drives,
        settings: BankingSettings,
        deferred: Callable[[], bool],
    ) -> None:
        """`deferred`: whether refunds wait for better times; they stay held meanwhile."""
        self._lanes = lanes
        self._engine = engine
        self._asking = asking
        self._drives = drives
        self._settings = settings
        self._deferred = deferred

    async def create(self, command: RefundCharge, timeout_s: float | None) -> ChargeRefund:
        self._drives.check()
        refund: ChargeRefund = await written(self._lanes, command)
        if refund.refund_id != command.refund_id:
            # An earlier request made it, and drives it.
            return refund
        driving = self._drives.start(self.advance(refund))
        return await self._drives.result(driving, timeout_s, refund)

    async def advance(self, refund: ChargeRefund) -> ChargeRefund:
        """Asks the bank for a refund that is held, unless refunds are deferred."""
        if refund.state != RefundState.HELD or self._deferred():
            return refund
        original = await fetch_row(self._engine, ATTEMPTS, refund.slot, refund.original_id)
        assert original is not None
        attempt_id = mint_now(Kind.ATTEMPT, refund.slot)
        written_at_s = time.monotonic()
        sending: ChargeRefund = await written(
            self._lanes,
            SendRefund(refund.slot, refund.refund_id, attempt_id, refund.channel, refund.currency),
        )
        if sending.attempt_id != attempt_id:
            return sending
        attempt = new_attempt(
            refund.slot, attempt_id, refund.refund_id, refund.channel, Operation.REFUND,
            refund.amount, refund.currency, refund.created_at, refund.original_id,
        )  # fmt: skip
        answer = await self._asking.refund(attempt, original, written_at_s)
        return await self.answer(sending, attempt, answer)

    async def answer(self, refund: ChargeRefund, attempt: Attempt, answer: Answer) -> ChargeRefund:
        answered: ChargeRefund = await written(
            self._lanes,
            AnswerRefund(
                refund.slot, refund.refund_id, refund.charge_id, attempt.attempt_id,
                refund.user_id, refund.channel, refund.currency,
                mint_now(Kind.EVENT, refund.slot), answer,
                retry=refund.attempts < self._settings.attempts_max,
            ),
        )  # fmt: skip
        return answered

    async def resolve(self, attempt: Attempt, now: datetime) -> None:
        """Recovery: how did it end?"""
        refund = await fetch_row(self._engine, CHARGE_REFUNDS, attempt.slot, attempt.owner_id)
        if refund is None:
            return
        answer = await self._asking.query(attempt, mint_now(Kind.ATTEMPT, attempt.slot))
        refund = await self.answer(refund, attempt, answer)
        age_s = (now - attempt.created_at).total_seconds()
        if refund.state == RefundState.SENDING and age_s >= self._settings.alarm_after_s:
            alarm(attempt, age_s)
