"""A decision reads back from the stream as it was written; anything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.risk.features import Observation
from router.risk.record import Record, decode, encode, observations

_TEXT = st.text(max_size=12)
_TEXTS = st.lists(_TEXT, max_size=3).map(tuple)
_PAIRS = st.lists(st.tuples(_TEXT, st.floats(allow_nan=False, allow_infinity=False)), max_size=3)
_OBSERVATIONS = st.builds(
    Observation, st.integers(0, 2**53), _TEXT, _TEXT, _TEXT, _TEXT, _TEXT, _TEXT, _TEXT,
    st.integers(-(2**53), 2**53), _TEXT,
)  # fmt: skip
_FACTS = st.dictionaries(_TEXT, st.one_of(st.integers(), st.booleans(), _TEXT), max_size=4)
_RECORDS = st.builds(
    Record, _TEXT, _OBSERVATIONS, _FACTS, _TEXT, _TEXTS, _TEXTS, _TEXTS, st.integers(0, 2**53),
    _TEXT, _TEXTS, _PAIRS.map(tuple), _PAIRS.map(tuple),
)  # fmt: skip


@given(st.lists(_RECORDS, max_size=4))
def test_records_read_back_as_they_were_written(records: list[Record]) -> None:
    assert decode(encode(records)) == records
    assert observations(encode(records)) == [item.observation for item in records]


@pytest.mark.parametrize("data", [b"", b"{}x", b"[1]", b"[[]]", b'[{"observation": {"x": 1}}]'])
def test_what_is_no_array_of_records_is_refused(data: bytes) -> None:
    for read in (decode, observations):
        with pytest.raises(ValueError, match="no array of records"):
            read(data)


def test_what_has_no_json_is_refused() -> None:
    seen = Observation(1, "pay", "allow", "u", "", "", "", "", 1, "USD")
    record = Record("d", seen, {"device.id": "\ud800"}, "allow", (), (), (), 1, "", ())
    with pytest.raises(ValueError, match="surrogates"):
        encode([record])
