"""Batch files: what we write a bank reads as we meant it, and nothing that it writes crashes us."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banks.batch_files import (
    FixedPlaces,
    ResultLine,
    read_fixed,
    read_pain,
    write_fixed,
    write_pain,
)
from cells.channels.batch.fixed import FixedBatchLayout, FixedFormat
from cells.channels.batch.model import BadFile, Debtor, Format, Item, Result, Unwritable
from cells.channels.batch.pain import PainFormat
from cells.channels.batch.rules import DECLINED, FAILED, answer_of
from cells.channels.model import AnswerReason, BankAccount, Verdict

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)
PAIN = PainFormat(Debtor("Cellpay & Söhne", "123", "CPAYCNSHXXX"))
FIXED = FixedFormat(FixedBatchLayout())
PLACES = FixedPlaces()

_word = st.text("ABCXYZ0189", min_size=1, max_size=30)
_items = st.lists(
    st.builds(
        Item,
        reference=_word,
        amount=st.integers(1, 10**12),
        currency=st.sampled_from(["CNY", "JPY", "KWD"]),
        account=st.builds(
            BankAccount, number=_word, bank=st.text("AB1", max_size=16),
            holder=st.text(max_size=40),
        ),
    ),
    max_size=5,
)  # fmt: skip
_results = st.lists(
    st.builds(
        ResultLine,
        reference=_word,
        status=st.sampled_from(["ACSC", "RJCT", "PDNG"]),
        reason=st.sampled_from(["", "AC01", "NOOR"]),
        bank_reference=st.text("AB1", max_size=20),
        amount=st.integers(0, 10**12),
        currency=st.sampled_from(["CNY", "JPY"]),
        clearing_date=st.sampled_from(["", "2026-11-24"]),
    ),
    max_size=5,
)


@given(_items)
def test_the_bank_reads_what_we_wrote(items: list[Item]) -> None:
    for form, read in ((PAIN, read_pain), (FIXED, lambda data: read_fixed(data, PLACES))):
        writable = [item for item in items if _fits(form, item)]
        batch = read(form.write_payouts("cella-1", writable, NOW))
        assert batch.message_id == "cella-1"
        assert [
            (asked.reference, asked.amount, asked.currency, asked.instrument)
            for asked in batch.asked
        ] == [
            (item.reference, item.amount, item.currency, item.account.number) for item in writable
        ]
        asked = read(form.write_queries("q-1", [item.reference for item in items], NOW))
        assert [one.original for one in asked.asked] == [item.reference for item in items]


def _fits(form: Format, item: Item) -> bool:
    try:
        form.check(item)
    except Unwritable:
        return False
    return True


@given(_results, st.sampled_from(["", "RJCT"]))
def test_we_read_what_the_bank_wrote(lines: list[ResultLine], status: str) -> None:
    for form, data in (
        (PAIN, write_pain("cella-1", status, lines)),
        (FIXED, write_fixed("cella-1", status, lines, PLACES)),
    ):
        results = form.read_results(data)
        assert (results.message_id, results.status) == ("cella-1", status)
        assert list(results.items) == [
            Result(
                line.reference, line.status, line.reason, line.bank_reference, line.amount,
                line.currency, line.clearing_date,
            )
            for line in lines
        ]  # fmt: skip


@given(
    _results,
    st.integers(0, 10_000),
    st.binary(max_size=12) | st.sampled_from([b"<a>", b"<!DOCTYPE x>", b"&e;", b"\n", b"-", b"9"]),
    st.integers(0, 80),
)
def test_no_change_of_a_result_file_crashes_its_reader(
    lines: list[ResultLine], at: int, insert: bytes, remove: int
) -> None:
    for form, data in (
        (PAIN, write_pain("cella-1", "", lines)),
        (FIXED, write_fixed("cella-1", "", lines, PLACES)),
    ):
        at %= len(data)
        for changed in (data[:at] + insert + data[at + remove :], insert):
            try:
                form.read_results(changed)
            except BadFile:
                continue


BOMB = (
    b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    b'<Document xmlns="urn:iso:std:iso:20022:tech:xsd:pain.002.001.10">&b;</Document>'
)


@pytest.mark.parametrize(
    "data",
    [
        b"", BOMB, b"<Document/>", BOMB.replace(b"&b;", b"").split(b"]>")[1],
        write_pain("m", "", []).replace(b"pain.002", b"pain.001"),
        write_pain("m", "", [ResultLine("", "ACSC")]),
        write_pain("m", "", [ResultLine("r", "")]),
        write_pain("m", "", [ResultLine("r", "ACSC", amount=-1, currency="XXX")]),
    ],
)  # fmt: skip
def test_a_hostile_result_is_refused(data: bytes) -> None:
    with pytest.raises(BadFile):
        PAIN.read_results(data)


def test_a_cut_file_of_fixed_length_is_refused() -> None:
    data = write_fixed("m", "", [ResultLine("r", "ACSC"), ResultLine("s", "ACSC")], PLACES)
    lines = data.splitlines(keepends=True)
    for kept in ([0, 1, 3], [0, 1, 2], [1, 2, 3], [0], [0, 1, 1, 2, 3], [3]):
        with pytest.raises(BadFile):
            FIXED.read_results(b"".join(lines[number] for number in kept))


def test_every_reason_means_something_once() -> None:
    assert not set(DECLINED) & set(FAILED)
    sent = Item("r", 5, "CNY", BankAccount("1", "b"))
    for status in ("ACSC", "RJCT", "PDNG", "CANC", "????"):
        for reason in ("", "AC01", "AM05", "NOOR", "????"):
            answer = answer_of(Result("r", status, reason, "b", 5, "CNY"), sent)
            lie = answer_of(Result("r", status, reason, "b", 6, "CNY"), sent)
            assert lie.verdict is Verdict.UNKNOWN
            assert lie.reason is AnswerReason.NOT_AUTHENTIC
            assert (answer.verdict is Verdict.APPROVED) == (status == "ACSC")
