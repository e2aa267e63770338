"""What a result means to us: ISO 20022's statuses and reasons in our words. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from cells.channels.batch.model import Item, Result
from cells.channels.model import Answer, AnswerReason, Verdict

Reasons = Mapping[str, AnswerReason]

_DONE = frozenset({"ACSC", "ACCC"})
# Received, checked, accepted for settlement, in process: not yet done.
_ON_ITS_WAY = frozenset({"RCVD", "ACTC", "ACCP", "ACSP", "ACWC", "PDNG", "PATC"})
_REFUSED = "RJCT"
_CANCELLED = "CANC"

# Refused for good: the creditor's account or the payment itself.
DECLINED: Reasons = {
    "AC01": AnswerReason.INSTRUMENT_INVALID,
    "AC03": AnswerReason.INSTRUMENT_INVALID,
    "AC04": AnswerReason.INSTRUMENT_INVALID,
    "AC06": AnswerReason.INSTRUMENT_INVALID,
    "AG01": AnswerReason.NOT_PERMITTED,
    "AM02": AnswerReason.LIMIT_EXCEEDED,
    "AM12": AnswerReason.AMOUNT_INVALID,
    "BE01": AnswerReason.INSTRUMENT_INVALID,
    "BE04": AnswerReason.INSTRUMENT_INVALID,
    "FRAD": AnswerReason.SUSPECTED_FRAUD,
    "MS02": AnswerReason.DO_NOT_HONOUR,
    "MS03": AnswerReason.DO_NOT_HONOUR,
    "RC01": AnswerReason.INSTRUMENT_INVALID,
    "RR04": AnswerReason.NOT_PERMITTED,
}
# The channel's own: another one may pay. AM04 and AM23 are our own account's want of money.
FAILED: Reasons = {
    "AB05": AnswerReason.ISSUER_UNAVAILABLE,
    "AB06": AnswerReason.ISSUER_UNAVAILABLE,
    "AB08": AnswerReason.ISSUER_UNAVAILABLE,
    "AG03": AnswerReason.UNSUPPORTED,
    "AM03": AnswerReason.UNSUPPORTED,
    "AM04": AnswerReason.CHANNEL_ERROR,
    "AM23": AnswerReason.CHANNEL_ERROR,
    "CNOR": AnswerReason.ISSUER_UNAVAILABLE,
    "DNOR": AnswerReason.CHANNEL_ERROR,
    "DT02": AnswerReason.CHANNEL_CLOSED,
    "FF01": AnswerReason.CHANNEL_ERROR,
    "NARR": AnswerReason.CHANNEL_ERROR,
    "TM01": AnswerReason.CHANNEL_CLOSED,
    # No original transaction received; from now on it would be refused.
    "NOOR": AnswerReason.NOT_FOUND,
}
# A duplicate: of what, and how that ended, a status request tells.
_DUPLICATES = frozenset({"AM05", "DU01", "DU02", "DU03", "DU04", "DUPL"})


def answer_of(result: Result, sent: Item | None) -> Answer:
    """`sent`: what we had asked for, while we remember it."""
    if sent is not None and result.amount is not None:
        said = (result.amount, result.currency)
        if said != (sent.amount, sent.currency):
            return _answer(Verdict.UNKNOWN, AnswerReason.NOT_AUTHENTIC, result, "another amount")
    if result.status in _DONE:
        return _answer(Verdict.APPROVED, AnswerReason.NONE, result)
    if result.status in _ON_ITS_WAY:
        return _answer(Verdict.PENDING, AnswerReason.NONE, result)
    if result.status == _CANCELLED:
        return _answer(Verdict.FAILED, AnswerReason.NONE, result, "it was cancelled")
    if result.status != _REFUSED:
        return _answer(Verdict.UNKNOWN, AnswerReason.MALFORMED, result, "a status of no meaning")
    if result.reason in _DUPLICATES:
        return _answer(Verdict.UNKNOWN, AnswerReason.CONNECTION_LOST, result, "a duplicate")
    if result.reason in FAILED:
        return _answer(Verdict.FAILED, FAILED[result.reason], result)
    reason = DECLINED.get(result.reason, AnswerReason.DO_NOT_HONOUR)
    return _answer(Verdict.DECLINED, reason, result)


def _answer(verdict: Verdict, reason: AnswerReason, result: Result, message: str = "") -> Answer:
    code = f"{result.status}/{result.reason}" if result.reason else result.status
    return Answer(verdict, reason, code[:32], result.bank_reference, result.clearing_date, message)
