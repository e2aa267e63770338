"""The model of a region: linear, and never cheaper for more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.scaling import Assumptions, Measured, measured, region

FOUND = Measured(unary_us=500, bulk_us=150, transfer_us=2000, cores=2)


@given(st.integers(1, 1_000_000))
def test_twice_the_orders_are_twice_the_cores(orders: int) -> None:
    one, two = region(orders, FOUND, Assumptions()), region(2 * orders, FOUND, Assumptions())
    assert two.cell_cores == pytest.approx(2 * one.cell_cores)
    assert two.database_cores == pytest.approx(2 * one.database_cores)
    assert two.dollars_an_hour == pytest.approx(2 * one.dollars_an_hour)
    assert two.cells <= 2 * one.cells


def test_a_cost_is_what_the_cores_gave() -> None:
    found = measured(
        {"unary_pay_per_s": 4000, "bulk_pay_per_s": 10_000, "transfer_per_s": 1000}, cores=2
    )
    assert found == FOUND.__class__(unary_us=500, bulk_us=200, transfer_us=2000, cores=2)


@given(st.floats(0.1, 1.0))
def test_the_work_is_shared_and_none_is_lost(utilisation: float) -> None:
    assumed = Assumptions(
        utilisation=utilisation, replication=1, distribution_overhead=1.0, transfers_an_order=0
    )
    it = region(1000, FOUND, assumed)
    assert (it.cell_cores + it.database_cores) * utilisation == pytest.approx(1000 * 2 * 500e-6)
