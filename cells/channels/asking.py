"""Asks banks: from an attempt that is written down to an answer, whatever happens on the way.

A request that makes a bank act is sent by the one that wrote it down, at once, or never (the send
window); whoever comes later only asks how it ended. So a process that was paused in between cannot
send what others have given up (pitfall 6). A VOID is repeated, with the same reference.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping

import grpc
import structlog
from prometheus_client.metrics_core import Metric

from cells.channels.attempts import Attempt
from cells.channels.instruments import Vault
from cells.channels.interface import Channel
from cells.channels.model import (
    Answer,
    AnswerReason,
    Instrument,
    Operation,
    Request,
    Verdict,
)
from cells.channels.rules import of_original
from cells.settings import BankingSettings
from router.errors import Refusal
from router.metrics import counter
from router.tracing.current import span
from router.tracing.model import SpanKind

log = structlog.get_logger(__name__)

# What a trace is kept for: the bank did not do what it was asked, or did not say.
_FAILURES = frozenset({Verdict.DECLINED, Verdict.FAILED, Verdict.UNKNOWN})
# An adapter keeps its time-out itself; this is for one that does not.
_GRACE_S = 2.0


class Asking:
    def __init__(
        self, channels: Mapping[str, Channel], vault: Vault, settings: BankingSettings
    ) -> None:
        self._channels = channels
        self._vault = vault
        self._settings = settings
        # (channel, operation, verdict) → answers.
        self.answers: Counter[tuple[str, str, str]] = Counter()

    def __call__(self) -> Iterator[Metric]:
        """For Prometheus: what banks accept."""
        yield counter(
            "cellpay_bank_answers",
            "Answers of banks, by channel, operation and verdict.",
            sorted(self.answers.items()),
            labels=("channel", "operation", "verdict"),
        )

    def can(self, channel: str, operation: Operation) -> bool:
        found = self._channels.get(channel)
        return found is not None and operation in found.operations

    async def send(
        self, attempt: Attempt, instrument_id: str, written_at_s: float, shown: str = ""
    ) -> Answer:
        """An authorisation or a payout, once. `written_at_s`: monotonic, before the commit."""
        try:
            with span("vault.reveal"):
                instrument = await self._vault.reveal(instrument_id, attempt.attempt_id)
        except Refusal as refusal:
            log.warning("an instrument is not revealed", reason=refusal.reason)
            if refusal.code in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION}:
                return Answer(Verdict.DECLINED, AnswerReason.INSTRUMENT_INVALID)
            return _not_sent("the vault does not answer")
        return await self._once(_request(attempt, None, instrument, shown), attempt, written_at_s)

    async def refund(self, attempt: Attempt, original: Attempt, written_at_s: float) -> Answer:
        return await self._once(_request(attempt, original), attempt, written_at_s)

    async def void(self, attempt: Attempt, original: Attempt) -> Answer:
        """Undoes; may be repeated."""
        return await self._perform(attempt.channel, _request(attempt, original))

    async def query(self, attempt: Attempt, reference: str) -> Answer:
        """How an attempt ended, as far as its bank says. `reference`: of the question itself."""
        question = Request(
            Operation.QUERY,
            reference,
            0,
            attempt.currency,
            original=attempt.attempt_id,
            original_bank_reference=attempt.bank_reference,
            original_amount=attempt.amount,
        )
        if not self.can(attempt.channel, Operation.QUERY):
            return Answer(Verdict.UNKNOWN, AnswerReason.UNSUPPORTED)
        return of_original(await self._perform(attempt.channel, question))

    async def _once(self, request: Request, attempt: Attempt, written_at_s: float) -> Answer:
        # Not the loop's clock, which uvloop reads once a turn: this looks as late as can be.
        if time.monotonic() - written_at_s > self._settings.send_window_s:
            return _not_sent("too late to send it")
        return await self._perform(attempt.channel, request)

    async def _perform(self, name: str, request: Request) -> Answer:
        channel = self._channels.get(name)
        if channel is None:
            return _not_sent("this cell does not reach that bank")
        timeout_s = self._settings.answer_timeout_s
        with span(f"bank.{request.operation.lower()}", kind=SpanKind.CLIENT) as watching:
            watching.note(channel=name, attempt_id=request.reference)
            try:
                async with asyncio.timeout(timeout_s + _GRACE_S):
                    answer = await channel.perform(request, timeout_s)
            except Exception as error:
                # It may have left: nothing else may be said of it.
                log.error("an adapter failed", channel=name, error=type(error).__name__)
                answer = Answer(Verdict.UNKNOWN, AnswerReason.TIMED_OUT)
            self.answers[name, request.operation, answer.verdict] += 1
            watching.note(verdict=str(answer.verdict), reason=str(answer.reason))
            if answer.verdict in _FAILURES:
                watching.fail(f"{answer.verdict} {answer.reason}")
        return answer


def _request(
    attempt: Attempt,
    original: Attempt | None,
    instrument: Instrument | None = None,
    shown: str = "",
) -> Request:
    return Request(
        Operation(attempt.operation),
        attempt.attempt_id,
        attempt.amount,
        attempt.currency,
        instrument,
        original=original.attempt_id if original else "",
        original_bank_reference=original.bank_reference if original else "",
        original_amount=original.amount if original else 0,
        merchant=shown,
    )


def _not_sent(why: str) -> Answer:
    return Answer(Verdict.FAILED, AnswerReason.NOT_SENT, message=why)


def alarm(attempt: Attempt, age_s: float) -> None:
    """For whoever is on call (docs/charges.md says what to do)."""
    log.error(
        "an attempt is unknown for too long",
        attempt=attempt.attempt_id,
        operation=attempt.operation,
        channel=attempt.channel,
        age_s=round(age_s),
    )
