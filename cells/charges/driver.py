"""Drives charges to their end: asks banks, writes down what they say, goes on from there.

    authorise ──approved──▶ credited            declined ──▶ failed
        │ failed cleanly ──▶ the next channel, by routing
        └ unknown ──query, with back-off──▶ … ──too long──▶ VOID, repeated until the bank answers

Every step is idempotent under the charge's row lock, so the request, a bank's callback and the
recovery of whoever owns the slot next may drive the same charge at once.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import NamedTuple

import structlog

from cells.channels.asking import Asking, alarm
from cells.channels.attempts import ATTEMPTS, Attempt, AttemptState
from cells.channels.choosing import Ask, Chooser, Following, following
from cells.channels.drives import Drives
from cells.channels.instruments import InstrumentFacts, Vault
from cells.channels.model import Answer, AnswerReason, Operation, Verdict
from cells.channels.rules import as_repeatable, is_open, new_attempt
from cells.channels.writing import Submitting, tried_channels, written
from cells.charges.model import OPEN_CHARGES, Charge, ChargeState
from cells.charges.rules import AnswerCharge, CreateCharge, ReverseCharge
from cells.charges.tables import CHARGES
from cells.ledger.worker import Lanes
from cells.reading import ReadEngine, fetch_row
from cells.settings import BankingSettings
from router.errors import Refusal
from router.ids import Kind
from router.minting import mint_now

log = structlog.get_logger(__name__)


class Step(NamedTuple):
    """A charge, and the attempt of it that is ours to send; None: nothing is."""

    charge: Charge
    following: Following | None
    # Monotonic, before the attempt was written down.
    written_at_s: float


class Charging:
    def __init__(
        self,
        lanes: Lanes,
        engine: ReadEngine,
        asking: Asking,
        chooser: Chooser,
        vault: Vault,
        drives: Drives,
        settings: BankingSettings,
    ) -> None:
        self._lanes = lanes
        self._engine = engine
        self._asking = asking
        self._chooser = chooser
        self._vault = vault
        self._drives = drives
        self._settings = settings

    async def first(self, ask: Ask) -> Following | None:
        """Where a new charge goes; to be given to `create` in its command."""
        self._drives.check()
        return await following(self._chooser, ask)

    async def create(
        self, command: CreateCharge, ask: Ask, timeout_s: float | None, lanes: Submitting
    ) -> Charge:
        """The charge, ended or as far as it came while the caller waits. `lanes`: the way into the
        ledger, past risk."""
        written_at_s = time.monotonic()
        mine, sending = command.following, False
        try:
            charge: Charge = await written(lanes, command)
            sending = mine is not None and charge.attempt_id == mine.attempt_id
        finally:
            if mine is not None and not sending:
                self._chooser.learn(ask, mine.channel, None, 0.0)
        if not sending:
            # An earlier request made it, and drives it.
            return charge
        driving = self._drives.start(self._drive(Step(charge, mine, written_at_s)))
        return await self._drives.result(driving, timeout_s, charge)

    async def answer(self, charge: Charge, attempt: Attempt, answer: Answer, age_s: float) -> Step:
        """Writes an answer down. Where the channel failed cleanly, with what comes next."""
        coming = None
        if (
            answer.verdict == Verdict.FAILED
            and charge.state == ChargeState.PROCESSING
            and charge.attempt_id == attempt.attempt_id
            and age_s <= self._settings.route_within_s
            and charge.attempts < self._settings.attempts_max
        ):
            coming = await self._next(charge)
        slot = charge.slot
        written_at_s = time.monotonic()
        answered: Charge = await written(
            self._lanes,
            AnswerCharge(
                slot, charge.charge_id, attempt.attempt_id, attempt.channel, charge.currency,
                charge.order_id, mint_now(Kind.EVENT, slot), mint_now(Kind.PAYMENT, slot),
                mint_now(Kind.EVENT, slot), mint_now(Kind.REFUND, slot),
                as_repeatable(attempt.operation, answer), coming,
            ),
        )  # fmt: skip
        if coming is not None and answered.attempt_id != coming.attempt_id:
            facts = await self._facts(charge)
            if facts is not None:
                self._chooser.learn(_ask(charge, facts, ()), coming.channel, None, 0.0)
            coming = None
        return Step(answered, coming, written_at_s)

    def go_on(self, step: Step) -> None:
        """Sends what is to be sent, in the background."""
        if step.following is not None:
            self._drives.start(self._drive(step))

    async def resolve(self, attempt: Attempt, now: datetime) -> None:
        """Recovery: an attempt whose end is not known is asked about, or undone."""
        charge = await fetch_row(self._engine, CHARGES, attempt.slot, attempt.owner_id)
        if charge is None or charge.state not in OPEN_CHARGES:
            return
        age_s = (now - attempt.created_at).total_seconds()
        if attempt.operation == Operation.VOID:
            await self._void(charge, attempt, age_s)
            return
        if charge.void_id:
            void = await fetch_row(self._engine, ATTEMPTS, charge.slot, charge.void_id)
            if void is not None and is_open(void):
                # Its turn comes by itself.
                return
        answer = await self._asking.query(attempt, mint_now(Kind.ATTEMPT, attempt.slot))
        step = await self.answer(charge, attempt, answer, age_s)
        self.go_on(step)
        if step.charge.state in OPEN_CHARGES and not answer.verdict.is_final:
            await self._overdue(step.charge, attempt, answer, age_s)

    async def _overdue(
        self, charge: Charge, attempt: Attempt, answer: Answer, age_s: float
    ) -> None:
        """Not known, asked again just now: is it time to have it undone?"""
        pending = answer.verdict == Verdict.PENDING or attempt.state == AttemptState.PENDING
        limit_s = self._settings.pending_max_s if pending else self._settings.reverse_after_s
        if age_s >= limit_s and self._asking.can(attempt.channel, Operation.VOID):
            void_id = mint_now(Kind.ATTEMPT, charge.slot)
            command = ReverseCharge(charge.slot, charge.charge_id, void_id)
            reversing: Charge = await written(self._lanes, command)
            if reversing.void_id == void_id:
                void = new_attempt(
                    charge.slot, void_id, charge.charge_id, attempt.channel, Operation.VOID,
                    attempt.amount, attempt.currency, attempt.created_at, attempt.attempt_id,
                )  # fmt: skip
                await self._void(reversing, void, 0.0)
        elif age_s >= self._settings.alarm_after_s:
            alarm(attempt, age_s)

    async def _void(self, charge: Charge, void: Attempt, age_s: float) -> None:
        """Sends a VOID, for the first time or again."""
        original = await fetch_row(self._engine, ATTEMPTS, void.slot, void.original_id)
        assert original is not None
        answer = await self._asking.void(void, original)
        step = await self.answer(charge, void, answer, age_s)
        if answer.reason == AnswerReason.NOT_FOUND and step.charge.state in OPEN_CHARGES:
            # It may be on its way there yet: a query's "not found" is a promise, a VOID's is not.
            if self._asking.can(original.channel, Operation.QUERY):
                answer = await self._asking.query(original, mint_now(Kind.ATTEMPT, void.slot))
            step = await self.answer(step.charge, original, answer, age_s)
        if step.charge.state in OPEN_CHARGES and age_s >= self._settings.alarm_after_s:
            alarm(void, age_s)

    async def _drive(self, step: Step) -> Charge:
        """Sends an attempt that was just written down; while channels fail cleanly, the next."""
        began_s = time.monotonic()
        facts = await self._facts(step.charge)
        while step.following is not None:
            charge, sending = step.charge, step.following
            attempt = new_attempt(
                charge.slot, sending.attempt_id, charge.charge_id, sending.channel,
                Operation.AUTHORISE, charge.amount, charge.currency, charge.created_at,
            )  # fmt: skip
            asked_at_s = time.monotonic()
            answer = await self._asking.send(
                attempt, charge.instrument_id, step.written_at_s, charge.merchant_id
            )
            if facts is not None:
                ask = _ask(charge, facts, ())
                took_s = time.monotonic() - asked_at_s
                self._chooser.learn(ask, attempt.channel, answer, took_s)
            step = await self.answer(charge, attempt, answer, time.monotonic() - began_s)
        return step.charge

    async def _next(self, charge: Charge) -> Following | None:
        """The next channel by routing, if there is one."""
        facts = await self._facts(charge)
        if facts is None:
            return None
        tried = await tried_channels(self._engine, charge.charge_id)
        return await following(self._chooser, _ask(charge, facts, tuple(tried)))

    async def _facts(self, charge: Charge) -> InstrumentFacts | None:
        try:
            return await self._vault.facts(charge.instrument_id)
        except Refusal as refusal:
            log.warning("an instrument is not known", reason=refusal.reason)
            return None


def _ask(charge: Charge, facts: InstrumentFacts, tried: tuple[str, ...]) -> Ask:
    return Ask(
        Operation.AUTHORISE, charge.charge_id, charge.user_id, facts, charge.amount,
        charge.currency, charge.merchant_id, tried,
    )  # fmt: skip
