"""The tables of states: whole, and drawn in docs/charges.md as they are."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from cells.channels import rules
from cells.channels.attempts import OPEN_STATES, Attempt, AttemptState
from cells.channels.choosing import Ask, InOrder, following
from cells.channels.instruments import InstrumentFacts
from cells.channels.model import Answer, AnswerReason, ChannelSettings, Operation, Verdict
from cells.channels.rules import as_repeatable, heard, new_attempt, of_original, reversed_
from cells.charges import model as charges
from cells.charges.model import Charge, ChargeState
from cells.charges.rules import event_of
from cells.payouts import model as payouts
from router.ids import Kind, mint

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = datetime(2026, 1, 2, tzinfo=UTC)
# Title in docs/charges.md → the table, and the states in which it begins.
DRAWN: dict[str, tuple[Mapping[Any, Mapping[Any, Any]], str]] = {
    "A charge": (charges.TRANSITIONS, "processing"),
    "A refund of a charge": (charges.REFUND_TRANSITIONS, "held"),
    "A payout": (payouts.TRANSITIONS, "held"),
    "An attempt": (rules.TRANSITIONS, "sent"),
}


def diagram(table: Mapping[Any, Mapping[Any, Any]], first: str) -> str:
    """A table as Mermaid draws it. An attempt that hears the same again is not drawn."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first}"]
    for state, onward in table.items():
        ways: dict[str, list[str]] = {}
        for event, target in onward.items():
            if target != state or table is not rules.TRANSITIONS:
                ways.setdefault(target, []).append(event)
        lines += [f"    {state} --> {target}: {', '.join(why)}" for target, why in ways.items()]
        if not ways:
            lines.append(f"    {state} --> [*]")
    return "\n".join([*lines, "```"])


@pytest.mark.parametrize("title", DRAWN)
def test_the_page_draws_the_table(title: str) -> None:
    page = (ROOT / "docs/charges.md").read_text(encoding="utf-8")
    section = page.partition(f"### {title}\n")[2]
    drawn = section[section.index("```mermaid") :].partition("```\n")[0] + "```"
    assert drawn == diagram(*DRAWN[title]), f"draw it anew:\n{diagram(*DRAWN[title])}"


@pytest.mark.parametrize("title", DRAWN)
def test_every_state_has_its_row_and_the_last_ones_lead_nowhere(title: str) -> None:
    table, _ = DRAWN[title]
    states: type[StrEnum] = type(next(iter(table)))
    assert set(table) == set(states)
    for onward in table.values():
        assert set(onward.values()) <= set(table)


def attempt(state: StrEnum, operation: Operation = Operation.AUTHORISE) -> Attempt:
    made = new_attempt(7, "att_x", "chg_x", "north", operation, 10, "USD", NOW)
    return made._replace(state=state)


@pytest.mark.parametrize(("state", "verdict"), list(itertools.product(AttemptState, Verdict)))
def test_what_is_known_stays_known_whatever_comes(state: AttemptState, verdict: Verdict) -> None:
    before = attempt(state)
    after = heard(before, Answer(verdict, AnswerReason.NONE, "77"), LATER)
    if state in OPEN_STATES:
        assert after.state == verdict or (state == "pending" and verdict == Verdict.UNKNOWN)
        assert after.touched_at == LATER
        assert not after.dispute
    else:
        assert after.state == state
        approved = state == AttemptState.APPROVED
        against = verdict.is_final and (verdict == Verdict.APPROVED) != approved
        assert bool(after.dispute) == against
        assert not against or after.dispute == f"{verdict}/77"


def test_a_void_undoes_what_had_or_may_have_had_its_effect_and_nothing_else() -> None:
    undone = {state for state in AttemptState if reversed_(attempt(state), LATER).state != state}
    assert undone == {*OPEN_STATES, AttemptState.APPROVED}


def test_a_dispute_names_each_contradiction_once_and_stays_short() -> None:
    disputed = attempt(AttemptState.DECLINED)
    for code in ("00", "00", "01", "\x1e \x00" * 30):
        disputed = heard(disputed, Answer(Verdict.APPROVED, AnswerReason.NONE, code), LATER)
    words = disputed.dispute.split()
    assert words[:2] == ["approved/00", "approved/01"]
    assert len(words) == 3
    assert disputed.dispute.isprintable()


