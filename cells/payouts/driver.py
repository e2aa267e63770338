"""Drives payouts to their end: asks banks, writes down what they say.

    held ──sent──▶ sending ──approved──▶ paid ──the bank sends it back──▶ returned
      ▲               │ failed cleanly
      └───────────────┘ (the next channel, by routing)      declined, or no channel ──▶ failed

A payout cannot be undone at a bank: an unknown one is asked about until it is known, and its hold
stays (docs/charges.md says what people do about an old one).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

import grpc
import structlog

from cells.channels.asking import Asking, alarm
from cells.channels.attempts import Attempt
from cells.channels.choosing import Ask, Chooser, following
from cells.channels.drives import Drives
from cells.channels.instruments import Vault
from cells.channels.model import Answer, AnswerReason, Operation
from cells.channels.rules import new_attempt
from cells.channels.writing import Submitting, tried_channels, written
from cells.ledger.model import Reason
from cells.ledger.worker import Lanes
from cells.payouts.model import Payout, PayoutState
from cells.payouts.rules import (
    AnswerPayout,
    CreatePayout,
    GiveUpPayout,
    KeepPayout,
    ReturnPayout,
    SendPayout,
)
from cells.payouts.tables import PAYOUTS
from cells.reading import ReadEngine, fetch_row
from cells.settings import BankingSettings
from router.errors import Refusal
from router.ids import Kind
from router.minting import mint_now

log = structlog.get_logger(__name__)

# The instrument was removed, for good.
_GONE = frozenset({grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION})


class Paying:
    def __init__(
        self,
        lanes: Lanes,
        engine: ReadEngine,
        asking: Asking,
        chooser: Chooser,
        vault: Vault,
        drives: Drives,
        settings: BankingSettings,
        deferred: Callable[[], bool],
    ) -> None:
        """`deferred`: whether payouts wait for better times; they stay held meanwhile."""
        self._lanes = lanes
        self._engine = engine
        self._asking = asking
        self._chooser = chooser
        self._vault = vault
        self._drives = drives
        self._settings = settings
        self._deferred = deferred

    async def create(
        self, command: CreatePayout, timeout_s: float | None, lanes: Submitting
    ) -> Payout:
        """`lanes`: the way into the ledger, past risk."""
        self._drives.check()
        payout: Payout = await written(lanes, command)
        if payout.payout_id != command.payout_id:
            # An earlier request made it, and drives it.
            return payout
        driving = self._drives.start(self.advance(payout, 0.0))
        return await self._drives.result(driving, timeout_s, payout)

    async def advance(self, payout: Payout, age_s: float) -> Payout:
        """Asks banks for a payout that is held, one after the other while they fail cleanly."""
        while payout.state == PayoutState.HELD and not self._deferred():
            try:
                facts = await self._vault.facts(payout.instrument_id)
            except Refusal as refusal:
                if refusal.code not in _GONE:
                    raise
                return await self._give_up(payout, AnswerReason.INSTRUMENT_INVALID)
            tried = await tried_channels(self._engine, payout.payout_id)
            ask = Ask(
                Operation.PAYOUT, payout.payout_id, payout.user_id, facts, payout.amount,
                payout.currency, tried=tuple(tried),
            )  # fmt: skip
            coming = await following(self._chooser, ask)
            if coming is None:
                return await self._without_channel(payout, age_s)
            written_at_s = time.monotonic()
            command = SendPayout(payout.slot, payout.payout_id, payout.currency, coming)
            payout = await written(self._lanes, command)
            if payout.attempt_id != coming.attempt_id:
                self._chooser.learn(ask, coming.channel, None, 0.0)
                return payout
            attempt = new_attempt(
                payout.slot, coming.attempt_id, payout.payout_id, coming.channel,
                Operation.PAYOUT, payout.amount, payout.currency, payout.created_at,
            )  # fmt: skip
            asked_at_s = time.monotonic()
            answer = await self._asking.send(
                attempt, payout.instrument_id, written_at_s, payout.description
            )
            self._chooser.learn(ask, coming.channel, answer, time.monotonic() - asked_at_s)
            payout = await self.answer(payout, attempt, answer)
        return payout

    async def _without_channel(self, payout: Payout, age_s: float) -> Payout:
        """All have failed, or none takes it: at once in the first case, patiently in the other."""
        if payout.attempts == 0 and age_s < self._settings.payout_patience_s:
            log.warning("no channel takes a payout", payout=payout.payout_id)
            kept: Payout = await written(self._lanes, KeepPayout(payout.slot, payout.payout_id))
            return kept
        return await self._give_up(payout, payout.reason if payout.attempts else Reason.NO_CHANNEL)

    async def _give_up(self, payout: Payout, reason: str) -> Payout:
        given_up: Payout = await written(
            self._lanes,
            GiveUpPayout(
                payout.slot, payout.payout_id, payout.user_id, payout.currency,
                mint_now(Kind.EVENT, payout.slot), reason,
            ),
        )  # fmt: skip
        return given_up

    async def answer(self, payout: Payout, attempt: Attempt, answer: Answer) -> Payout:
        answered: Payout = await written(
            self._lanes,
            AnswerPayout(
                payout.slot, payout.payout_id, attempt.attempt_id, payout.user_id,
                attempt.channel, payout.currency, mint_now(Kind.EVENT, payout.slot), answer,
                retry=payout.attempts < self._settings.attempts_max,
            ),
        )  # fmt: skip
        return answered

    async def returned(self, payout: Payout, attempt: Attempt, reason: str) -> Payout:
        """The bank has sent the money back. Raises Refusal when it was not paid by this attempt."""
        back: Payout = await written(
            self._lanes,
            ReturnPayout(
                payout.slot, payout.payout_id, attempt.attempt_id, payout.user_id,
                attempt.channel, payout.currency, mint_now(Kind.EVENT, payout.slot), reason,
            ),
        )  # fmt: skip
        return back

    async def resolve(self, attempt: Attempt, now: datetime) -> None:
        """Recovery: how did it end?"""
        payout = await fetch_row(self._engine, PAYOUTS, attempt.slot, attempt.owner_id)
        if payout is None:
            return
        answer = await self._asking.query(attempt, mint_now(Kind.ATTEMPT, attempt.slot))
        payout = await self.answer(payout, attempt, answer)
        age_s = (now - attempt.created_at).total_seconds()
        if payout.state == PayoutState.HELD:
            await self.advance(payout, age_s)
        elif payout.state == PayoutState.SENDING and age_s >= self._settings.alarm_after_s:
            alarm(attempt, age_s)
