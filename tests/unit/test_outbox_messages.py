"""Which batches of events share a message, and what names it."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cells.ledger.book import Book
from cells.ledger.model import EventBatch
from cells.outbox.stream import message_id, messages, sampled, traced

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


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def _line(event_id: str, merchant_id: str, traceparent: str = "") -> str:
    """As the book writes it."""

    book = Book({0: 1}, MOMENT)
    if traceparent:
        place: Any = SimpleNamespace(traceparent=traceparent)
        book.scope = place
    book.tell(0, event_id, "payment.succeeded", merchant_id, '{"n": 1}')
    (changes,) = book.changes()
    (row,) = changes.rows
    return str(row[4])


def _batch_of(*lines: str) -> EventBatch:
    return EventBatch(0, "evt_1", "payment.succeeded", len(lines), "\n".join(lines), MOMENT)


def test_a_message_names_the_trace_of_its_first_event_that_has_one() -> None:
    first, second = f"00-{TRACE}-{1:016x}-00", f"00-{TRACE}-{2:016x}-01"
    batch = _batch_of(
        _line("evt_1", "shop"), _line("evt_2", "shop", first), _line("evt_3", "shop", second)
    )
    assert traced([batch]) == {"traceparent": first}
    assert sampled([batch]) == [("evt_3", second)]
    assert traced([_batch_of(_line("evt_1", "shop"))]) == {}


def test_a_merchants_name_is_taken_for_no_traceparent() -> None:
    evil = f'x","traceparent":"00-{TRACE}-{1:016x}-01","data":'
    batch = _batch_of(_line("evt_1", evil), _line("evt_2", f'{evil}\\"'))
    assert traced([batch]) == {}
    assert sampled([batch]) == []
