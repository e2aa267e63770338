"""What a request is in fields, and what the fields of an answer mean. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache

from iso4217 import Currency

from cells.channels.iso8583.codes import CODES, REVERSAL_CODES, UNLISTED
from cells.channels.iso8583.dialect import Dialect, Meaning, Spelling
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

_AMOUNT_MAX = 10**12 - 1
_APPROVED = "00"
_NOT_FOUND = "25"
_NAME_LENGTH = 40
_HALF_A_YEAR_DAYS = 182
# 0 request, 1 its repeat: both are answered by 1; 2 advice, 3 its repeat: by 3.
_ANSWERS = {"0": "10", "1": "10", "2": "30", "3": "30"}


class Unsendable(Exception):
    """A request that cannot be put into this bank's words. Never holds a card's number."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What the answer is held against."""

    request: Request
    # The types that may answer; a reversal's repeats have another than its first.
    answered_by: frozenset[str]
    # As in the request.
    stan: str
    rrn: str
    amount: str
    currency: str


def supported(dialect: Dialect) -> frozenset[Operation]:
    spelt = dialect.operations
    known = {
        Operation.AUTHORISE: spelt.authorise is not None or spelt.purchase is not None,
        Operation.CAPTURE: spelt.capture is not None,
        Operation.VOID: bool(spelt.reversal),
        Operation.REFUND: spelt.refund is not None,
        Operation.PAYOUT: spelt.payout is not None,
        Operation.QUERY: spelt.query is not None,
    }
    return frozenset(operation for operation, can in known.items() if can)


def spelling_of(dialect: Dialect, request: Request) -> Spelling | None:
    spelt = dialect.operations
    match request.operation:
        case Operation.AUTHORISE:
            return spelt.purchase if request.capture else spelt.authorise
        case Operation.CAPTURE:
            return spelt.capture
        case Operation.VOID:
            return Spelling(spelt.reversal[0]) if spelt.reversal else None
        case Operation.REFUND:
            return spelt.refund
        case Operation.PAYOUT:
            return spelt.payout
        case Operation.QUERY:
            return spelt.query


def answer_type(mti: str) -> str:
    """0200 and 0201 are answered by 0210, 0420 and 0421 by 0430."""
    return mti[:2] + _ANSWERS.get(mti[2], "10")


def answer_types(dialect: Dialect, request: Request, spelling: Spelling) -> frozenset[str]:
    if request.operation is Operation.VOID:
        return frozenset(answer_type(mti) for mti in dialect.operations.reversal)
    return frozenset((answer_type(spelling.mti),))


def fields_of(
    dialect: Dialect, request: Request, spelling: Spelling, stan: str, now: datetime
) -> dict[str, str]:
    """The fields of a request, all but the MAC. Raises Unsendable."""
    moment = _moment(now.replace(microsecond=0))
    fields = {
        "t": spelling.mti,
        "3": spelling.processing,
        "7": moment,
        "11": stan,
        "12": moment[4:],
        "13": moment[:4],
        "37": short_reference(request.reference),
        "49": numeric_currency(request.currency),
        **dialect.constants,
        dialect.reference_field: request.reference,
    }
    amount = request.amount
    if request.operation is Operation.VOID:
        amount = request.original_amount or request.amount
    if request.operation is not Operation.QUERY:
        if not 0 < amount <= _AMOUNT_MAX:
            raise Unsendable("an amount that field 4 cannot hold")
        fields["4"] = f"{amount:012}"
    _add_instrument(fields, request)
    if request.original:
        fields[dialect.original_field] = request.original
        if request.operation is Operation.VOID:
            # Without the original's STAN and time, which did not outlive the process that sent it:
            # the bank finds it by the reference.
            fields["90"] = "0" * 42
        if request.original_bank_reference and dialect.bank_reference_field == "38":
            fields["38"] = request.original_bank_reference[:6].ljust(6)
    if request.merchant:
        fields["43"] = _plain(request.merchant)[:_NAME_LENGTH].ljust(_NAME_LENGTH)
    return fields


@lru_cache(maxsize=4)
def _moment(now: datetime) -> str:
    return now.strftime("%m%d%H%M%S")


def _add_instrument(fields: dict[str, str], request: Request) -> None:
    match request.instrument:
        case Card(pan=pan, expiry=expiry):
            if not (pan.isascii() and pan.isdigit() and 8 <= len(pan) <= 19):
                raise Unsendable("a card's number that is none")
            fields["2"] = pan
            if expiry:
                fields["14"] = expiry
        case BankAccount(number=number, bank=bank):
            fields["103"] = number
            fields["100"] = bank
        case None:
            if request.operation in {Operation.AUTHORISE, Operation.PAYOUT}:
                raise Unsendable("no card and no account")


@lru_cache(maxsize=256)
def numeric_currency(currency: str) -> str:
    try:
        number = Currency(currency).number
    except ValueError:
        raise Unsendable("a currency that is none") from None
    return f"{number:03}"


