"""The bank's own book: each effect once by reference, whatever comes how often in what order.

A reference that was reversed, or that the bank called absent in answer to a query, before it came
is closed: should it come yet, it is refused. That is what makes "not found" a promise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from banks.model import Asked, Operation, Said, Status, Why


@dataclass(slots=True)
class Holding:
    """What the bank holds for one reference."""

    reference: str
    short_reference: str
    operation: Operation
    amount: int
    currency: str
    instrument: str = field(repr=False)
    original: str
    status: Status
    why: Why
    code: str
    bank_reference: str
    clearing_date: str
    booked_at: datetime
    # Of an authorisation: what was taken of it; of what was taken: what was given back.
    captured: int = 0
    refunded: int = 0
    # The VOID that undid it.
    voided_by: str = ""
    # What this request itself moved, as seen from us: what its line of the statement says.
    moved: int = 0

    @property
    def taken(self) -> int:
        """What it has moved to us (above zero) or from us, now."""
        if self.status is not Status.APPROVED:
            return 0
        match self.operation:
            case Operation.AUTHORISE:
                return self.captured - self.refunded
            case Operation.PAYOUT:
                return -self.amount
            case _:
                # Captures and refunds are counted at their authorisation, voids at what they undo.
                return 0


@dataclass(frozen=True, slots=True)
class Totals:
    """Money that moved, by the bank's book; positive came to us."""

    taken: int
    authorised: int
    refunded: int
    paid_out: int
    count: int