def test_a_question_that_failed_says_nothing_of_what_it_asked_after() -> None:
    for reason in (AnswerReason.NOT_SENT, AnswerReason.CHANNEL_CLOSED, AnswerReason.UNSUPPORTED):
        assert of_original(Answer(Verdict.FAILED, reason)).verdict == Verdict.UNKNOWN
    not_found = Answer(Verdict.FAILED, AnswerReason.NOT_FOUND)
    assert of_original(not_found) == not_found


def test_a_void_that_was_not_sent_is_repeated_and_an_authorisation_is_not() -> None:
    not_sent = Answer(Verdict.FAILED, AnswerReason.NOT_SENT)
    assert as_repeatable(Operation.VOID, not_sent).verdict == Verdict.UNKNOWN
    assert as_repeatable(Operation.AUTHORISE, not_sent) == not_sent


# (authorise, void) → the event in PROCESSING, where there is no void, and in REVERSING.
TRUTH: dict[tuple[str, str], tuple[str | None, str | None]] = {
    ("approved", "sent"): ("approved", None),
    ("approved", "approved"): ("approved", "reversed"),
    ("approved", "declined"): ("approved", "approved"),
    ("declined", "unknown"): ("refused", None),
    ("declined", "failed"): ("refused", "refused"),
    ("failed", "declined"): ("rerouted", "refused"),
    ("unknown", "unknown"): (None, None),
    ("unknown", "approved"): (None, "reversed"),
    ("unknown", "declined"): (None, None),
    ("pending", "failed"): (None, None),
}


@pytest.mark.parametrize(("states", "events"), TRUTH.items())
def test_the_truth_table_of_a_charge(
    states: tuple[str, str], events: tuple[str | None, str | None]
) -> None:
    authorise = attempt(AttemptState(states[0]))
    void = attempt(AttemptState(states[1]), Operation.VOID)
    charge = Charge(
        7, "chg_x", "ann", "top_up", "", "", "keep", "ins", 10, "USD", 0, "", "", "att_x", 1, "",
        "", NOW,
    )  # fmt: skip
    processing = charge._replace(state=ChargeState.PROCESSING)
    reversing = charge._replace(state=ChargeState.REVERSING)
    assert event_of(processing, authorise, None, can_go_on=True) == events[0]
    assert event_of(reversing, authorise, void, can_go_on=True) == events[1]
    for ended in (ChargeState.SUCCEEDED, ChargeState.FAILED):
        again = charge._replace(state=ended)
        assert event_of(again, authorise, void, can_go_on=True) is None


class Named:
    """As much of a channel as choosing looks at."""

    def __init__(self, name: str, *operations: Operation) -> None:
        self.name = name
        self.operations = frozenset(operations)


async def test_without_a_policy_the_first_fit_channel_is_asked_and_the_reasons_are_told() -> None:
    both = (Operation.AUTHORISE, Operation.PAYOUT)
    channels: dict[str, Any] = {
        "out": Named("out", Operation.PAYOUT),
        "euro": Named("euro", *both),
        "amex": Named("amex", *both),
        "first": Named("first", *both),
        "second": Named("second", *both),
    }
    settings = [
        ChannelSettings("euro", "x", {}, currencies=("EUR",)),
        ChannelSettings("amex", "x", {}, schemes=("amex",)),
    ]
    chooser = InOrder(channels, settings)
    owner = mint(Kind.CHARGE, 7, unix_ms=0, random_80=1)
    facts = InstrumentFacts("ins", "ann", "card", "visa")
    ask = Ask(Operation.AUTHORISE, owner, "ann", facts, 10, "USD")
    chosen = await following(chooser, ask)
    assert chosen is not None
    assert chosen.channel == "first"
    considered = json.loads(chosen.document)["considered"]
    assert considered["out"] == "cannot authorise"
    assert considered["euro"] == "does not take USD"
    assert considered["amex"] == "does not take visa"
    tried = Ask(Operation.AUTHORISE, owner, "ann", facts, 10, "USD", tried=("first", "second"))
    assert await following(chooser, tried) is None
