"""Approvals: by a second person, for one call with its parameters, once, in time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from control.approvals.model import TRANSITIONS, Approval, Event, State
from control.approvals.rules import No, Reason, action_hash, canonical, decide, state_now, use

ANN, BOB, EVE = (f"spiffe://cellpay.local/operator/{name}" for name in ("ann", "bob", "eve"))
ACTION = "cellpay.control.v1.ControlService/StartOperation"
ASKED = canonical({"region": "region-a", "reason": "flood"})
SHA = action_hash(ACTION, ASKED)
PENDING = Approval("appr-1", State.PENDING, ACTION, ASKED, SHA, ANN, 1)
APPROVED = replace(PENDING, state=State.APPROVED, approver=BOB)


def _decide(approval: Approval, who: str, event: Event, *, alive: bool = True) -> Approval | No:
    return decide(approval, who, event, alive=alive, now_ms=2, note="seen")


def test_a_second_person_approves_and_the_first_uses_it() -> None:
    approved = _decide(PENDING, BOB, Event.APPROVE)
    assert isinstance(approved, Approval)
    assert (approved.state, approved.approver, approved.note) == (State.APPROVED, BOB, "seen")
    used = use(approved, ANN, SHA, alive=True)
    assert isinstance(used, Approval)
    assert used.state == State.USED


@pytest.mark.parametrize("event", [Event.APPROVE, Event.REJECT])
@pytest.mark.parametrize("state", list(State))
def test_nobody_decides_what_he_asked_for_himself(state: State, event: Event) -> None:
    refused = _decide(replace(PENDING, state=state), ANN, event)
    assert isinstance(refused, No)
    assert refused.reason == Reason.OWN


@pytest.mark.parametrize(
    ("state", "alive", "reason"),
    [
        (State.PENDING, True, Reason.PENDING),
        (State.PENDING, False, Reason.EXPIRED),
        (State.APPROVED, False, Reason.EXPIRED),
        (State.REJECTED, True, Reason.REJECTED),
        # What was rejected or used did not run out afterwards.
        (State.REJECTED, False, Reason.REJECTED),
        (State.USED, True, Reason.USED),
        (State.USED, False, Reason.USED),
    ],
)
def test_what_is_not_approved_now_is_not_used(state: State, alive: bool, reason: Reason) -> None:
    refused = use(replace(APPROVED, state=state), ANN, SHA, alive=alive)
    assert isinstance(refused, No)
    assert refused.reason == reason


def test_an_approval_is_for_its_own_parameters_and_its_own_requester() -> None:
    other = use(APPROVED, ANN, action_hash(ACTION, canonical({"region": "region-b"})), alive=True)
    assert isinstance(other, No)
    assert other.reason == Reason.MISMATCH
    strange = use(APPROVED, EVE, SHA, alive=True)
    assert isinstance(strange, No)
    assert strange.reason == Reason.OTHERS


def test_a_yes_can_be_taken_back_until_it_is_used() -> None:
    taken_back = _decide(APPROVED, EVE, Event.REJECT)
    assert isinstance(taken_back, Approval)
    assert taken_back.state == State.REJECTED
    late = _decide(replace(APPROVED, state=State.USED), EVE, Event.REJECT)
    assert isinstance(late, No)


def test_what_ran_out_is_not_approved_any_more() -> None:
    late = _decide(PENDING, BOB, Event.APPROVE, alive=False)
    assert isinstance(late, No)
    assert late.reason == Reason.EXPIRED
    assert state_now(PENDING, alive=False) == State.EXPIRED


def test_every_state_has_its_row_and_what_has_ended_stays() -> None:
    assert set(TRANSITIONS) == set(State)
    for state in (State.REJECTED, State.USED, State.EXPIRED):
        assert not TRANSITIONS[state]


def test_the_order_of_parameters_is_none_of_the_hash() -> None:
    assert canonical({"a": 1, "b": [2]}) == canonical({"b": [2], "a": 1})
    assert canonical({"a": 1}) != canonical({"a": "1"})
