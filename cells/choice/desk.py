"""The choice of channels as the desk asks for it (cells/channels/choosing.py).

Without any policy of channels the order of the settings decides.
"""

from __future__ import annotations

import time
from collections.abc import Collection

from cells.channels.choosing import Ask, Choice, Chooser
from cells.channels.model import Answer, Operation
from cells.choice.document import encode
from cells.choice.model import Facts
from cells.choice.worker import Choosing
from router.policies.channels import InstrumentKind, Taking


class ByPolicy:
    def __init__(self, choosing: Choosing, channels: Collection[str], otherwise: Chooser) -> None:
        """`channels`: those that this cell reaches."""
        self._choosing = choosing
        self._channels = channels
        self._otherwise = otherwise

    async def choose(self, ask: Ask) -> Choice:
        if not self._choosing.chooser.terms.channels:
            return await self._otherwise.choose(ask)
        facts = facts_of(ask)
        decision = self._choosing.choose(facts)
        document = encode(decision)
        for channel in decision.order:
            usable = channel in self._channels and channel not in ask.tried
            if usable and await self._choosing.begin(facts, channel):
                return Choice(channel, document)
        return Choice("", document)

    def learn(self, ask: Ask, channel: str, answer: Answer | None, latency_s: float) -> None:
        # One that was begun and not asked is given up by its breaker after a while.
        if answer is not None and channel in self._choosing.chooser.terms.channels:
            self._choosing.end(facts_of(ask), channel, answer, latency_s * 1000)


def facts_of(ask: Ask) -> Facts:
    instrument = ask.instrument
    return Facts(
        ask.owner_id,
        ask.amount,
        ask.currency,
        time.time_ns() // 1_000_000,
        ask.merchant_id,
        Taking.PAYOUT if ask.operation == Operation.PAYOUT else Taking.CHARGE,
        InstrumentKind(instrument.kind),
        instrument.scheme,
        instrument.bank,
    )
