"""The day's statement as a bank would write it: what it holds, with the errors it was told to make.

Amounts are signed as seen from us: a purchase is above zero; refunds, voids, payouts and fees
below. Formats and transport are elsewhere; here are the rows. The same book, day, seed and orders
give the same rows, and each error made is told, so that a test knows what reconciliation must find.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Annotated

from pydantic import Field, TypeAdapter

from banks.behaviour import DOCUMENT
from banks.book import Holding
from banks.model import Operation, Status


class RowKind(StrEnum):
    PURCHASE = "purchase"
    REFUND = "refund"
    VOID = "void"
    PAYOUT = "payout"
    FEE = "fee"


class RowStatus(StrEnum):
    BOOKED = "booked"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Row:
    clearing_date: str
    line_no: int
    reference: str
    short_reference: str
    bank_reference: str
    # What a refund or void speaks of.
    original: str
    kind: RowKind
    amount: int
    # What the bank keeps of it, at or below zero.
    fee: int
    currency: str
    status: RowStatus
    booked_at: datetime


class Error(StrEnum):
    """What a bank may get wrong."""

    MISSING = "missing"
    # A row of nothing that we know.
    EXTRA = "extra"
    AMOUNT = "amount"
    STATUS = "status"
    DUPLICATE = "duplicate"
    # In the next day's statement instead.
    SHIFTED = "shifted"
    FEE = "fee"


@DOCUMENT
@dataclass(frozen=True, slots=True)
class Order:
    """An error to make: of one row by its reference, else of `count` rows by chance."""

    error: Error
    reference: str = ""
    count: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    # What is added to the amount (or fee); of EXTRA: the amount.
    by: int = 100
    # Only in this day's statement; empty: in every one.
    day: str = ""


@DOCUMENT
@dataclass(frozen=True, slots=True)
class FeeTier:
    """What the bank keeps of a row of up to `up_to` (None: of any)."""

    basis_points: Annotated[int, Field(ge=0, le=10_000)] = 0
    fixed: Annotated[int, Field(ge=0)] = 0
    at_least: Annotated[int, Field(ge=0)] = 0
    at_most: Annotated[int, Field(ge=0)] | None = None
    up_to: Annotated[int, Field(ge=0)] | None = None
    kinds: tuple[RowKind, ...] = (RowKind.PURCHASE,)


class FileFault(StrEnum):
    """What may be wrong with a file (banks.statement_files), whatever its rows."""

    MISSING = "missing"
    # The day before's, under this day's name.
    STALE = "stale"
    WRONG_DAY = "wrong_day"
    WRONG_TOTAL = "wrong_total"
    WRONG_COUNT = "wrong_count"
    WRONG_HASH_TOTAL = "wrong_hash_total"
    OTHER_CHANNEL = "other_channel"
    TRUNCATED = "truncated"
    # Cut between two lines.
    NO_TAIL = "no_tail"
    CHARSET = "charset"
    GARBAGE = "garbage"
    EMPTY = "empty"
    # A byte has changed on its way, and its hash tells so.
    CORRUPTED = "corrupted"
    # Of XML; of the others, garbage.
    BOMB = "bomb"
    EXTERNAL_ENTITY = "external_entity"


@DOCUMENT
@dataclass(frozen=True, slots=True)
class StatementOrders:
    errors: tuple[Order, ...] = ()
    # The first tier that fits a row.
    fees: tuple[FeeTier, ...] = ()
    # One row a currency and day with the sum of fees, instead of a fee in each row.
    fees_apart: bool = False
    # What is wrong with the file itself, whatever its rows (banks.statement_files.FileFault).
    file_fault: FileFault | None = None
    # So many transfers break, each after so many bytes.
    breaks: Annotated[int, Field(ge=0)] = 0
    break_after: Annotated[int, Field(ge=0)] = 65_536


ORDERS: TypeAdapter[StatementOrders] = TypeAdapter(StatementOrders)


@dataclass(frozen=True, slots=True)
class Made:
    """An error that was made."""

    error: Error
    reference: str
    clearing_date: str
    # What the row should have said, and what it says.
    right: int = 0
    wrong: int = 0


_KINDS = {
    Operation.AUTHORISE: RowKind.PURCHASE,
    Operation.CAPTURE: RowKind.PURCHASE,
    Operation.REFUND: RowKind.REFUND,
    Operation.VOID: RowKind.VOID,
    Operation.PAYOUT: RowKind.PAYOUT,
}


def statement(
    holdings: Iterable[Holding], day: str, orders: StatementOrders, seed: int
) -> tuple[list[Row], list[Made]]:
    """The rows of a clearing date, and the errors in them."""
    before = (date.fromisoformat(day) - timedelta(days=1)).isoformat()
    held = list(holdings)
    rows, made = _with_errors(_true_rows(held, day, orders), day, orders, seed)
    shifted = _shifted(_true_rows(held, before, orders), before, orders, seed)
    rows += [replace(row, clearing_date=day) for row in shifted]
    if orders.fees_apart:
        rows = [*(replace(row, fee=0) for row in rows), *_fee_rows(rows, day)]
    return [replace(row, line_no=number) for number, row in enumerate(rows, start=1)], made


def _true_rows(holdings: Sequence[Holding], day: str, orders: StatementOrders) -> list[Row]:
    found = [
        _row(held, orders)
        for held in holdings
        if held.clearing_date == day and held.moved and held.status is not Status.PENDING
    ]
    found.sort(key=lambda row: (row.booked_at, row.reference))
    return found


def _row(held: Holding, orders: StatementOrders) -> Row:
    kind = _KINDS[held.operation]
    return Row(
        clearing_date=held.clearing_date,
        line_no=0,
        reference=held.reference,
        short_reference=held.short_reference,
        bank_reference=held.bank_reference,
        original=held.original,
        kind=kind,
        amount=held.moved,
        fee=-fee_of(kind, abs(held.moved), orders.fees),
        currency=held.currency,
        status=RowStatus.BOOKED,
        booked_at=held.booked_at,
    )


def fee_of(kind: RowKind, amount: int, tiers: Sequence[FeeTier]) -> int:
    """Rounded half up, once."""
    for tier in tiers:
        if kind in tier.kinds and (tier.up_to is None or amount <= tier.up_to):
            fee = (amount * tier.basis_points + 5_000) // 10_000 + tier.fixed
            fee = max(fee, tier.at_least)
            return fee if tier.at_most is None else min(fee, tier.at_most)
    return 0


def _picks(rows: Sequence[Row], order: Order, seed: int, taken: set[str]) -> list[str]:
    """References of the rows that an order takes: no row is wrong in two ways."""
    if order.reference:
        known = any(row.reference == order.reference for row in rows)
        return [order.reference] if known and order.reference not in taken else []
    free = [row.reference for row in rows if row.reference not in taken]

    def lot(reference: str) -> bytes:
        return hashlib.blake2b(f"{seed}\n{order.error}\n{reference}".encode()).digest()

    return sorted(free, key=lot)[: order.count]


def _plan(rows: Sequence[Row], day: str, orders: StatementOrders, seed: int) -> dict[str, Order]:
    plan: dict[str, Order] = {}
    for order in orders.errors:
        if order.error is Error.EXTRA or (order.day and order.day != day):
            continue
        for reference in _picks(rows, order, seed, set(plan)):
            plan[reference] = order
    return plan


def _with_errors(
    rows: Sequence[Row], day: str, orders: StatementOrders, seed: int
) -> tuple[list[Row], list[Made]]:
    plan = _plan(rows, day, orders, seed)
    given: list[Row] = []
    made: list[Made] = []
    for row in rows:
        order = plan.get(row.reference)
        if order is None:
            given.append(row)
            continue
        wrong = _spoiled(row, order)
        given += wrong
        right = row.fee if order.error is Error.FEE else row.amount
        said = sum(each.fee if order.error is Error.FEE else each.amount for each in wrong)
        made.append(Made(order.error, row.reference, day, right, said))
    for number, order in enumerate(orders.errors):
        if order.error is Error.EXTRA and (not order.day or order.day == day):
            extra = _extra_rows(rows, day, order, f"{seed}\n{number}")
            given += extra
            made += [Made(Error.EXTRA, row.reference, day, 0, row.amount) for row in extra]
    return given, made


def _spoiled(row: Row, order: Order) -> list[Row]:
    match order.error:
        case Error.AMOUNT:
            return [replace(row, amount=row.amount + order.by)]
        case Error.FEE:
            return [replace(row, fee=row.fee - order.by)]
        case Error.STATUS:
            return [replace(row, status=RowStatus.FAILED)]
        case Error.DUPLICATE:
            return [row, row]
        case _:
            # MISSING, and SHIFTED on the day where it belongs.
            return []


def _extra_rows(rows: Sequence[Row], day: str, order: Order, lot: str) -> list[Row]:
    noon = datetime.fromisoformat(f"{day}T12:00:00+00:00")
    currency = rows[0].currency if rows else "CNY"
    found = []
    for number in range(order.count):
        digits = hashlib.blake2b(f"{lot}\n{day}\n{number}".encode(), digest_size=9).hexdigest()
        reference = order.reference or f"extra-{digits}"
        found.append(
            Row(
                day,
                0,
                reference,
                digits[:12].upper(),
                digits[12:18].upper(),
                "",
                RowKind.PURCHASE,
                order.by,
                0,
                currency,
                RowStatus.BOOKED,
                noon,
            )
        )
    return found


def _shifted(rows: Sequence[Row], day: str, orders: StatementOrders, seed: int) -> list[Row]:
    """What the statement of `day` kept for the next."""
    plan = _plan(rows, day, orders, seed)
    late = {reference for reference, order in plan.items() if order.error is Error.SHIFTED}
    return [row for row in rows if row.reference in late]


def _fee_rows(rows: Sequence[Row], day: str) -> list[Row]:
    sums: dict[str, int] = {}
    for row in rows:
        sums[row.currency] = sums.get(row.currency, 0) + row.fee
    end = datetime.fromisoformat(f"{day}T23:59:59+00:00")
    return [
        Row(
            day,
            0,
            f"fees-{day}-{currency}",
            "",
            "",
            "",
            RowKind.FEE,
            total,
            0,
            currency,
            RowStatus.BOOKED,
            end,
        )
        for currency, total in sorted(sums.items())
        if total
    ]
