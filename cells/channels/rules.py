"""What an attempt may become, whatever it is for. Pure.

Unknown stays unknown until it is known (pitfall 21). Once known it stays what it is: a bank that
says otherwise later is written down as a dispute, for people and reconciliation, and moves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from enum import StrEnum

from cells.channels.attempts import OPEN_STATES, Attempt, AttemptState
from cells.channels.model import Answer, AnswerReason, Operation, Verdict, short_reference
from cells.ledger.book import Book
from cells.ledger.model import Account, AccountKind, Key
from cells.ledger.tables import ACCOUNTS
from router.ids import Purpose, channel_account_id

_DISPUTE_CHARACTERS_MAX = 200
_FIELD_CHARACTERS_MAX = 64


class AttemptEvent(StrEnum):
    """A verdict of the bank, or that a VOID of the attempt was approved."""

    APPROVED = "approved"
    DECLINED = "declined"
    FAILED = "failed"
    PENDING = "pending"
    UNKNOWN = "unknown"
    REVERSED = "reversed"


_ENDS = {
    AttemptEvent.APPROVED: AttemptState.APPROVED,
    AttemptEvent.DECLINED: AttemptState.DECLINED,
    AttemptEvent.FAILED: AttemptState.FAILED,
    AttemptEvent.REVERSED: AttemptState.REVERSED,
}
# Anything absent is a contradiction, unless it says nothing (pending, unknown).
TRANSITIONS: Mapping[AttemptState, Mapping[AttemptEvent, AttemptState]] = {
    AttemptState.SENT: {
        **_ENDS,
        AttemptEvent.PENDING: AttemptState.PENDING,
        AttemptEvent.UNKNOWN: AttemptState.UNKNOWN,
    },
    AttemptState.UNKNOWN: {
        **_ENDS,
        AttemptEvent.PENDING: AttemptState.PENDING,
        AttemptEvent.UNKNOWN: AttemptState.UNKNOWN,
    },
    # A bank that has it and does not answer a query still has it.
    AttemptState.PENDING: {
        **_ENDS,
        AttemptEvent.PENDING: AttemptState.PENDING,
        AttemptEvent.UNKNOWN: AttemptState.PENDING,
    },
    AttemptState.APPROVED: {
        AttemptEvent.APPROVED: AttemptState.APPROVED,
        AttemptEvent.REVERSED: AttemptState.REVERSED,
    },
    # Both say: no effect. The first word stays.
    AttemptState.DECLINED: {
        AttemptEvent.DECLINED: AttemptState.DECLINED,
        AttemptEvent.FAILED: AttemptState.DECLINED,
    },
    AttemptState.FAILED: {
        AttemptEvent.FAILED: AttemptState.FAILED,
        AttemptEvent.DECLINED: AttemptState.FAILED,
    },
    AttemptState.REVERSED: {
        AttemptEvent.REVERSED: AttemptState.REVERSED,
        AttemptEvent.DECLINED: AttemptState.REVERSED,
        AttemptEvent.FAILED: AttemptState.REVERSED,
    },
}
# Surely not seen by the bank: the same VOID may go out again.
UNSEEN = frozenset({AnswerReason.NOT_SENT, AnswerReason.CHANNEL_CLOSED})


def is_open(attempt: Attempt) -> bool:
    return attempt.state in OPEN_STATES


def new_attempt(
    slot: int,
    attempt_id: str,
    owner_id: str,
    channel: str,
    operation: Operation,
    amount: int,
    currency: str,
    now: datetime,
    original_id: str = "",
) -> Attempt:
    return Attempt(
        slot, attempt_id, owner_id, channel, operation, original_id, short_reference(attempt_id),
        amount, currency, AttemptState.SENT, AnswerReason.NONE, "", "", "", now, now,
    )  # fmt: skip


def heard(attempt: Attempt, answer: Answer, now: datetime) -> Attempt:
    """The attempt after a bank's answer, late, repeated or contradictory as it may be."""
    answer = _cleaned(answer)
    following = TRANSITIONS[AttemptState(attempt.state)].get(AttemptEvent(answer.verdict))
    if following is None:
        # After its end, "unknown" and "pending" tell nothing.
        return _disputed(attempt, answer) if answer.verdict.is_final else attempt
    if is_open(attempt):
        attempt = attempt._replace(
            state=following, reason=answer.reason, code=answer.code, touched_at=now
        )
    return attempt._replace(
        bank_reference=attempt.bank_reference or answer.bank_reference,
        clearing_date=attempt.clearing_date or answer.clearing_date,
    )


def _cleaned(answer: Answer) -> Answer:
    """What a bank says is foreign: of sane length, and with nothing that a database refuses."""
    return replace(
        answer,
        code=_clean(answer.code),
        bank_reference=_clean(answer.bank_reference),
        clearing_date=_clean(answer.clearing_date),
    )


def _clean(text: str) -> str:
    return "".join(
        digit if digit.isprintable() and not digit.isspace() else "?"
        for digit in text[:_FIELD_CHARACTERS_MAX]
    )


def reversed_(attempt: Attempt, now: datetime) -> Attempt:
    """The attempt after a VOID of it was approved; one that had no effect stays what it is."""
    following = TRANSITIONS[AttemptState(attempt.state)].get(AttemptEvent.REVERSED)
    return attempt if following is None else attempt._replace(state=following, touched_at=now)


def _disputed(attempt: Attempt, answer: Answer) -> Attempt:
    word = f"{answer.verdict}/{answer.code or answer.reason}"
    words = attempt.dispute.split()
    if word in words:
        return attempt
    return attempt._replace(dispute=" ".join([*words, word])[:_DISPUTE_CHARACTERS_MAX])


# Said of a query, these are about the question and not about what it asked after.
_OF_THE_QUESTION = frozenset({*UNSEEN, AnswerReason.CHANNEL_ERROR, AnswerReason.UNSUPPORTED})


def of_original(answer: Answer) -> Answer:
    """What a query's answer says of what it asked after: nothing, when the query itself failed."""
    if answer.verdict == Verdict.FAILED and answer.reason in _OF_THE_QUESTION:
        return Answer(Verdict.UNKNOWN, answer.reason, answer.code)
    return answer


def as_repeatable(operation: str, answer: Answer) -> Answer:
    """A VOID that the bank has surely not seen goes out again, as the same: it is still open."""
    if operation == Operation.VOID and answer.verdict == Verdict.FAILED and answer.reason in UNSEEN:
        return Answer(Verdict.UNKNOWN, answer.reason, answer.code)
    return answer


def channel_account_key(slot: int, channel: str, currency: str) -> Key:
    return Key(ACCOUNTS, slot, channel_account_id(slot, channel, currency))


def channel_account(book: Book, slot: int, channel: str, currency: str) -> Account:
    """What lies with a bank; its `user_id` is the channel's name. Made when first needed."""
    identifier = channel_account_id(slot, channel, currency)
    return book.account(identifier) or book.new_account(
        slot, identifier, channel, currency, Purpose.CHANNEL, AccountKind.SYSTEM
    )
