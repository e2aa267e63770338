"""Lists: what stands on them, until when, and what is refused."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from router.risk.lists import Entry, Holds, Lists, RiskList, faults

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
NOW_MS = NOW.timestamp() * 1000


def _lists(*entries: Entry, holds: Holds = Holds.VALUES) -> Lists:
    return Lists({"it": RiskList(entries, holds)}, lambda: NOW_MS)


def test_a_value_is_on_its_list_letter_by_letter_and_on_no_other() -> None:
    lists = _lists(Entry("phone-1"))
    assert lists.contains("it", "phone-1")
    assert not lists.contains("it", "Phone-1")
    assert not lists.contains("it", "")
    assert not lists.contains("other", "phone-1")
    assert lists.names == {"it"}


def test_an_entry_ends_at_its_moment() -> None:
    lists = _lists(Entry("a", NOW + timedelta(seconds=1)), Entry("b", NOW))
    assert lists.contains("it", "a")
    assert not lists.contains("it", "b")
    asked = lists.at(NOW_MS - 1), lists.at(NOW_MS + 1000)
    assert [(one("it", "a"), one("it", "b")) for one in asked] == [(True, True), (False, False)]


def test_addresses_are_on_a_list_by_their_range() -> None:
    lists = _lists(
        Entry("192.0.2.0/24"), Entry("2001:db8::/32"), Entry("198.51.100.7"),
        Entry("::ffff:203.0.113.0/120"), holds=Holds.ADDRESSES,
    )  # fmt: skip
    on = ("192.0.2.255", "2001:db8::1", "198.51.100.7", "203.0.113.9", "::ffff:192.0.2.1")
    assert all(lists.contains("it", value) for value in on)
    off = ("192.0.3.0", "2001:db9::1", "198.51.100.8", "198.51.100.7/32", "nowhere", "192.0.2.0/24")
    assert not any(lists.contains("it", value) for value in off)


def test_a_range_that_has_ended_does_not_hide_a_wider_one() -> None:
    narrow = Entry("192.0.2.0/28", NOW - timedelta(hours=1))
    wide = Entry("192.0.2.0/24", NOW + timedelta(hours=1))
    lists = _lists(narrow, wide, holds=Holds.ADDRESSES)
    assert lists.contains("it", "192.0.2.1")
    assert not lists.at(NOW_MS + 2 * 3_600_000)("it", "192.0.2.1")


NETWORKS = st.one_of(
    st.builds(
        lambda number, length: ipaddress.IPv4Network((number << 24 | number, length), strict=False),
        st.integers(1, 9), st.integers(1, 32),
    ),
    st.builds(
        lambda number, length: ipaddress.IPv6Network((number << 120, length), strict=False),
        st.integers(1, 9), st.integers(1, 95),
    ),
)  # fmt: skip


@given(st.sets(NETWORKS, max_size=8), st.data())
def test_ranges_hold_what_the_standard_library_says(
    networks: set[ipaddress.IPv4Network | ipaddress.IPv6Network], data: st.DataObject
) -> None:
    entries = [Entry(str(network)) for network in networks]
    lists = _lists(*entries, holds=Holds.ADDRESSES)
    inside = [network[0] for network in networks] + [network[-1] for network in networks]
    drawn = data.draw(
        st.sampled_from(inside) if inside else st.just(ipaddress.ip_address("10.0.0.1"))
    )
    step = data.draw(st.sampled_from([-1, 0, 1]))
    try:
        address = drawn + step
    except ipaddress.AddressValueError:
        return
    expected = any(address in network for network in networks)
    assert lists.contains("it", str(address)) == expected


@pytest.mark.parametrize(
    ("document", "field", "says"),
    [
        (RiskList((Entry("a"), Entry("a"))), "entries[1].value", "twice"),
        (RiskList((Entry("4111 1111 1111 1111"),)), "entries[0].value", "card token"),
        (RiskList((Entry("192.0.2.1/40"),), Holds.ADDRESSES), "entries[0].value", "no IP address"),
        (RiskList((Entry("a", note="4111111111111111"),)), "entries[0].note", "card"),
    ],
)
def test_a_list_that_is_wrong_is_refused_with_the_place(
    document: RiskList, field: str, says: str
) -> None:
    ((at, why),) = faults(document)
    assert at == field
    assert says in why
    assert "4111" not in why


@pytest.mark.parametrize(
    "document",
    [
        {"entries": [{"value": ""}]},
        {"entries": [{"value": "a", "until": "2026-01-01T00:00:00"}]},
        {"entries": [{"value": "a", "colour": "red"}]},
        {"entries": [{"value": False}]},
        {"holds": "things"},
    ],
)
def test_a_list_of_the_wrong_shape_is_refused(document: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(RiskList).validate_python(document)
