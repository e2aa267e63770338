"""The rules of overload: the adaptive limit, and the level of degradation, under any load."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cells.degradation.rules import Level, Load, after_look, in_force
from router.admission.gradient import Gradient, after_window, begin
from router.admission.rules import SHARES, share_of
from router.policies.model import Concurrency, Criticality, Degradation, Pressure

_SETTINGS = st.builds(
    lambda low, mid, high, smoothing: Concurrency(
        low + mid, low, low + mid + high, smoothing=smoothing
    ),
    st.integers(1, 50), st.integers(0, 50), st.integers(0, 500), st.floats(0.05, 1.0),
)  # fmt: skip
_WINDOWS = st.lists(st.tuples(st.floats(1e-6, 10.0), st.integers(0, 1000)), max_size=60)


def _run(settings: Concurrency, windows: list[tuple[float, int]]) -> list[Gradient]:
    states = [begin(settings)]
    for latency_s, peak in windows:
        states.append(after_window(states[-1], settings, latency_s, peak))
    return states


@given(_SETTINGS, _WINDOWS)
def test_the_limit_stays_within_its_bounds_whatever_is_measured(
    settings: Concurrency, windows: list[tuple[float, int]]
) -> None:
    for state in _run(settings, windows):
        assert settings.minimum <= state.limit <= settings.maximum


@given(_SETTINGS, st.floats(1e-4, 1.0))
def test_it_grows_to_the_top_while_latency_stays_and_callers_use_it(
    settings: Concurrency, latency_s: float
) -> None:
    # A window adds smoothing times the queue of 4: at least 0.2, to 600 at the most.
    states = _run(settings, [(latency_s, settings.maximum)] * 3100)
    assert states[-1].limit == settings.maximum
    limits = [state.limit for state in states]
    assert limits == sorted(limits)


@given(_SETTINGS, st.floats(1e-4, 1.0))
def test_callers_who_do_not_use_it_do_not_raise_it(settings: Concurrency, latency_s: float) -> None:
    assert _run(settings, [(latency_s, 0)] * 50)[-1].limit == settings.initial


@given(_SETTINGS, st.floats(1e-4, 0.1), st.floats(10.0, 100.0))
def test_a_jump_of_latency_lowers_it_as_far_as_its_queue_allows(
    settings: Concurrency, latency_s: float, factor: float
) -> None:
    before = _run(settings, [(latency_s, settings.maximum)] * 30)[-1]
    after = before
    for _ in range(5):
        now = after_window(after, settings, latency_s * factor, settings.maximum)
        # Half of the limit goes in a window at the most, and 4 are let in again.
        floor = max(settings.minimum, (after.limit * 0.5 + 4) * settings.smoothing
                    + after.limit * (1 - settings.smoothing))  # fmt: skip
        assert now.limit >= min(floor, settings.maximum) - 1e-6
        assert now.limit <= after.limit or after.limit <= 8
        after = now


@given(st.floats(1, 10_000))
def test_who_is_more_critical_may_use_more_and_everybody_may_use_some(limit: float) -> None:
    shares = [share_of(limit, item) for item in Criticality]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] >= 1
    assert shares[0] == int(limit)
    assert list(SHARES.values()) == sorted(SHARES.values(), reverse=True)


_LOADS = st.lists(
    st.tuples(st.floats(0.01, 5.0), st.floats(0, 2000), st.floats(0, 200)), max_size=60
)
_PRESSURE = Pressure(
    queue_delay_ms=(50, 200, 500), cpu_percent=(70, 85, 95), raise_after_s=2, lower_after_s=10
)


@given(_LOADS, st.integers(0, 3), st.integers(0, 3))
def test_the_level_moves_by_one_and_never_before_its_time(
    loads: list[tuple[float, float, float]], floor: int, ceiling: int
) -> None:
    policies = [Degradation(level=min(floor, ceiling), level_max=ceiling, pressure=_PRESSURE)]
    level, at_s, moved_at = Level(), 0.0, 0.0
    calm_since: float | None = None
    for step_s, queue_ms, cpu in loads:
        at_s += step_s
        load = Load(queue_ms, cpu)
        now = after_look(level, policies, load, at_s)
        assert abs(now.by_load - level.by_load) <= 1
        assert 0 <= now.by_load <= ceiling
        assert min(floor, ceiling) <= in_force(now, policies) <= 3
        busy = queue_ms > 50 * 0.7 or cpu > 70 * 0.7
        calm_since = None if busy else (at_s if calm_since is None else calm_since)
        if now.by_load > level.by_load:
            assert at_s - moved_at >= 2 or not level.by_load
            assert queue_ms > 50 or cpu > 70
        if now.by_load < level.by_load:
            assert at_s - moved_at >= 10
        if now.by_load != level.by_load:
            moved_at = at_s
        level = now


def test_between_the_thresholds_it_stays_where_it_is() -> None:
    policies = [Degradation(pressure=_PRESSURE)]
    level, at_s = Level(1), 0.0
    for _ in range(1000):
        at_s += 1
        level = after_look(level, policies, Load(queue_delay_ms=45), at_s)
    assert level.by_load == 1


def test_a_lasting_calm_gives_everything_back_and_a_policy_that_goes_at_once() -> None:
    policies = [Degradation(pressure=_PRESSURE)]
    level, at_s, seen = Level(), 0.0, []
    for load in [Load(queue_delay_ms=9999)] * 12 + [Load()] * 60:
        at_s += 1
        level = after_look(level, policies, load, at_s)
        seen.append(level.by_load)
    assert max(seen) == 3
    assert seen[-1] == 0
    assert after_look(Level(3), [Degradation()], Load(), 0).by_load == 0
