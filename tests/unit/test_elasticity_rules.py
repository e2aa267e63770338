"""When a cell gets more processes, and when fewer."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cells.elasticity.model import Felt, Size
from cells.elasticity.rules import after_look, floor_at
from cells.settings import ElasticitySettings
from router.policies.model import Expected, Forecast, PolicyKind
from router.policies.rules import InvalidPolicy, parse

SETTINGS = ElasticitySettings(
    workers_max=8, cpu_percent=60, queue_delay_ms=20, raise_after_s=2, lower_after_s=30
)
IDLE = Felt(cpu_percent=2)
NOON = datetime(2026, 11, 11, 12, tzinfo=UTC)


def looked(size: Size, felt: Felt, count: int, at_s: float, floor: int = 0) -> Size:
    return after_look(size, [felt] * count, floor, SETTINGS, at_s)


def held(felt: Felt, count: int, seconds: float) -> int:
    """Processes after the load was felt for so long, a look a second."""
    size = Size(count)
    for second in range(int(seconds) + 1):
        size = looked(size, felt, count, second)
        if size.workers != count:
            break
    return size.workers


@pytest.mark.parametrize(
    ("felt", "count", "workers"),
    [
        (Felt(cpu_percent=61), 1, 2),
        (Felt(cpu_percent=90), 4, 6),
        # At the most to the double at once.
        (Felt(cpu_percent=100, queue_delay_ms=900), 2, 4),
        (Felt(queue_delay_ms=30), 2, 3),
        (Felt(shed_per_s=0.1), 3, 4),
        (Felt(cpu_percent=100), 8, 8),
        (Felt(cpu_percent=60, queue_delay_ms=20), 3, 3),
    ],
)
def test_a_load_that_lasts_brings_as_many_as_it_asks_for(
    felt: Felt, count: int, workers: int
) -> None:
    assert held(felt, count, 2) == workers


def test_a_load_that_passes_brings_nobody() -> None:
    size = looked(Size(1), Felt(cpu_percent=100), 1, 0)
    size = looked(size, IDLE, 1, 1)
    assert looked(size, Felt(cpu_percent=100), 1, 2).workers == 1


def test_one_leaves_at_a_time_and_only_after_a_long_quiet() -> None:
    assert held(IDLE, 4, 29) == 4
    assert held(IDLE, 4, 30) == 3


def test_nobody_leaves_whom_the_others_could_not_replace() -> None:
    # Two at 25 % would be one at 50 %: below the target, but not by as much as relief asks for.
    assert held(Felt(cpu_percent=25), 2, 100) == 2
    assert held(Felt(cpu_percent=20), 2, 30) == 1


def test_while_one_starts_or_leaves_nothing_is_concluded() -> None:
    assert after_look(Size(3, more_since=0), [Felt(cpu_percent=100)], 0, SETTINGS, 9) == Size(3)


def test_a_forecast_is_a_floor_at_once_and_never_above_the_maximum() -> None:
    assert looked(Size(1), IDLE, 1, 0, floor=4).workers == 4
    assert looked(Size(1), IDLE, 1, 0, floor=99).workers == 8
    size = Size(4)
    for second in range(100):
        size = looked(size, IDLE, 4, second, floor=4)
    assert size.workers == 4


def test_a_forecast_is_in_force_from_before_its_beginning_to_its_end() -> None:
    expected = Expected(NOON, NOON + timedelta(hours=1), 5)
    forecasts = [Forecast((expected,), warm_s=60), Forecast((replace(expected, workers=3),))]
    assert floor_at(forecasts, NOON - timedelta(seconds=121)) == 0
    assert floor_at(forecasts, NOON - timedelta(seconds=90)) == 3
    assert floor_at(forecasts, NOON - timedelta(seconds=60)) == 5
    assert floor_at(forecasts, NOON + timedelta(minutes=59)) == 5
    assert floor_at(forecasts, NOON + timedelta(hours=1)) == 0


def test_a_forecast_that_ends_before_it_begins_is_no_policy() -> None:
    times = [{"begin": "2026-11-11T00:00:00Z", "end": "2026-11-10T00:00:00Z", "workers": 2}]
    with pytest.raises(InvalidPolicy) as caught:
        parse(PolicyKind.FORECAST, json.dumps({"times": times}))
    assert [item.field for item in caught.value.violations] == ["document.times[0].end"]
    naive = [{**times[0], "end": "2026-11-12T00:00:00"}]
    with pytest.raises(InvalidPolicy):
        parse(PolicyKind.FORECAST, json.dumps({"times": naive}))


_FELT = st.builds(
    Felt, st.floats(0, 100), st.floats(0, 60_000), st.sampled_from([0.0, 0.0, 0.0, 5.0])
)


@given(
    st.integers(1, 8),
    st.lists(st.tuples(st.lists(_FELT, min_size=1, max_size=8), st.integers(0, 12)), max_size=40),
)
def test_whatever_is_felt_the_size_stays_within_its_bounds_and_shrinks_by_one(
    begin: int, looks: list[tuple[list[Felt], int]]
) -> None:
    settings = replace(SETTINGS, workers_min=2, lower_after_s=3)
    size = Size(begin)
    for second, (felt, floor) in enumerate(looks):
        before, size = size, after_look(size, felt, floor, settings, second)
        assert max(2, min(floor, 8)) <= size.workers <= 8
        assert size.workers >= before.workers - 1
        grew_by_load = size.workers > max(before.workers, 2, floor)
        assert not grew_by_load or size.workers <= 2 * before.workers


@given(_FELT)
def test_what_a_process_tells_is_what_the_first_one_hears(felt: Felt) -> None:
    assert Felt.from_line(felt.to_line()) == felt