class Book:
    def __init__(self, name: str) -> None:
        self._name = name
        self._holdings: dict[str, Holding] = {}
        # By instrument, so that funds can be limited.
        self._spent: dict[str, int] = {}
        # Short references lead to long ones, for tongues that carry only those.
        self._short: dict[str, str] = {}
        self._closed: set[str] = set()
        self._serial = 0

    def __iter__(self) -> Iterator[Holding]:
        return iter(self._holdings.values())

    def __len__(self) -> int:
        return len(self._holdings)

    def find(self, reference: str) -> Holding | None:
        found = self._holdings.get(reference)
        return found if found is not None else self._holdings.get(self._short.get(reference, ""))

    def totals(self, currency: str = "") -> Totals:
        rows = [row for row in self if not currency or row.currency == currency]
        approved = [row for row in rows if row.status is Status.APPROVED]
        by = Operation
        return Totals(
            taken=sum(row.taken for row in rows),
            authorised=sum(row.amount for row in approved if row.operation is by.AUTHORISE),
            refunded=sum(row.amount for row in approved if row.operation is by.REFUND),
            paid_out=sum(row.amount for row in approved if row.operation is by.PAYOUT),
            count=len(rows),
        )

    def refuse(self, asked: Asked, why: Why, code: str, day: str, now: datetime) -> Said:
        """A refusal is remembered too: its repetition is refused alike."""
        return self._repeated(asked) or self._write(asked, Status.DECLINED, why, code, day, now)

    def do(self, asked: Asked, day: str, now: datetime, funds: int | None, lenient: bool) -> Said:
        """Has the effect, once. `lenient`: a VOID of what never came is approved."""
        if asked.operation is Operation.QUERY:
            return self.tell(asked)
        repeated = self._repeated(asked)
        if repeated is not None:
            return repeated
        why = self._obstacle(asked, funds, lenient)
        if why is not Why.NONE:
            return self._write(asked, Status.DECLINED, why, "", day, now)
        moved = self._apply(asked)
        return self._write(asked, Status.APPROVED, Why.NONE, "", day, now, moved)

    def pend(self, asked: Asked, day: str, now: datetime) -> Said:
        """Takes it without an outcome; `settle` gives it one."""
        return self._repeated(asked) or self._write(asked, Status.PENDING, Why.NONE, "", day, now)

    def settle(
        self, asked: Asked, code: str, day: str, now: datetime, funds: int | None
    ) -> Said | None:
        """The outcome of what is pending: by the book, or refused with a code."""
        held = self.find(asked.reference)
        if held is None or held.status is not Status.PENDING:
            return None
        del self._holdings[held.reference]
        if code:
            return self._write(asked, Status.DECLINED, Why.TOLD, code, day, now)
        return self.do(asked, day, now, funds, lenient=True)

    def tell(self, asked: Asked) -> Said:
        held = self.find(asked.original)
        if held is None:
            self._closed.add(asked.original)
            return Said(Status.ABSENT, 0, asked.currency, Why.UNKNOWN_ORIGINAL, of=asked.original)
        return self._said(held)

    def _said(self, held: Holding) -> Said:
        return Said(
            status=held.status,
            amount=held.amount,
            currency=held.currency,
            why=held.why,
            code=held.code,
            bank_reference=held.bank_reference,
            clearing_date=held.clearing_date,
            of=held.reference,
            operation=held.operation,
        )

    def _repeated(self, asked: Asked) -> Said | None:
        held = self.find(asked.reference)
        if held is None:
            return None
        same = (asked.operation, asked.amount, asked.currency) == (
            held.operation,
            held.amount,
            held.currency,
        )
        if not same:
            return Said(
                Status.DECLINED, asked.amount, asked.currency, Why.DUPLICATE_DIFFERS,
                clearing_date=held.clearing_date, of=asked.reference,
            )  # fmt: skip
        return self._said(held)

    def _obstacle(self, asked: Asked, funds: int | None, lenient: bool) -> Why:
        if asked.reference in self._closed or asked.short_reference in self._closed:
            return Why.CLOSED
        match asked.operation:
            case Operation.AUTHORISE | Operation.PAYOUT:
                spent = self._spent.get(asked.instrument, 0)
                limited = funds is not None and asked.operation is Operation.AUTHORISE
                return Why.NO_FUNDS if limited and spent + asked.amount > (funds or 0) else Why.NONE
            case Operation.VOID:
                return self._obstacle_to_void(asked, lenient)
            case _:
                return self._obstacle_to_part(asked)

    def _obstacle_to_void(self, asked: Asked, lenient: bool) -> Why:
        held = self.find(asked.original)
        if held is None:
            return Why.NONE if lenient else Why.UNKNOWN_ORIGINAL
        if held.operation is Operation.VOID:
            return Why.UNKNOWN_ORIGINAL
        behind = self._taking(asked.original)
        if held.operation is Operation.REFUND or behind is None:
            return Why.NONE
        # Money was given back already: the reversal would give it a second time.
        undone = held.captured if behind is held else held.moved
        return Why.CLOSED if behind.captured - undone < behind.refunded else Why.NONE

    def _obstacle_to_part(self, asked: Asked) -> Why:
        held = self._taking(asked.original)
        if held is None or held.operation is not Operation.AUTHORISE:
            return Why.UNKNOWN_ORIGINAL
        if held.status is not Status.APPROVED:
            return Why.CLOSED
        if asked.operation is Operation.CAPTURE:
            left = held.amount - held.captured
        else:
            left = held.captured - held.refunded
        return (
            Why.OVER_AMOUNT
            if asked.amount > left or asked.currency != held.currency
            else (Why.NONE)
        )

    def _taking(self, reference: str) -> Holding | None:
        """The authorisation behind a capture's reference, or the one so named."""
        held = self.find(reference)
        if held is not None and held.operation is Operation.CAPTURE:
            return self.find(held.original)
        return held

    def _apply(self, asked: Asked) -> int:
        """Returns what it moved."""
        match asked.operation:
            case Operation.AUTHORISE:
                spent = self._spent.get(asked.instrument, 0)
                self._spent[asked.instrument] = spent + asked.amount
                return asked.amount if asked.capture else 0
            case Operation.CAPTURE:
                held = self._taking(asked.original)
                assert held is not None
                held.captured += asked.amount
                return asked.amount
            case Operation.REFUND:
                held = self._taking(asked.original)
                assert held is not None
                held.refunded += asked.amount
                return -asked.amount
            case Operation.VOID:
                return self._undo(asked)
            case _:
                return -asked.amount

    def _undo(self, asked: Asked) -> int:
        held = self.find(asked.original)
        if held is None:
            self._closed.add(asked.original)
            return 0
        if held.status not in {Status.APPROVED, Status.PENDING}:
            return 0
        was, held.status, held.voided_by = held.status, Status.REVERSED, asked.reference
        if was is Status.PENDING:
            return 0
        match held.operation:
            case Operation.AUTHORISE:
                self._spent[held.instrument] = self._spent.get(held.instrument, 0) - held.amount
                return -held.captured
            case Operation.PAYOUT:
                return held.amount
            case _:
                behind = self._taking(held.original)
                assert behind is not None
                # Undone with its authorisation, perhaps.
                if behind.status is not Status.APPROVED:
                    return 0
                if held.operation is Operation.CAPTURE:
                    behind.captured -= held.amount
                else:
                    behind.refunded -= held.amount
                return -held.moved

    def _write(
        self,
        asked: Asked,
        status: Status,
        why: Why,
        code: str,
        day: str,
        now: datetime,
        moved: int = 0,
    ) -> Said:
        self._serial += 1
        holding = Holding(
            reference=asked.reference,
            short_reference=asked.short_reference,
            operation=asked.operation,
            amount=asked.amount,
            currency=asked.currency,
            instrument=asked.instrument,
            original=asked.original,
            status=status,
            why=why,
            code=code,
            bank_reference=_base36(self._serial, 6),
            clearing_date=day,
            booked_at=now,
            captured=moved if asked.operation is Operation.AUTHORISE else 0,
            moved=moved,
        )
        self._holdings[asked.reference] = holding
        if asked.short_reference:
            self._short[asked.short_reference] = asked.reference
        return self._said(holding)


def _base36(number: int, length: int) -> str:
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    text = ""
    for _ in range(length):
        number, rest = divmod(number, 36)
        text = digits[rest] + text
    return text
