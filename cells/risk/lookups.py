"""What risk reads of the database for a group of requests, in one statement: orders, accounts,
cases, and requests that were executed before.

Plain reads that lock nothing. What matters for money is decided again under the fence: a case is
used up, and an executed request found, in the lane.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy.ext.asyncio import AsyncEngine

from cells.database import KeptConnection, forget_plans
from cells.ledger.records import joined
from cells.orders.model import OrderState
from cells.risk.asking import Asked
from cells.risk.cases.model import TRANSITIONS, CaseEvent, CaseState, Factor
from cells.risk.cases.rules import case_ids
from cells.risk.cases.tables import FACTORS
from router.guard import SlotsHere
from router.ids import Purpose, account_id
from router.slots import slot_of_user

# Plans are made anew as lanes' are, but not as often: here it would be a twentieth of all the work.
# PostgreSQL does so by itself when it has analysed a table.
_PLANS_S = 5.0


def _texts(argument: int) -> str:
    return f"string_to_array(${argument}, chr(30))"


def _numbers(argument: int) -> str:
    return f"CAST(string_to_array(${argument}, chr(30)) AS INTEGER[])"


_CASE = "state", "expires_at", "fingerprint", "created_at"
# Who asks, and in what currency: as the request says, or else as its order does (judging.py).
# A column of empty texts alone comes as NULL.
_USER = "CASE WHEN k.user_id <> '' THEN k.user_id ELSE o.payer_id END"
_CURRENCY = "CASE WHEN k.user_id <> '' THEN k.currency ELSE o.currency END"
_REQUESTS = (
    "SELECT k.place, now(), i.resource_id IS NOT NULL, o.state, o.payer_id, o.merchant_id,"
    " o.amount, o.currency, a.balance, a.created_at, p.kind, "
    + ", ".join(f"{alias}.{name}" for alias in ("c", "r") for name in _CASE)
    + f" FROM unnest({_numbers(1)}, {_numbers(2)}, {_texts(3)}, {_texts(4)}, {_texts(5)},"
    f" {_texts(6)}, {_texts(7)}, {_texts(8)}, {_numbers(9)}, {_texts(10)})"
    " AS k(place, slot, order_id, request_id, challenge_id, review_id, user_id, currency,"
    " payee_slot, payee_account)"
    " LEFT JOIN orders AS o ON o.slot = k.slot AND o.order_id = k.order_id"
    " LEFT JOIN idempotency AS i ON i.slot = k.slot AND i.idempotency_id = k.request_id"
    " LEFT JOIN risk_cases AS c ON c.slot = k.slot AND c.case_id = k.challenge_id"
    " LEFT JOIN risk_cases AS r ON r.slot = k.slot AND r.case_id = k.review_id"
    # LIMIT keeps PostgreSQL, before it has statistics, from reading all accounts for each request.
    " LEFT JOIN LATERAL (SELECT balance, created_at FROM accounts"
    f" WHERE slot = k.slot AND user_id = {_USER} AND currency = {_CURRENCY}"
    f" AND purpose = '{Purpose.BALANCE}' LIMIT 1) AS a ON true"
    " LEFT JOIN accounts AS p ON p.slot = k.payee_slot AND p.account_id = k.payee_account"
)
_FACTOR = f"SELECT {', '.join(FACTORS.fields)} FROM risk_factors WHERE slot = $1 AND factor_id = $2"


_TYPES = ("INTEGER", "INTEGER", *["TEXT"] * 6, "INTEGER", "TEXT")
# No slot is one of these.
_NO_PAYEE = (-1, "")


class KnownCase(NamedTuple):
    """A case of the request, as far as screening needs it."""

    state: str
    expires_at: datetime
    fingerprint: str
    created_at: datetime


class AccountFacts(NamedTuple):
    balance: int
    created_at: datetime


class Found(NamedTuple):
    """What there is of a request."""

    now: datetime
    # Executed before, or an order that nobody can pay any more: the books answer it.
    is_over: bool
    # Of an order, where the request is for one.
    payer_id: str
    merchant_id: str
    amount: int
    currency: str
    # The user's, in the request's currency.
    account: AccountFacts | None
    # Empty where the payee's account is not looked up, or not there.
    payee_kind: str
    challenge: KnownCase | None
    review: KnownCase | None


class RiskReader:
    """Of one screening: its statements come one after the other."""

    def __init__(self, engine: AsyncEngine, here: SlotsHere) -> None:
        self._here = here
        self._connection = KeptConnection(engine)
        self._plans_until = 0.0

    async def requests(self, group: Sequence[Asked]) -> list[Found]:
        """In their order. Raises what the database raises."""
        columns: list[list[Any]] = [[] for _ in _TYPES]
        for place, asked in enumerate(group):
            slot, scope, key = asked.slot, asked.scope, asked.key
            values = (
                place, slot, asked.order_id, f"{scope}\x1f{key}",
                *case_ids(slot, asked.operation, scope, key), asked.user_id, asked.currency,
                *self._payee_of(asked),
            )  # fmt: skip
            for column, value in zip(columns, values, strict=True):
                column.append(value)
        arguments = [joined(*column) for column in zip(columns, _TYPES, strict=True)]
        rows = await self._fetch(_REQUESTS, *arguments)
        by_place = {row[0]: row for row in rows}
        return [_found(asked, by_place[place]) for place, asked in enumerate(group)]

    def _payee_of(self, asked: Asked) -> tuple[int, str]:
        """Slot and account of a transfer's payee, as far as it is at home here: elsewhere it would
        be a read across regions."""
        if asked.payee_id and not asked.order_id:
            slot = slot_of_user(asked.payee_id)
            if self._here.is_home(slot):
                return slot, account_id(asked.payee_id, asked.currency)
        return _NO_PAYEE

    async def factor(self, slot: int, identifier: str) -> Factor | None:
        rows = await self._fetch(_FACTOR, slot, identifier)
        return Factor(*rows[0]) if rows else None

    async def _fetch(self, statement: str, *arguments: Any) -> Sequence[Any]:
        try:
            driver = await self._connection.driver()
            now = time.monotonic()
            if now >= self._plans_until:
                self._plans_until = now + _PLANS_S
                await forget_plans(self._connection)
            rows: Sequence[Any] = await driver.fetch(statement, *arguments)
        except BaseException:
            # Cut off in the middle of something, or gone: the next group has a new one.
            await self._connection.drop()
            raise
        return rows

    async def close(self) -> None:
        await self._connection.give_back()


def _found(asked: Asked, row: Sequence[Any]) -> Found:
    (_, now, executed, state, payer, merchant, amount, currency, balance, opened, payee_kind,
     *cases) = row  # fmt: skip
    account = AccountFacts(balance, opened) if opened else None
    challenge = KnownCase(*cases[:4]) if cases[0] else None
    review = KnownCase(*cases[4:]) if cases[4] else None
    is_over = executed or (asked.order_id != "" and state != OrderState.OPEN)
    return Found(
        now, is_over, payer or "", merchant or "", amount or 0, currency or "", account,
        payee_kind or "", challenge, review,
    )  # fmt: skip


def known_state(case: KnownCase | None, now: datetime, fingerprint: str) -> CaseState | None:
    """Its state for this request; None where it is another's, or nobody's."""
    if case is None or case.fingerprint != fingerprint:
        return None
    state = CaseState(case.state)
    if case.expires_at > now:
        return state
    return TRANSITIONS[state].get(CaseEvent.EXPIRE, state)
