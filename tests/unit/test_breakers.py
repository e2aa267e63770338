"""Breakers: when do they open, who may try, what does forcing do."""

from __future__ import annotations

import pytest

from cells.breakers.board import Board, Breaker, BreakerOpen
from router.policies.model import Breakers, Dependency, Forced

FAULT = OSError("away")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def _breaker(failures_max: int = 3) -> tuple[Breaker, Clock]:
    clock = Clock()
    breaker = Breaker(Dependency.NATS, clock)
    breaker.tune(Breakers(Dependency.NATS, failures_max=failures_max, reset_s=5.0))
    return breaker, clock


def test_it_opens_after_failures_in_a_row_and_a_success_between_counts_anew() -> None:
    breaker, _ = _breaker()
    for error in (FAULT, FAULT, None, FAULT, FAULT):
        breaker.note(error)
    assert breaker.state == "closed"
    breaker.note(FAULT)
    assert breaker.state == "open"
    with pytest.raises(BreakerOpen):
        breaker.check()


def test_after_its_time_one_call_may_try_and_the_others_wait_for_how_it_goes() -> None:
    breaker, clock = _breaker(1)
    breaker.note(FAULT)
    clock.now += 4.9
    assert breaker.is_open()
    clock.now += 0.2
    assert [breaker.is_open() for _ in range(3)] == [False, True, True]
    assert breaker.state == "half_open"
    breaker.note(None)
    assert breaker.state == "closed"
    assert not breaker.is_open()


def test_a_trial_that_fails_opens_it_again_and_one_that_is_never_noted_blocks_nobody() -> None:
    breaker, clock = _breaker(1)
    breaker.note(FAULT)
    clock.now += 5.1
    assert not breaker.is_open()
    breaker.note(FAULT)
    assert breaker.state == "open"
    clock.now += 5.1
    assert [breaker.is_open(), breaker.is_open()] == [False, True]
    clock.now += 5.1
    assert not breaker.is_open()


def test_what_ends_late_while_it_is_open_changes_nothing() -> None:
    breaker, _ = _breaker(1)
    breaker.note(FAULT)
    breaker.note(None)
    breaker.note(BreakerOpen())
    assert breaker.state == "open"


def test_forced_it_is_what_it_is_forced_to_and_counts_nothing() -> None:
    breaker, _ = _breaker(1)
    breaker.tune(Breakers(Dependency.NATS, failures_max=1, force=Forced.CLOSED))
    breaker.note(FAULT)
    assert (breaker.state, breaker.forced, breaker.is_open()) == ("closed", True, False)
    breaker.tune(Breakers(Dependency.NATS, failures_max=1, force=Forced.OPEN))
    breaker.note(None)
    assert (breaker.state, breaker.is_open()) == ("open", True)
    breaker.tune(Breakers(Dependency.NATS))
    assert (breaker.state, breaker.forced, breaker.is_open()) == ("closed", False, False)


def test_a_board_has_a_breaker_for_every_dependency_and_a_policy_that_goes_lets_go() -> None:
    board = Board()
    assert board.report() == {str(item): ("closed", False) for item in Dependency}
    board.apply([Breakers(Dependency.REDIS, force=Forced.OPEN)])
    assert board.report()["redis"] == ("open", True)
    board.apply([])
    assert board.report()["redis"] == ("closed", False)
