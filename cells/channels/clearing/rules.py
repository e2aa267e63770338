"""What the clearing house's words mean to us. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from cells.channels.clearing.messages import Status, Told
from cells.channels.model import Answer, AnswerReason, Operation, Request, Verdict

Meanings = Mapping[str, AnswerReason]

# The codes of a clearing house like NetsUnion, as far as banks agree on them; a channel's
# configuration adds its own.
CODES: Meanings = {
    "00": AnswerReason.NONE,
    "05": AnswerReason.DO_NOT_HONOUR,
    "13": AnswerReason.AMOUNT_INVALID,
    "25": AnswerReason.NOT_PERMITTED,
    "14": AnswerReason.INSTRUMENT_INVALID,
    "43": AnswerReason.INSTRUMENT_STOLEN,
    "51": AnswerReason.INSUFFICIENT_FUNDS,
    "54": AnswerReason.INSTRUMENT_EXPIRED,
    "57": AnswerReason.NOT_PERMITTED,
    "62": AnswerReason.NOT_PERMITTED,
    "59": AnswerReason.SUSPECTED_FRAUD,
    "61": AnswerReason.LIMIT_EXCEEDED,
    "90": AnswerReason.CHANNEL_CLOSED,
    "91": AnswerReason.ISSUER_UNAVAILABLE,
    "96": AnswerReason.CHANNEL_ERROR,
}

# Whatever status stands beside them: a duplicate (of what, and how that ended, a query tells), and
# time-outs further on.
_UNCERTAIN: Meanings = {
    "68": AnswerReason.TIMED_OUT,
    "94": AnswerReason.CONNECTION_LOST,
    "98": AnswerReason.TIMED_OUT,
}
_NO_ORIGINAL = "25"


def answer_of(request: Request, told: Told, codes: Meanings) -> Answer:
    """What an answer to our request says of it; of a query's original, if it was one."""
    contradiction = _contradiction(request, told)
    if contradiction:
        return Answer(Verdict.UNKNOWN, AnswerReason.NOT_AUTHENTIC, told.code, message=contradiction)
    if (
        request.operation is Operation.VOID
        and told.status is Status.DECLINED
        and told.code == _NO_ORIGINAL
    ):
        # What the bank does not have is as the reversal is to leave it.
        return _answer(Verdict.APPROVED, AnswerReason.NOT_FOUND, told)
    return outcome_of(told, codes)


def outcome_of(told: Told, codes: Meanings) -> Answer:
    """What a callback says of the request that it names."""
    if told.code in _UNCERTAIN and told.status is not Status.PENDING:
        return _answer(Verdict.UNKNOWN, _UNCERTAIN[told.code], told)
    reason = codes.get(told.code) or CODES.get(told.code, AnswerReason.NONE)
    match told.status:
        case Status.APPROVED:
            return _answer(Verdict.APPROVED, AnswerReason.NONE, told)
        case Status.DECLINED:
            if reason is AnswerReason.NONE:
                reason = AnswerReason.DO_NOT_HONOUR
            return _answer(Verdict.DECLINED, reason, told)
        case Status.FAILED:
            if reason is AnswerReason.NONE:
                reason = AnswerReason.CHANNEL_ERROR
            return _answer(Verdict.FAILED, reason, told)
        case Status.PENDING:
            return _answer(Verdict.PENDING, AnswerReason.NONE, told)
        case Status.REVERSED:
            answer = _answer(Verdict.FAILED, AnswerReason.NONE, told)
            return Answer(
                answer.verdict, answer.reason, answer.code, answer.bank_reference,
                answer.clearing_date, "it was reversed",
            )  # fmt: skip
        case Status.NOT_FOUND:
            return _answer(Verdict.FAILED, AnswerReason.NOT_FOUND, told)


def unsent(operation: Operation, reason: AnswerReason, message: str = "") -> Answer:
    """Of a request that surely has not left. A query speaks of its original, which stays as it
    was: unknown."""
    verdict = Verdict.UNKNOWN if operation is Operation.QUERY else Verdict.FAILED
    return Answer(verdict, reason, message=message)


def lost(reason: AnswerReason, message: str = "") -> Answer:
    """Of a request that may have arrived."""
    return Answer(Verdict.UNKNOWN, reason, message=message)


def _answer(verdict: Verdict, reason: AnswerReason, told: Told) -> Answer:
    return Answer(verdict, reason, told.code, told.bank_reference, told.clearing_date, told.message)


def _contradiction(request: Request, told: Told) -> str:
    if told.reference != request.reference:
        return "another reference"
    if request.operation is Operation.QUERY:
        if told.original != request.original:
            return "another original"
        if told.status is Status.NOT_FOUND:
            return ""
        asked = request.original_amount or told.amount
    else:
        if told.status is Status.NOT_FOUND:
            return "a state that only queries hear"
        asked = request.amount
    if told.amount != asked:
        return "another amount"
    if told.currency != request.currency:
        return "another currency"
    return ""
