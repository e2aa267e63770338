"""The bank's own book against an auditor that only adds up what was said."""

from __future__ import annotations

from datetime import UTC, date, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from banks.book import Book
from banks.model import Asked, Operation, Status
from banks.statement import Error, FeeTier, Order, RowKind, StatementOrders, fee_of, statement

DAY = "2026-11-24"
NOW = datetime(2026, 11, 24, 9, tzinfo=UTC)
_PARTS = [Operation.CAPTURE, Operation.REFUND, Operation.VOID]


@st.composite
def histories(draw: st.DrawFn) -> list[Asked]:
    """One or two authorisations or payouts, and much that speaks of them and of one another."""
    first = [
        Asked(
            draw(st.sampled_from([Operation.AUTHORISE, Operation.AUTHORISE, Operation.PAYOUT])),
            f"r{number}",
            draw(st.sampled_from([300, 400])),
            "CNY",
            draw(st.sampled_from(["6201", "6202"])),
            capture=draw(st.booleans()),
        )
        for number in range(draw(st.sampled_from([1, 1, 2])))
    ]
    rest = [
        Asked(
            draw(st.sampled_from(_PARTS)),
            f"r{number}",
            draw(st.sampled_from([100, 200])),
            "CNY",
            original=f"r{min(draw(st.sampled_from([0, 0, 1, 2, 3, 4])), number - 1)}",
        )
        for number in range(len(first), len(first) + draw(st.integers(3, 10)))
    ]
    return first + rest


def played(asked: list[Asked], funds: int | None = None) -> Book:
    book = Book("bank")
    for each in asked:
        book.do(each, DAY, NOW, funds, lenient=True)
    return book


@settings(max_examples=300)
@given(histories())
def test_what_the_lines_move_is_what_the_book_holds(asked: list[Asked]) -> None:
    book = played(asked)
    rows, made = statement(book, DAY, StatementOrders(), seed=1)
    assert made == []
    assert sum(row.amount for row in rows) == book.totals().taken
    for held in book:
        assert 0 <= held.refunded <= max(held.captured, 0)
        assert held.captured <= held.amount


@given(histories(), st.data())
def test_any_repetition_says_the_same_and_moves_nothing(
    asked: list[Asked], data: st.DataObject
) -> None:
    book = played(asked)
    writing = [each for each in asked if each.operation is not Operation.QUERY]
    before = book.totals()
    if writing:
        again = data.draw(st.sampled_from(writing))
        said = book.do(again, DAY, NOW, None, lenient=True)
        assert book.do(again, DAY, NOW, None, lenient=True) == said
    assert book.totals() == before


@given(histories(), st.integers(0, 700))
def test_no_instrument_gives_more_than_it_has(asked: list[Asked], funds: int) -> None:
    book = played(asked, funds)
    for instrument in ("6201", "6202"):
        held = [row for row in book if row.instrument == instrument]
        spent = [
            row.amount
            for row in held
            if row.operation is Operation.AUTHORISE and row.status is Status.APPROVED
        ]
        assert sum(spent) <= funds


@given(
    st.integers(0, 40),
    st.lists(
        st.builds(
            Order, error=st.sampled_from(Error), count=st.integers(0, 4), by=st.integers(1, 900)
        ),
        max_size=6,
    ),
    st.integers(0, 5),
)
def test_every_error_of_a_statement_is_told_and_explains_its_sum(
    count: int, errors: list[Order], seed: int
) -> None:
    asked = [
        Asked(Operation.AUTHORISE, f"r{number}", 100 + number, "CNY") for number in range(count)
    ]
    book = played(asked)
    orders = StatementOrders(tuple(errors), (FeeTier(basis_points=60),))
    rows, made = statement(book, DAY, orders, seed)
    assert (rows, made) == statement(book, DAY, orders, seed)
    off = sum(error.wrong - error.right for error in made if error.error is not Error.FEE)
    assert sum(row.amount for row in rows) == book.totals().taken + off
    assert [row.line_no for row in rows] == list(range(1, len(rows) + 1))
    wrong = [error.reference for error in made if error.error is not Error.EXTRA]
    assert len(wrong) == len(set(wrong))
    # What was shifted stands in the next day's statement, and nowhere else.
    shifted = {error.reference for error in made if error.error is Error.SHIFTED}
    tomorrow = date.fromisoformat(DAY).replace(day=25).isoformat()
    next_rows, _ = statement(book, tomorrow, StatementOrders(tuple(errors)), seed)
    known = {held.reference for held in book}
    assert {row.reference for row in next_rows if row.reference in known} == shifted


def test_fees_follow_their_table() -> None:
    table = (
        FeeTier(basis_points=100, up_to=10_000, at_least=5),
        FeeTier(basis_points=60, at_most=2_000),
        FeeTier(fixed=200, kinds=(RowKind.PAYOUT,)),
    )
    assert [fee_of(RowKind.PURCHASE, amount, table) for amount in (100, 10_000, 10_001)] == [
        5,
        100,
        60,
    ]
    assert fee_of(RowKind.PURCHASE, 9_000_000, table) == 2_000
    assert fee_of(RowKind.PAYOUT, 9_000_000, table) == 200
    assert fee_of(RowKind.REFUND, 100, table) == 0
