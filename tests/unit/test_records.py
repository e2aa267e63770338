"""How columns travel: joined here, split there, or refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cells.accounts.tables import MERCHANTS
from cells.ledger.records import SEPARATOR, RecordType, joined
from cells.orders.model import Order
from cells.orders.tables import ORDERS, orders

TEXTS = st.lists(st.text(st.characters(exclude_characters=SEPARATOR)), min_size=1)


@given(TEXTS)
def test_texts_come_apart_as_they_were(values: list[str]) -> None:
    assert joined(values, "TEXT").split(SEPARATOR) == values


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_integers_come_apart_as_they_were(values: list[int]) -> None:
    assert [int(part) for part in joined(values).split(SEPARATOR)] == values


@given(TEXTS, st.data())
def test_a_value_with_the_separator_is_refused_and_moves_no_other(
    values: list[str], data: st.DataObject
) -> None:
    """It would shift the column against its neighbours: money to another account."""
    place = data.draw(st.integers(0, len(values) - 1))
    values[place] += SEPARATOR
    with pytest.raises(ValueError, match="separator"):
        joined(values, "TEXT")


def test_other_types_travel_as_they_are() -> None:
    assert joined([b"a"], "BYTEA") == [b"a"]


def test_only_rows_that_never_change_are_remembered() -> None:
    assert MERCHANTS.cached_max > 0
    assert ORDERS.cached_max == 0
    with pytest.raises(TypeError, match="cannot be remembered"):
        RecordType(orders, Order, changes=("state",), cached_max=1)
