"""How a simulated bank misbehaves: by rule, by chance with a seed, by the clock."""

from __future__ import annotations

from datetime import UTC, datetime, time

from banks.bank import Bank
from banks.behaviour import (
    BEHAVIOUR,
    Action,
    Behaviour,
    Closed,
    Latency,
    Rule,
    Spread,
    Window,
    thinking_s,
)
from banks.model import Asked, Operation, Status, Why

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def purchase(reference: str, amount: int = 500, instrument: str = "62000001") -> Asked:
    return Asked(Operation.AUTHORISE, reference, amount, "CNY", instrument)


def bank_of(behaviour: Behaviour) -> Bank:
    return Bank("icbc", behaviour, now=lambda: NOON)


def test_the_first_rule_that_matches_decides() -> None:
    behaviour = Behaviour(
        rules=(
            Rule(Action.DECLINE, code="54", instrument="6211"),
            Rule(Action.DECLINE, code="51", amount_ends="51"),
            Rule(Action.SILENT, amount_min=10_000, operations=(Operation.AUTHORISE,)),
        )
    )
    bank = bank_of(behaviour)
    declined = bank.hear(purchase("a", 151, "62110000")).said
    assert declined is not None
    assert (declined.status, declined.why, declined.code) == (Status.DECLINED, Why.TOLD, "54")
    declined = bank.hear(purchase("b", 151)).said
    assert declined is not None
    assert declined.code == "51"
    plan = bank.hear(purchase("c", 10_000))
    assert (plan.action, plan.said) == (Action.SILENT, None)
    held = bank.book.find("c")
    assert held is not None
    assert held.taken == 10_000


def test_a_rule_is_spent_after_its_times() -> None:
    bank = bank_of(Behaviour(rules=(Rule(Action.LOSE, times=1),)))
    assert bank.hear(purchase("a")).said is None
    assert bank.book.find("a") is None
    again = bank.hear(purchase("a")).said
    assert again is not None
    assert again.status is Status.APPROVED


def test_chance_depends_on_the_reference_and_the_seed_and_not_on_the_order() -> None:
    rules = (Rule(Action.DECLINE, code="05", probability=0.3),)

    def fates(seed: int, names: list[str]) -> dict[str, Action]:
        bank = bank_of(Behaviour(rules=rules, seed=seed))
        return {name: bank.hear(purchase(name)).action for name in names}

    names = [f"r{number}" for number in range(400)]
    first = fates(1, names)
    assert fates(1, list(reversed(names))) == first
    assert fates(2, names) != first
    declined = sum(action is Action.DECLINE for action in first.values())
    assert 80 < declined < 160


def test_latencies_follow_their_distribution() -> None:
    latency = Latency(Spread.LOGNORMAL, median_ms=40, sigma=0.5, tail_share=0.05, tail_ms=2_000)
    times = sorted(thinking_s(latency, 7, f"r{number}", 1) for number in range(4_000))
    assert 0.035 < times[2_000] < 0.046
    assert 0.03 < sum(time > 2 for time in times) / 4_000 < 0.07
    assert thinking_s(Latency(median_ms=25), 7, "r", 1) == 0.025


def test_a_window_of_maintenance_refuses_and_writes_nothing() -> None:
    window = Window(datetime(2026, 11, 24, 11, tzinfo=UTC), datetime(2026, 11, 24, 13, tzinfo=UTC))
    bank = bank_of(Behaviour(maintenance=(window,)))
    said = bank.hear(purchase("a")).said
    assert said is not None
    assert said.why is Why.MAINTENANCE
    assert bank.book.find("a") is None
    bank.behave(Behaviour(closed=Closed.SILENT))
    assert bank.hear(purchase("a")).said is None
    bank.behave(Behaviour())
    said = bank.hear(purchase("a")).said
    assert said is not None
    assert said.status is Status.APPROVED


def test_after_the_cut_off_it_is_tomorrow_in_the_banks_zone() -> None:
    def day(hour: int) -> str:
        now = datetime(2026, 11, 24, hour, 30, tzinfo=UTC)
        return Bank("b", Behaviour(), time(23), "Asia/Shanghai", lambda: now).today

    # 22:30, 23:30 and 00:30 in Shanghai.
    assert [day(14), day(15), day(16)] == ["2026-11-24", "2026-11-25", "2026-11-25"]


def test_a_delayed_effect_is_refused_when_the_bank_promised_that_it_never_came() -> None:
    bank = bank_of(Behaviour(rules=(Rule(Action.DELAY, after_ms=100),)))
    plan = bank.hear(purchase("a"))
    assert plan.later is not None
    absent = bank.book.tell(Asked(Operation.QUERY, "q", 0, "CNY", original="a"))
    assert absent.status is Status.ABSENT
    said = plan.later()
    assert (said.status, said.why) == (Status.DECLINED, Why.CLOSED)
    assert bank.book.totals().taken == 0


def test_what_is_pending_is_settled_once() -> None:
    bank = bank_of(Behaviour(rules=(Rule(Action.PEND, after_ms=10),)))
    plan = bank.hear(Asked(Operation.PAYOUT, "p", 900, "CNY", "6222"))
    assert plan.said is not None
    assert plan.said.status is Status.PENDING
    assert plan.later is not None
    assert plan.later().status is Status.APPROVED
    assert plan.later().status is Status.APPROVED
    assert bank.book.totals().taken == -900


def test_behaviour_is_json_that_refuses_what_it_does_not_know() -> None:
    behaviour = Behaviour(rules=(Rule(Action.DUPLICATE, after_ms=5, probability=0.5),), seed=9)
    assert BEHAVIOUR.validate_json(BEHAVIOUR.dump_json(behaviour)) == behaviour
    try:
        BEHAVIOUR.validate_json('{"rules": [{"action": "silent", "propability": 1}]}')
    except ValueError as error:
        assert "propability" in str(error)
    else:
        raise AssertionError("a misspelt knob was taken")