def _plain(name: str) -> str:
    """Field 43 is printable ASCII; what is not becomes a question mark."""
    ascii_name = name.encode("ascii", "replace").decode("ascii")
    return "".join(letter if letter.isprintable() else "?" for letter in ascii_name)


def match_key(dialect: Dialect, fields: Mapping[str, str]) -> str:
    """By what an answer finds its request. Network messages have no reference."""
    return "|".join([fields.get(name, "") for name in dialect.match])


def sent_of(request: Request, answered_by: frozenset[str], fields: Mapping[str, str]) -> Sent:
    return Sent(request, answered_by, fields["11"], fields["37"], fields.get("4", ""), fields["49"])


def answer_of(dialect: Dialect, sent: Sent, fields: Mapping[str, str], today: date) -> Answer:
    """What a decoded and authentic answer says. What contradicts the request is not believed."""
    if fields["t"] not in sent.answered_by:
        return _untrue("an answer of another type")
    wrong = _contradiction(dialect, sent, fields)
    if wrong:
        return _untrue(wrong, fields.get("39", ""))
    code = fields.get("39", "")
    if not code:
        return Answer(Verdict.UNKNOWN, AnswerReason.MALFORMED, message="no response code")
    if sent.request.operation is Operation.QUERY:
        return _told(dialect, sent, fields, code, today)
    if sent.request.operation is Operation.VOID:
        meaning = dialect.reversal_codes.get(code) or REVERSAL_CODES.get(code, UNLISTED)
    else:
        meaning = _meaning(dialect, code)
    return _answer(dialect, meaning, code, fields, today)


def _meaning(dialect: Dialect, code: str) -> Meaning:
    return dialect.codes.get(code) or CODES.get(code, UNLISTED)


def _answer(
    dialect: Dialect, meaning: Meaning, code: str, fields: Mapping[str, str], today: date
) -> Answer:
    return Answer(
        verdict=meaning.verdict,
        reason=meaning.reason,
        code=code,
        bank_reference=fields.get(dialect.bank_reference_field, "").strip(),
        clearing_date=clearing_date(fields.get("15", ""), today),
    )


def _told(
    dialect: Dialect, sent: Sent, fields: Mapping[str, str], code: str, today: date
) -> Answer:
    """An inquiry's answer: about the message that was asked for."""
    inquiry = dialect.inquiry
    if code == _NOT_FOUND:
        verdict = Verdict.FAILED if inquiry.not_found_is_final else Verdict.UNKNOWN
        return Answer(verdict, AnswerReason.NOT_FOUND, code)
    if code != _APPROVED:
        reason = _meaning(dialect, code).reason
        return Answer(Verdict.UNKNOWN, reason, code, message="the inquiry was refused")
    original = fields.get(inquiry.code_field, "").strip()
    if original == inquiry.reversed_code:
        return Answer(Verdict.FAILED, AnswerReason.NONE, original, message="it was reversed")
    if not original:
        return Answer(Verdict.UNKNOWN, AnswerReason.MALFORMED, code, message="no code of it")
    said = fields.get("4", "")
    asked = sent.request.original_amount
    if asked and said.isdigit() and int(said) != asked:
        return _untrue("another amount", original)
    return _answer(dialect, _meaning(dialect, original), original, fields, today)


def _contradiction(dialect: Dialect, sent: Sent, fields: Mapping[str, str]) -> str:
    if fields.get("11", sent.stan) != sent.stan or fields.get("37", sent.rrn) != sent.rrn:
        return "another message's numbers"
    if sent.amount and fields.get("4", sent.amount) != sent.amount:
        return "another amount"
    if fields.get("49", sent.currency) != sent.currency:
        return "another currency"
    mine = sent.request.reference
    if fields.get(dialect.reference_field, mine) != mine:
        return "another reference"
    return ""


def _untrue(message: str, code: str = "") -> Answer:
    return Answer(Verdict.UNKNOWN, AnswerReason.NOT_AUTHENTIC, code, message=message)


def clearing_date(month_day: str, today: date) -> str:
    """Field 15 (MMDD) with the year that brings it within half a year of today; else empty."""
    if len(month_day) != 4 or not (month_day.isascii() and month_day.isdigit()):
        return ""
    month, day = int(month_day[:2]), int(month_day[2:])
    found: list[date] = []
    for year in (today.year - 1, today.year, today.year + 1):
        try:
            found.append(date(year, month, day))
        except ValueError:
            continue
    near = [each for each in found if abs((each - today).days) <= _HALF_A_YEAR_DAYS]
    return near[0].isoformat() if near else ""


def unsent(operation: Operation, reason: AnswerReason, message: str = "") -> Answer:
    """What was not asked has failed; an outcome that was not asked for is as unknown as ever."""
    verdict = Verdict.UNKNOWN if operation is Operation.QUERY else Verdict.FAILED
    return Answer(verdict, reason, message=message)
