"""Which channel is asked: who may be, what each is worth, what an answer says of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from cells.breakers.board import Board
from cells.channels.model import Answer, AnswerReason, Verdict
from cells.choice.beliefs import NOTHING, certain, standing
from cells.choice.calendar import is_open, moment_of
from cells.choice.chooser import Chooser
from cells.choice.fees import fee, share, tier_of
from cells.choice.model import Decision, Evidence, Exclusion, Facts, Snapshot, Usage
from cells.choice.rules import decide, evidence_of, works
from cells.choice.terms import make_terms
from router.policies.channels import (
    Band,
    Banks,
    ChannelPolicy,
    ChoicePolicy,
    Commitment,
    Fees,
    Hours,
    InstrumentKind,
    Only,
    Quotas,
    Rounding,
    Taking,
    Tier,
)
from router.policies.model import Breakers, Forced

# Wednesday, half past eight in the evening in Shanghai.
NOON_MS = int(datetime(2026, 7, 15, 12, 30, tzinfo=UTC).timestamp() * 1000)


def channel(name: str, *, rate_ppm: int = 20_000, **more: Any) -> ChannelPolicy:
    fees = more.pop("fees", (Fees("USD", (Tier(0, 10, rate_ppm),)),))
    return ChannelPolicy(name, more.pop("amounts", {"USD": Band(100, 10_000)}), fees, **more)


def facts(**more: Any) -> Facts:
    known = {"owner_id": "chg_1", "amount": 5000, "currency": "USD", "at_ms": NOON_MS,
             "scheme": "visa", "merchant": "shop", "bank": "icbc"}  # fmt: skip
    return Facts(**{**known, **more})


def chosen(
    channels: list[ChannelPolicy],
    of: Facts | None = None,
    usages: dict[str, Usage] | None = None,
    away: frozenset[str] = frozenset(),
    rates: dict[str, float] | None = None,
) -> Decision:
    terms = make_terms([*channels, ChoicePolicy()], {})
    standings = {
        item.channel: certain((rates or {}).get(item.channel, 0.9), 300) for item in channels
    }
    return decide(of or facts(), terms, Snapshot(standings, usages or {}, away))


@pytest.mark.parametrize(
    ("policy", "of", "reason"),
    [
        ({"blocked": True}, {}, Exclusion.BLOCKED),
        ({}, {"taking": Taking.PAYOUT}, Exclusion.TAKING),
        ({}, {"instrument": InstrumentKind.BANK_ACCOUNT}, Exclusion.INSTRUMENT),
        ({"schemes": ("jcb",)}, {}, Exclusion.SCHEME),
        ({}, {"currency": "EUR"}, Exclusion.CURRENCY),
        ({"fees": (Fees("USD", (Tier(),), schemes=("jcb",)),)}, {}, Exclusion.UNPRICED),
        ({}, {"must_use": "other"}, Exclusion.MUST_USE),
        ({"banks": Banks(never=("icbc",))}, {}, Exclusion.BANK),
        ({"banks": Banks(only=("abc",))}, {}, Exclusion.BANK),
        ({"merchants": Only(never=("shop",))}, {}, Exclusion.MERCHANT),
        ({"merchants": Only(only=("other",))}, {}, Exclusion.MERCHANT),
        ({}, {"amount": 99}, Exclusion.AMOUNT_LOW),
        ({}, {"amount": 10_001}, Exclusion.AMOUNT_HIGH),
        ({"zone": "Asia/Shanghai", "hours": (Hours(begin="21:00", end="20:00"),)}, {},
         Exclusion.CLOSED_NOW),
        ({"quotas": Quotas(per_minute=3)}, {}, Exclusion.QUOTA_MINUTE),
        ({"quotas": Quotas(per_day=4)}, {}, Exclusion.QUOTA_DAY),
        ({"quotas": Quotas(amount_per_day={"USD": 14_999})}, {}, Exclusion.QUOTA_AMOUNT),
    ],
)  # fmt: skip
def test_a_channel_that_may_not_be_asked_is_left_out_and_said_why(
    policy: dict[str, Any], of: dict[str, Any], reason: Exclusion
) -> None:
    usages = {"a": Usage(3, 4, 10_000)}
    decision = chosen([channel("a", **policy)], facts(**of), usages)
    assert (decision.order, [item.reason for item in decision.excluded]) == ((), [reason])
    # Nothing but that was in the way.
    near = {"amount": 100} if of.get("amount") == 99 else {"amount": 5000}
    assert chosen([channel("a")], facts(**near), usages).order == ("a",)


def test_an_instrument_of_a_claimed_bank_goes_to_those_that_claim_it_and_to_no_other() -> None:
    channels = [channel("a"), channel("b", banks=Banks(must=("icbc",)), rate_ppm=50_000)]
    assert chosen(channels).order == ("b",)
    assert chosen(channels, facts(bank="abc")).order == ("a", "b")


def test_a_channel_whose_breaker_is_open_is_left_out() -> None:
    decision = chosen([channel("a"), channel("b")], away=frozenset({"a"}))
    assert decision.order == ("b",)
    assert decision.excluded == (("a", Exclusion.BREAKER_OPEN),)


def test_the_better_is_preferred_until_it_costs_more_than_it_is_worth() -> None:
    def first(rate_ppm: int) -> str:
        channels = [channel("good", rate_ppm=rate_ppm), channel("cheap", rate_ppm=10_000)]
        return chosen(channels, rates={"good": 0.95, "cheap": 0.80}).order[0]

    # An approval is worth 6 %: 0.95 of 6 % less the fee, against 0.80 of 5 %.
    assert [first(rate) for rate in (10_000, 16_000, 20_000)] == ["good", "good", "cheap"]


def test_an_operators_preference_and_waiting_weigh_in() -> None:
    channels = [channel("a"), channel("b", preference_ppm=1_000)]
    assert chosen(channels).order[0] == "b"
    terms = make_terms([channel("a"), channel("b")], {})
    slow = Snapshot({"a": certain(0.9, 5000), "b": certain(0.9, 300)})
    assert decide(facts(), terms, slow).order[0] == "b"


def test_a_commitment_pulls_only_while_it_lags() -> None:
    promise = Commitment("USD", 31_000, 8_000)
    channels = [channel("a"), channel("b", commitments=(promise,), rate_ppm=21_000)]
    # 14 and a half of 31 days are over: 14,520 are due.
    orders = {
        volume: chosen(channels, usages={"b": Usage(month_amount=volume)}).order[0]
        for volume in (0, 13_000, 14_500, 14_600, 31_000)
    }
    assert orders == {0: "b", 13_000: "b", 14_500: "a", 14_600: "a", 31_000: "a"}


def test_a_decision_draws_for_no_more_channels_than_the_policy_says() -> None:
    channels = [channel(f"c{number}") for number in range(5)]
    terms = make_terms([*channels, ChoicePolicy(channels_max=3)], {})
    snapshot = Snapshot({item.channel: certain(0.9, 1) for item in channels[:4]})
    decision = decide(facts(), terms, snapshot)
    assert decision.order == ("c0", "c1", "c2")
    assert [item.reason for item in decision.excluded] == [Exclusion.NOT_DRAWN] * 2


@pytest.mark.parametrize(
    ("hours", "at", "opened"),
    [
        (Hours((3,), "20:00", "21:00"), "2026-07-15T12:30", True),
        (Hours((2,), "20:00", "21:00"), "2026-07-15T12:30", False),
        (Hours((3,), "20:30", "20:31"), "2026-07-15T12:30", True),
        (Hours((3,), "20:00", "20:30"), "2026-07-15T12:30", False),
        # Past midnight: Wednesday's night ends on Thursday.
        (Hours((3,), "22:00", "04:00"), "2026-07-15T19:59", True),
        (Hours((3,), "22:00", "04:00"), "2026-07-15T20:00", False),
        (Hours((4,), "22:00", "04:00"), "2026-07-15T19:59", False),
        (Hours((7,), "22:00", "04:00"), "2026-07-19T17:00", True),
    ],
)
def test_hours_are_the_channels_own(hours: Hours, at: str, opened: bool) -> None:
    at_ms = int(datetime.fromisoformat(f"{at}+00:00").timestamp() * 1000)
    assert is_open([hours], moment_of("Asia/Shanghai", at_ms)) == opened


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        (Rounding.HALF_EVEN, [0, 2, 2, 1]),
        (Rounding.HALF_UP, [1, 2, 3, 1]),
        (Rounding.UP, [1, 2, 3, 1]),
        (Rounding.DOWN, [0, 1, 2, 0]),
    ],
)
def test_a_fraction_ends_by_the_rule_that_is_named(rounding: Rounding, expected: list[int]) -> None:
    # 0.5, 1.5, 2.5 and 0.6 of a minor unit.
    assert [share(amount, 5000, rounding) for amount in (100, 300, 500, 120)] == expected


def test_a_fee_has_a_floor_a_cap_and_a_tier_by_volume() -> None:
    table = Fees("USD", (Tier(0, 10, 20_000, 50, 90), Tier(1000, 5, 10_000)))
    assert [fee(table, 0, amount) for amount in (100, 2500, 9999)] == [50, 60, 90]
    volumes = tuple(tier.from_volume for tier in table.tiers)
    assert [tier_of(volumes, volume) for volume in (-5, 0, 999, 1000)] == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("answer", "evidence", "does"),
    [
        (Answer(Verdict.APPROVED), Evidence.GOOD, True),
        (Answer(Verdict.PENDING), Evidence.NONE, True),
        (Answer(Verdict.UNKNOWN, AnswerReason.TIMED_OUT), Evidence.BAD, False),
        (Answer(Verdict.FAILED, AnswerReason.NOT_SENT), Evidence.BAD, False),
        (Answer(Verdict.FAILED, AnswerReason.ISSUER_UNAVAILABLE), Evidence.BAD, None),
        (Answer(Verdict.DECLINED, AnswerReason.DO_NOT_HONOUR), Evidence.BAD, True),
        (Answer(Verdict.DECLINED, AnswerReason.INSUFFICIENT_FUNDS), Evidence.NONE, True),
    ],
)
def test_what_an_answer_says_of_its_channel(
    answer: Answer, evidence: Evidence, does: bool | None
) -> None:
    assert (evidence_of(answer), works(answer)) == (evidence, does)


def _chooser(*channels: ChannelPolicy) -> tuple[Chooser, list[float]]:
    now = [0.0]
    chooser = Chooser(Board(lambda: now[0]), lambda: now[0])
    chooser.use(make_terms(channels, {}))
    return chooser, now


BAD = Answer(Verdict.FAILED, AnswerReason.CHANNEL_ERROR)


def test_a_bank_that_fails_for_one_card_is_thought_worse_of_for_all_and_it_fades() -> None:
    chooser, now = _chooser(channel("a"))

    def believed(scheme: str) -> float:
        found = chooser.choose(facts(scheme=scheme)).snapshot.standings["a"]
        return found.alpha / (found.alpha + found.beta)

    before = believed("jcb")
    for _ in range(50):
        chooser.statistics.note(facts(), "a", Evidence.BAD, 100, now[0])
    chooser.refresh()
    assert believed("visa") < believed("jcb") < before
    now[0] += 12 * 3600
    chooser.refresh()
    # Even of a bank that was down from the beginning: else it would not be found again.
    assert believed("visa") > before - 0.25


def test_a_breaker_opens_after_failures_lets_one_try_and_closes_when_it_succeeds() -> None:
    chooser, now = _chooser(channel("a"))
    for _ in range(5):
        assert chooser.take(facts(), "a")
        chooser.note(facts(), "a", BAD, 100)
    assert chooser.choose(facts()).order == ()
    assert not chooser.take(facts(), "a")
    now[0] += 5.1
    assert chooser.choose(facts()).order == ("a",)
    assert [chooser.take(facts(), "a") for _ in range(3)] == [True, False, False]
    assert chooser.choose(facts()).order == ()
    chooser.note(facts(), "a", Answer(Verdict.APPROVED), 100)
    assert chooser.choose(facts()).order == ("a",)


def test_an_operator_forces_a_channels_breaker_and_lets_it_go() -> None:
    chooser, _ = _chooser(channel("a"))

    def force(to: Forced | None) -> tuple[str, ...]:
        chooser.board.apply([Breakers("channel:a", force=to)])
        chooser.look_at("a")
        return chooser.choose(facts()).order

    assert [force(to) for to in (Forced.OPEN, Forced.CLOSED, Forced.OPEN, None)] == [
        (), ("a",), (), ("a",),
    ]  # fmt: skip


def test_among_many_the_proven_and_the_uncertain_are_drawn_for_and_who_they_are_changes() -> None:
    channels = [channel(f"c{number:02}") for number in range(30)]
    chooser, now = _chooser(*channels)
    for number in range(20):
        for _ in range(60):
            evidence = Evidence.GOOD if number == 7 else Evidence.BAD
            chooser.statistics.note(facts(), f"c{number:02}", evidence, 100, now[0])
    chooser.refresh()
    drawn = set(chooser.choose(facts()).order)
    assert len(drawn) == chooser.terms.choice.channels_max
    assert "c07" in drawn
    assert drawn - {"c07"} <= {f"c{number:02}" for number in range(20, 30)}
    # Who failed is drawn for again, once nobody remembers, if the others fail now.
    now[0] += 24 * 3600
    for number in range(20, 30):
        for _ in range(60):
            chooser.statistics.note(facts(), f"c{number:02}", Evidence.BAD, 100, now[0])
    chooser.refresh()
    assert set(chooser.choose(facts()).order) <= {f"c{number:02}" for number in range(20)}


def test_of_a_channel_that_nothing_is_known_of_the_prior_is_believed() -> None:
    choice = ChoicePolicy()
    found = standing(NOTHING, NOTHING, NOTHING, choice)
    assert found.alpha / (found.alpha + found.beta) == pytest.approx(choice.prior_rate, abs=0.001)


def test_moments_are_of_the_channels_zone() -> None:
    late = int(datetime(2026, 7, 31, 16, 30, tzinfo=UTC).timestamp() * 1000)
    assert moment_of("Asia/Shanghai", late)[1:5] == ("2026-08-01", "2026-08", 6, 30)
    assert moment_of("UTC", late)[1:5] == ("2026-07-31", "2026-07", 5, 16 * 60 + 30)
    assert is_open((), moment_of("UTC", late))


def test_who_speaks_of_an_earlier_minute_does_not_free_the_quota_of_this_one() -> None:
    chooser, _ = _chooser(channel("a", quotas=Quotas(per_minute=1)))
    assert chooser.take(facts(), "a")
    assert not chooser.take(facts(at_ms=NOON_MS - 60_000), "a")
    assert not chooser.take(facts(), "a")
    assert chooser.take(facts(at_ms=NOON_MS + 60_000), "a")
