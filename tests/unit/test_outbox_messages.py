"""Which batches of events share a message, and what names it."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from cells.ledger.model import EventBatch
from cells.outbox.stream import message_id, messages

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
LENGTHS = st.sampled_from([1, 90_000])
SIZES = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 128), LENGTHS))


def batches(sizes: list[tuple[str, int, int]]) -> list[EventBatch]:
    return [
        EventBatch(0, f"evt_{number}", type_, events, "x" * characters, MOMENT)
        for number, (type_, events, characters) in enumerate(sizes)
    ]


@given(SIZES)
def test_each_batch_is_in_one_message_of_its_type_and_in_order(
    sizes: list[tuple[str, int, int]],
) -> None:
    given_batches = batches(sizes)
    made = list(messages(given_batches))
    for type_ in "ab":
        mine = [batch for message in made for batch in message if batch.type == type_]
        assert mine == [batch for batch in given_batches if batch.type == type_]
    for message in made:
        assert len({batch.type for batch in message}) == 1
        assert len(message) == 1 or sum(batch.events for batch in message) <= 128
        assert len(message) == 1 or sum(len(batch.lines) for batch in message) <= 200_000


@given(SIZES)
def test_no_message_could_have_taken_the_next_one_too(sizes: list[tuple[str, int, int]]) -> None:
    made = [message for message in messages(batches(sizes)) if message[0].type == "a"]
    for message, following in itertools.pairwise(made):
        events = sum(batch.events for batch in message) + following[0].events
        lines = [batch.lines for batch in (*message, following[0])]
        assert events > 128 or sum(map(len, lines)) + len(lines) > 200_000


def test_a_message_that_gathers_more_has_another_name() -> None:
    """The stream drops repeats by it: what is new would be lost with the rest."""
    three = batches([("a", 1, 1)] * 3)
    names = {message_id(three[:1]), message_id(three[:2]), message_id(three), message_id(three[1:])}
    assert len(names) == 4
    assert message_id(three) == message_id(list(three))
    assert message_id(three[:1]) == "evt_0"
