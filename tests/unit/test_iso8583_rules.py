"""What goes into a message, and what an answer's code means."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime

import pytest

from cells.channels.iso8583 import rules
from cells.channels.iso8583.codes import CODES
from cells.channels.iso8583.dialect import Dialect, Inquiry, Meaning, Operations
from cells.channels.model import (
    Answer,
    AnswerReason,
    BankAccount,
    Card,
    Operation,
    Request,
    Verdict,
    short_reference,
)

NOW = datetime(2026, 12, 31, 23, 59, 58, tzinfo=UTC)
CARD = Card("6222021234567890123", "3012", "unionpay")
PURCHASE = Request(Operation.AUTHORISE, "att_1", 1_250, "CNY", CARD, merchant="Bäckerei")
DIALECT = Dialect()


def fields_of(request: Request, dialect: Dialect = DIALECT) -> dict[str, str]:
    spelling = rules.spelling_of(dialect, request)
    assert spelling is not None
    return rules.fields_of(dialect, request, spelling, "000042", NOW)


def answer_of(request: Request, dialect: Dialect = DIALECT, **said: str) -> Answer:
    spelling = rules.spelling_of(dialect, request)
    assert spelling is not None
    types = rules.answer_types(dialect, request, spelling)
    sent = rules.sent_of(request, types, fields_of(request, dialect))
    fields = {name.removeprefix("f"): value for name, value in said.items()}
    return rules.answer_of(dialect, sent, {"t": min(types), **fields}, date(2027, 1, 1))


def query(**changes: str) -> Answer:
    request = Request(Operation.QUERY, "att_q", 0, "CNY", original="att_1", original_amount=1_250)
    dialect = replace(DIALECT, inquiry=Inquiry(not_found_is_final=changes.pop("final", "") != ""))
    return answer_of(request, dialect, **changes)


def test_a_purchase_in_fields() -> None:
    assert fields_of(PURCHASE) == {
        "t": "0200",
        "2": "6222021234567890123",
        "3": "000000",
        "4": "000000001250",
        "7": "1231235958",
        "11": "000042",
        "12": "235958",
        "13": "1231",
        "14": "3012",
        "37": short_reference("att_1"),
        "43": "B?ckerei".ljust(40),
        "49": "156",
        "62": "att_1",
    }


def test_what_is_not_taken_at_once_is_authorised() -> None:
    assert fields_of(replace(PURCHASE, capture=False))["t"] == "0100"


def test_a_reversal_repeats_the_amount_of_what_it_reverses() -> None:
    void = Request(
        Operation.VOID, "att_2", 0, "CNY", original="att_1", original_amount=1_250,
        original_bank_reference="A1",
    )  # fmt: skip
    fields = fields_of(void)
    assert (fields["t"], fields["4"], fields["63"]) == ("0400", "000000001250", "att_1")
    # Of fixed length, whatever it was stripped to.
    assert fields["38"] == "A1    "


def test_money_is_sent_to_an_account() -> None:
    account = BankAccount("6217000010001234567", "102100099996")
    fields = fields_of(Request(Operation.PAYOUT, "att_3", 5, "JPY", account))
    assert (fields["103"], fields["100"], fields["49"]) == (account.number, account.bank, "392")


@pytest.mark.parametrize(
    "request_",
    [
        replace(PURCHASE, amount=0),
        replace(PURCHASE, amount=10**12),
        replace(PURCHASE, currency="XYZ"),
        replace(PURCHASE, instrument=None),
        replace(PURCHASE, instrument=Card("4242 4242", "3012", "visa")),
        replace(PURCHASE, instrument=Card("４２４２４２４２４２４２４２４２", "3012", "visa")),  # noqa: RUF001
    ],
)
def test_what_cannot_be_said_is_not_sent(request_: Request) -> None:
    with pytest.raises(rules.Unsendable) as refused:
        fields_of(request_)
    if isinstance(request_.instrument, Card):
        assert request_.instrument.pan not in str(refused.value)


@pytest.mark.parametrize(
    ("code", "verdict", "reason"),
    [
        ("00", Verdict.APPROVED, AnswerReason.NONE),
        ("05", Verdict.DECLINED, AnswerReason.DO_NOT_HONOUR),
        ("51", Verdict.DECLINED, AnswerReason.INSUFFICIENT_FUNDS),
        ("54", Verdict.DECLINED, AnswerReason.INSTRUMENT_EXPIRED),
        ("43", Verdict.DECLINED, AnswerReason.INSTRUMENT_STOLEN),
        ("09", Verdict.PENDING, AnswerReason.NONE),
        ("91", Verdict.FAILED, AnswerReason.ISSUER_UNAVAILABLE),
        # Whoever answered cannot know what the issuer did.
        ("96", Verdict.UNKNOWN, AnswerReason.MALFORMED),
        ("68", Verdict.UNKNOWN, AnswerReason.TIMED_OUT),
        # In part is not what was asked.
        ("10", Verdict.UNKNOWN, AnswerReason.NOT_AUTHENTIC),
        # Nobody told us.
        ("Z9", Verdict.UNKNOWN, AnswerReason.MALFORMED),
    ],
)
def test_a_code_says_so_much_and_no_more(code: str, verdict: Verdict, reason: AnswerReason) -> None:
    answer = answer_of(PURCHASE, f39=code)
    assert (answer.verdict, answer.reason, answer.code) == (verdict, reason, code)


def test_reasons_stand_with_their_verdicts() -> None:
    failed = {
        AnswerReason.CHANNEL_ERROR,
        AnswerReason.CHANNEL_CLOSED,
        AnswerReason.ISSUER_UNAVAILABLE,
        AnswerReason.UNSUPPORTED,
    }
    for meaning in CODES.values():
        if meaning.verdict is Verdict.FAILED:
            assert meaning.reason in failed
        if meaning.verdict is Verdict.DECLINED:
            assert meaning.reason not in {*failed, AnswerReason.NONE}


def test_a_bank_may_mean_something_else() -> None:
    dialect = Dialect(codes={"98": Meaning(Verdict.FAILED, AnswerReason.ISSUER_UNAVAILABLE)})
    assert answer_of(PURCHASE, dialect, f39="98").verdict is Verdict.FAILED
    assert answer_of(PURCHASE, f39="98").verdict is Verdict.UNKNOWN


def test_a_reversal_of_what_never_came_has_done_its_work() -> None:
    void = Request(Operation.VOID, "att_2", 1_250, "CNY", original="att_1")
    answer = answer_of(void, f39="25")
    assert (answer.verdict, answer.reason) == (Verdict.APPROVED, AnswerReason.NOT_FOUND)
    # "Unable to back out" is the opposite.
    assert answer_of(void, f39="21").verdict is Verdict.FAILED


def test_a_query_tells_of_its_original() -> None:
    approved = query(f39="00", f60="00", f4="000000001250", f38="ABC123", f15="1231")
    assert approved == Answer(Verdict.APPROVED, AnswerReason.NONE, "00", "ABC123", "2026-12-31")
    assert query(f39="00", f60="51").verdict is Verdict.DECLINED
    assert query(f39="00", f60="09").verdict is Verdict.PENDING
    assert query(f39="00", f60="R0").verdict is Verdict.FAILED
    assert query(f39="00", f60="00", f4="000000001251").reason is AnswerReason.NOT_AUTHENTIC
    # The inquiry itself failed, or told nothing: nothing is known.
    assert query(f39="91", f60="00").verdict is Verdict.UNKNOWN
    assert query(f39="00").verdict is Verdict.UNKNOWN
    assert query().verdict is Verdict.UNKNOWN


def test_not_found_is_final_only_by_the_banks_word() -> None:
    assert query(f39="25").verdict is Verdict.UNKNOWN
    final = query(final="yes", f39="25")
    assert (final.verdict, final.reason) == (Verdict.FAILED, AnswerReason.NOT_FOUND)


@pytest.mark.parametrize(
    "said",
    [
        {"ft": "0110"},
        {"f4": "000000001251"},
        {"f49": "840"},
        {"f11": "000043"},
        {"f37": "0" * 12},
        {"f62": "att_2"},
    ],
)
def test_an_answer_that_contradicts_its_request_is_not_believed(said: dict[str, str]) -> None:
    answer = answer_of(PURCHASE, DIALECT, f39="00", **said)
    assert (answer.verdict, answer.reason) == (Verdict.UNKNOWN, AnswerReason.NOT_AUTHENTIC)


def test_what_was_not_asked_has_failed_but_a_query_leaves_it_unknown() -> None:
    for operation in Operation:
        answer = rules.unsent(operation, AnswerReason.NOT_SENT)
        asks = operation is Operation.QUERY
        assert answer.verdict is (Verdict.UNKNOWN if asks else Verdict.FAILED)


def test_a_bank_can_what_its_dialect_spells() -> None:
    assert rules.supported(DIALECT) == frozenset(Operation)
    few = Dialect(operations=Operations(payout=None, refund=None, query=None, reversal=()))
    assert rules.supported(few) == {Operation.AUTHORISE, Operation.CAPTURE}


@pytest.mark.parametrize(
    ("said", "day"),
    [
        ("0101", "2027-01-01"),
        ("1231", "2026-12-31"),
        ("0229", ""),
        ("1332", ""),
        ("", ""),
    ],
)
def test_a_clearing_date_gets_its_year(said: str, day: str) -> None:
    assert rules.clearing_date(said, date(2027, 1, 1)) == day
