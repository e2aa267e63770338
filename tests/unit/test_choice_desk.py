"""The desk asks the policies of channels; without any, the order of the settings decides."""

from __future__ import annotations

import json
from typing import Any, cast

from cells.breakers.board import Board
from cells.channels.choosing import Ask, Choice, following
from cells.channels.instruments import InstrumentFacts
from cells.channels.model import Answer, AnswerReason, Operation, Verdict
from cells.choice.desk import ByPolicy
from cells.choice.terms import make_terms
from cells.choice.worker import Choosing
from router.ids import Kind, derive
from router.policies.channels import Band, ChannelPolicy, Fees, Tier

DOWN = Answer(Verdict.FAILED, AnswerReason.CHANNEL_CLOSED)


class Settings:
    """Stands for the order of the settings."""

    async def choose(self, ask: Ask) -> Choice:
        return Choice("by-settings", "{}")

    def learn(self, ask: Ask, channel: str, answer: Answer | None, latency_s: float) -> None:
        raise AssertionError("it chose nothing")


def policy(name: str, fee_ppm: int) -> ChannelPolicy:
    return ChannelPolicy(name, {"USD": Band()}, (Fees("USD", (Tier(0, 0, fee_ppm),)),))


def by_policy(*policies: ChannelPolicy, reached: tuple[str, ...]) -> ByPolicy:
    nobody = cast(Any, None)
    choosing = Choosing(nobody, "a", "redis://127.0.0.1:1/0", Board())
    choosing.chooser.use(make_terms(policies, {}, "a"))
    return ByPolicy(choosing, reached, Settings())


def ask(*tried: str) -> Ask:
    facts = InstrumentFacts("ins", "ann", "card", "visa")
    owner = derive(Kind.CHARGE, 7, "1")
    return Ask(Operation.AUTHORISE, owner, "ann", facts, 10_000, "USD", tried=tried)


async def test_without_a_policy_the_settings_decide() -> None:
    chosen = await following(by_policy(reached=("by-settings",)), ask())
    assert chosen is not None
    assert chosen.channel == "by-settings"


async def test_the_policies_decide_among_what_the_cell_reaches_and_has_not_tried() -> None:
    dear, cheap, elsewhere = policy("dear", 90_000), policy("cheap", 1_000), policy("far", 0)
    desk = by_policy(dear, cheap, elsewhere, reached=("dear", "cheap"))
    seen = []
    for tried in ((), ("cheap",), ("cheap", "dear")):
        chosen = await following(desk, ask(*tried))
        seen.append(chosen.channel if chosen else "")
        if chosen is not None:
            ranked = [it["channel"] for it in json.loads(chosen.document)["ranked"]]
            assert chosen.channel in ranked
            assert "far" in ranked, "the decision tells also of what this cell does not reach"
            desk.learn(ask(*tried), chosen.channel, None, 0.0)
    assert seen == ["cheap", "dear", ""]


async def test_what_comes_of_it_opens_the_breaker_that_the_next_choice_sees() -> None:
    desk = by_policy(policy("down", 0), policy("up", 90_000), reached=("down", "up"))
    for _ in range(20):
        chosen = await following(desk, ask())
        assert chosen is not None
        if chosen.channel == "up":
            return
        desk.learn(ask(), chosen.channel, DOWN, 0.1)
    raise AssertionError("a channel that is down was chosen for ever")
