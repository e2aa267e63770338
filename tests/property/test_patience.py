"""Whether requests are judged one by one or in large groups, by how long they wait to be taken."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cells.risk.patience import Patience

PROMPT, LATE = 0.00005, 0.004


def noted(patience: Patience, waits: list[float], at_s: float = 0.0) -> float:
    for waited_s in waits:
        at_s += 0.001
        patience.note(waited_s, at_s)
    return at_s


@given(st.lists(st.floats(0, 0.0006), max_size=200))
def test_who_has_time_is_never_patient(waits: list[float]) -> None:
    patience = Patience()
    assert not patience.is_wanted(noted(patience, waits))


@given(st.lists(st.floats(0.002, 1.0), min_size=8, max_size=50))
def test_who_is_late_again_and_again_becomes_patient_for_a_while(waits: list[float]) -> None:
    patience = Patience()
    at_s = noted(patience, waits)
    assert patience.is_wanted(at_s)
    assert not patience.is_wanted(at_s + 5.0)


def test_a_pause_of_the_collector_is_not_being_busy() -> None:
    patience = Patience()
    at_s = noted(patience, [PROMPT] * 50 + [0.008] + [PROMPT] * 50)
    assert not patience.is_wanted(at_s)


def test_who_is_still_late_is_patient_again_at_once_and_who_is_not_stays_prompt() -> None:
    busy, free = Patience(), Patience()
    for patience in (busy, free):
        at_s = noted(patience, [LATE] * 8)
        assert patience.is_wanted(at_s)
    later = noted(busy, [LATE], at_s + 5.0)
    assert busy.is_wanted(later)
    later = noted(free, [PROMPT] * 20, at_s + 5.0)
    assert not free.is_wanted(later)
