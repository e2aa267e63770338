"""What risk reads of the database for a group of requests: one statement for orders, cases and
requests that were executed before, and one for accounts, beside the features.

Plain reads that lock nothing. What matters for money is decided again under the fence: a case is
used up, and an executed request found, in the lane.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
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

# Plans are made anew as lanes' are, but not as often: here it would be a twentieth of all the work.
# PostgreSQL does so by itself when it has analysed a table.
_PLANS_S = 5.0


def _texts(argument: int) -> str:
    return f"string_to_array(${argument}, chr(30))"


def _numbers(argument: int) -> str:
    return f"CAST(string_to_array(${argument}, chr(30)) AS INTEGER[])"


_CASE = "state", "expires_at", "fingerprint", "created_at"
_REQUESTS = (
    "SELECT k.place, now(), i.resource_id IS NOT NULL, o.state, o.payer_id, o.merchant_id,"
    " o.amount, o.currency, "
    + ", ".join(f"{alias}.{name}" for alias in ("c", "r") for name in _CASE)
    + f" FROM unnest({_numbers(1)}, {_numbers(2)}, {_texts(3)}, {_texts(4)}, {_texts(5)},"
    f" {_texts(6)}) AS k(place, slot, order_id, request_id, challenge_id, review_id)"
    " LEFT JOIN orders AS o ON o.slot = k.slot AND o.order_id = k.order_id"
    " LEFT JOIN idempotency AS i ON i.slot = k.slot AND i.idempotency_id = k.request_id"
    " LEFT JOIN risk_cases AS c ON c.slot = k.slot AND c.case_id = k.challenge_id"
    " LEFT JOIN risk_cases AS r ON r.slot = k.slot AND r.case_id = k.review_id"
)
_ACCOUNTS = (
    "SELECT a.account_id, a.balance, a.kind, a.created_at"
    f" FROM unnest({_numbers(1)}, {_texts(2)}) AS k(slot, account_id)"
    " JOIN accounts AS a ON a.slot = k.slot AND a.account_id = k.account_id"
)
_FACTOR = f"SELECT {', '.join(FACTORS.fields)} FROM risk_factors WHERE slot = $1 AND factor_id = $2"


class KnownCase(NamedTuple):
    """A case of the request, as far as screening needs it."""

    state: str
    expires_at: datetime
    fingerprint: str
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
    challenge: KnownCase | None
    review: KnownCase | None


class AccountFacts(NamedTuple):
    balance: int
    kind: str
    created_at: datetime


class RiskReader:
    """Of one screening: its statements come one after the other."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._connection = KeptConnection(engine)
        self._plans_until = 0.0

    async def requests(self, group: Sequence[Asked]) -> list[Found]:
        """In their order. Raises what the database raises."""
        columns: list[list[Any]] = [[] for _ in range(6)]
        for place, asked in enumerate(group):
            slot, scope, key = asked.slot, asked.scope, asked.key
            values = (
                place, slot, asked.order_id, f"{scope}\x1f{key}",
                *case_ids(slot, asked.operation, scope, key),
            )  # fmt: skip
            for column, value in zip(columns, values, strict=True):
                column.append(value)
        arguments = [joined(column) for column in columns[:2]]
        arguments += [joined(column, "TEXT") for column in columns[2:]]
        rows = await self._fetch(_REQUESTS, *arguments)
        by_place = {row[0]: row for row in rows}
        return [_found(asked, by_place[place]) for place, asked in enumerate(group)]

    async def accounts(self, wanted: Iterable[tuple[int, str]]) -> Mapping[str, AccountFacts]:
        """By account ID: (slot, ID) of each."""
        pairs = list(dict.fromkeys(wanted))
        if not pairs:
            return {}
        slots, ids = zip(*pairs, strict=True)
        rows = await self._fetch(_ACCOUNTS, joined(slots), joined(ids, "TEXT"))
        return {row[0]: AccountFacts(row[1], row[2], row[3]) for row in rows}

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
    _, now, executed, state, payer, merchant, amount, currency = row[:8]
    challenge = KnownCase(*row[8:12]) if row[8] else None
    review = KnownCase(*row[12:16]) if row[12] else None
    is_over = executed or (asked.order_id != "" and state != OrderState.OPEN)
    return Found(
        now, is_over, payer or "", merchant or "", amount or 0, currency or "", challenge, review
    )


def known_state(case: KnownCase | None, now: datetime, fingerprint: str) -> CaseState | None:
    """Its state for this request; None where it is another's, or nobody's."""
    if case is None or case.fingerprint != fingerprint:
        return None
    state = CaseState(case.state)
    if case.expires_at > now:
        return state
    return TRANSITIONS[state].get(CaseEvent.EXPIRE, state)
