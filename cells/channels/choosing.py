"""Which channel is asked next: the seam to routing, and what stands there without a policy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from cells.channels.instruments import InstrumentFacts
from cells.channels.interface import Channel
from cells.channels.model import Answer, ChannelSettings, Operation
from router.ids import Kind, slot_of_id
from router.minting import mint_now
from router.tracing.current import span


@dataclass(frozen=True, slots=True)
class Ask:
    """What routing may know. Never a card's number."""

    operation: Operation
    # The charge or payout.
    owner_id: str
    user_id: str
    instrument: InstrumentFacts
    amount: int
    currency: str
    merchant_id: str = ""
    # Channels that failed cleanly before, for the same money.
    tried: Sequence[str] = ()


class Choice(NamedTuple):
    """A channel, and why (JSON). Empty: there is none."""

    channel: str
    document: str


class Following(NamedTuple):
    """The attempt that comes next, with an ID so that it can be written down before it is sent."""

    attempt_id: str
    channel: str
    document: str


class Chooser(Protocol):
    """Routing: answers within milliseconds, whatever is away. By many at a time."""

    async def choose(self, ask: Ask) -> Choice:
        """A channel that is not among those tried; it counts as asked from now on."""
        ...

    def learn(self, ask: Ask, channel: str, answer: Answer | None, latency_s: float) -> None:
        """How an attempt that it chose went, for success rates, latency and breakers. Once a
        choice; None: it was not asked after all."""
        ...


async def following(chooser: Chooser, ask: Ask) -> Following | None:
    """What is to be attempted next; None when no channel takes it."""
    with span("channel.choose"):
        choice = await chooser.choose(ask)
    if not choice.channel:
        return None
    attempt_id = mint_now(Kind.ATTEMPT, slot_of_id(ask.owner_id))
    return Following(attempt_id, choice.channel, choice.document)


class InOrder:
    """Without a policy: the first channel, in the order of the settings, that can do it."""

    def __init__(
        self, channels: Mapping[str, Channel], settings: Sequence[ChannelSettings] = ()
    ) -> None:
        self._channels = channels
        self._settings = {item.name: item for item in settings}

    async def choose(self, ask: Ask) -> Choice:
        considered = {name: self._unfit(channel, ask) for name, channel in self._channels.items()}
        chosen = next((name for name, why in considered.items() if not why), "")
        document = {"policy": "in-order", "chosen": chosen, "considered": considered}
        return Choice(chosen, json.dumps(document))

    def learn(self, ask: Ask, channel: str, answer: Answer | None, latency_s: float) -> None:
        """The order does not change."""

    def _unfit(self, channel: Channel, ask: Ask) -> str:
        """Why it cannot be asked; empty when it can."""
        settings = self._settings.get(channel.name)
        if channel.name in ask.tried:
            return "failed before"
        if ask.operation not in channel.operations:
            return f"cannot {ask.operation}"
        if settings is None:
            return ""
        if settings.currencies and ask.currency not in settings.currencies:
            return f"does not take {ask.currency}"
        scheme = ask.instrument.scheme
        if scheme and settings.schemes and scheme not in settings.schemes:
            return f"does not take {scheme}"
        return ""
