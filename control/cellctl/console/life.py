"""A payment's life: all that the database knows of one ID, in the order in which it happened.

Reads only, from whichever node answers; nothing here locks. Finds orders, payments, refunds,
charges, payouts, transfers, accounts and movements by their ID, and what is behind an event, a
delivery, an attempt at a bank, or a decision of risk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control.cellctl.console.risk import rows_of_subject
from control.cellctl.show import decimal_amount
from router.ids import Kind, account_id, collection_account_id, kind_of_id, slot_of_id
from router.tracing.rules import parse_traceparent

_ENTRIES_MAX = 500
_TABLES = {
    Kind.ORDER: ("orders", "order_id"),
    Kind.PAYMENT: ("payments", "payment_id"),
    Kind.REFUND: ("refunds", "refund_id"),
    Kind.TRANSFER: ("transfers", "transfer_id"),
    Kind.ACCOUNT: ("accounts", "account_id"),
    Kind.MOVEMENT: ("movements", "movement_id"),
    Kind.DELIVERY: ("deliveries", "delivery_id"),
    Kind.BRANCH: ("branches", "branch_id"),
    Kind.CHARGE: ("charges", "charge_id"),
    Kind.PAYOUT: ("payouts", "payout_id"),
    Kind.ATTEMPT: ("attempts", "attempt_id"),
    Kind.ADJUSTMENT: ("adjustments", "adjustment_id"),
    Kind.CHALLENGE: ("risk_cases", "case_id"),
    Kind.REVIEW: ("risk_cases", "case_id"),
    Kind.DECISION: ("risk_decisions", "decision_id"),
}
_OF_RISK = frozenset({Kind.CHALLENGE, Kind.REVIEW, Kind.DECISION})
# Columns that hold what nobody needs to see here.
_HIDDEN = frozenset({"secret", "request_hash", "body", "facts", "fingerprint"})
Row = Mapping[str, Any]


class NotFound(Exception):
    """There is nothing of this ID."""


async def life_of(engine: AsyncEngine, identifier: str) -> dict[str, Any]:
    """Its kind, slot, homes and steps, oldest first. Raises NotFound; ValueError: it is no ID."""
    kind, slot = kind_of_id(identifier), slot_of_id(identifier)
    async with engine.connect() as connection:
        steps = await _Search(connection).steps(kind, slot, identifier)
        homes = await _all(
            connection,
            "SELECT epoch, owner, operation_id, assigned_at FROM slot_history"
            " WHERE slot = :slot ORDER BY epoch",
            {"slot": slot},
        )
    if not steps:
        raise NotFound(identifier)
    return {
        "id": identifier,
        "kind": kind.name.lower(),
        "slot": slot,
        # Who owned the slot at which epoch: an entry's epoch says which cell wrote it.
        "homes": [{name: _shown(value) for name, value in home.items()} for home in homes],
        "steps": sorted(steps, key=lambda step: step["time"]),
        "traces": traces_of(steps),
    }


def traces_of(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """The IDs of the traces that its events carry, oldest first. Whether a trace was kept is known
    by who stores them."""
    found: dict[str, None] = {}
    for step in sorted(steps, key=lambda step: step["time"]):
        parent = parse_traceparent(str(step["detail"].get("traceparent", "")))
        if parent is not None:
            found[parent.trace_id] = None
    return list(found)


class _Search:
    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def steps(self, kind: Kind, slot: int, identifier: str) -> list[dict[str, Any]]:
        if kind not in _TABLES:
            return await self._of_event(identifier) if kind == Kind.EVENT else []
        row = await self._row(kind, slot, identifier)
        if row is None:
            # A refund is a payment's, or a charge's.
            return await self._of_refund(slot, identifier) if kind == Kind.REFUND else []
        if kind in _OF_RISK:
            return await self._of_risk(slot, kind, row)
        if kind == Kind.CHARGE:
            return await self._of_charge(row)
        if kind == Kind.PAYOUT:
            return await self._of_payout(row)
        if kind == Kind.ATTEMPT:
            return await self._owner_of(row)
        if kind in {Kind.ORDER, Kind.PAYMENT, Kind.REFUND}:
            return await self._of_order(slot, kind, row)
        if kind == Kind.DELIVERY:
            found = await self._of_event(row["event_id"])
            return [*found, _step(row["created_at"], "delivery", row)]
        if kind == Kind.TRANSFER:
            return await self._of_transfer(row)
        if kind == Kind.BRANCH:
            transfer = await self._row(
                Kind.TRANSFER, slot_of_id(row["transfer_id"]), row["transfer_id"]
            )
            return await self._of_transfer(transfer) if transfer else []
        steps = [_step(row["created_at"], kind.name.lower(), row)]
        if kind == Kind.MOVEMENT:
            return steps + await self._entries(slot, [row["account_id"]], [identifier])
        return steps + await self._entries(slot, [identifier], [])

    async def _row(self, kind: Kind, slot: int, identifier: str) -> Row | None:
        table, column = _TABLES[kind]
        return await _one(
            self._connection,
            f"SELECT * FROM {table} WHERE slot = :slot AND {column} = :id",
            {"slot": slot, "id": identifier},
        )

    async def _of_order(self, slot: int, kind: Kind, row: Row) -> list[dict[str, Any]]:
        payment = row if kind == Kind.PAYMENT else None
        order = row if kind == Kind.ORDER else None
        payment_id = row["payment_id"]
        if payment is None and payment_id:
            payment = await self._row(Kind.PAYMENT, slot, payment_id)
        if order is None and payment is not None:
            order = await self._row(Kind.ORDER, slot, payment["order_id"])
        refunds = await _all(
            self._connection,
            "SELECT * FROM refunds WHERE slot = :slot AND payment_id = :id",
            {"slot": slot, "id": payment_id},
        )
        steps = [_step(order["created_at"], "order", order)] if order else []
        if payment is not None:
            steps.append(_step(payment["created_at"], "payment", payment))
        steps += [_step(refund["created_at"], "refund", refund) for refund in refunds]
        of = payment or order
        if of is None:
            return steps
        if order is not None:
            steps += await self._risk(slot, order["payer_id"], order["order_id"])
        accounts = [
            account_id(of["payer_id"], of["currency"]),
            collection_account_id(slot, of["merchant_id"], of["currency"]),
        ]
        postings = [payment_id, *(refund["refund_id"] for refund in refunds)]
        steps += await self._entries(slot, accounts, postings)
        moments = [item["created_at"] for item in (payment, *refunds) if item is not None]
        named = [item for item in (payment_id, *postings) if item]
        steps += await self._events(moments, list(dict.fromkeys(named)))
        return steps

    async def _risk(self, slot: int, user_id: str, order_id: str) -> list[dict[str, Any]]:
        decisions, cases = await rows_of_subject(self._connection, slot, user_id, order_id)
        return [
            *(_step(row["created_at"], "decision", row) for row in decisions),
            *(_step(row["created_at"], row["kind"], row) for row in cases),
        ]

    async def _of_risk(self, slot: int, kind: Kind, row: Row) -> list[dict[str, Any]]:
        """With the order that it is about, if it is about one."""
        order = await self._row(Kind.ORDER, slot, row["subject_id"]) if row["subject_id"] else None
        if order is not None:
            return await self._of_order(slot, Kind.ORDER, order)
        return [_step(row["created_at"], row.get("kind", kind.name.lower()), row)]

    async def _of_refund(self, slot: int, refund_id: str) -> list[dict[str, Any]]:
        refund = await _one(
            self._connection,
            "SELECT charge_id FROM charge_refunds WHERE slot = :slot AND refund_id = :id",
            {"slot": slot, "id": refund_id},
        )
        charge = await self._row(Kind.CHARGE, slot, refund["charge_id"]) if refund else None
        return await self._of_charge(charge) if charge else []

    async def _of_charge(self, row: Row) -> list[dict[str, Any]]:
        """With its refunds, what the banks were asked, and the order that it pays."""
        slot, charge_id = row["slot"], row["charge_id"]
        refunds = await _all(
            self._connection,
            "SELECT * FROM charge_refunds WHERE slot = :slot AND charge_id = :id",
            {"slot": slot, "id": charge_id},
        )
        owners = [charge_id, *(refund["refund_id"] for refund in refunds)]
        attempts = await self._attempts(owners)
        steps = [_step(row["created_at"], "charge", row)]
        steps += [_step(refund["created_at"], "refund", refund) for refund in refunds]
        steps += attempts
        order = await self._row(Kind.ORDER, slot, row["order_id"]) if row["order_id"] else None
        if order is not None:
            return steps + await self._of_order(slot, Kind.ORDER, order)
        accounts = [account_id(row["user_id"], row["currency"])]
        postings = [*owners, *(step["detail"]["attempt_id"] for step in attempts)]
        return steps + await self._money(slot, accounts, postings)

    async def _of_payout(self, row: Row) -> list[dict[str, Any]]:
        attempts = await self._attempts([row["payout_id"]])
        accounts = [account_id(row["user_id"], row["currency"])]
        payout_id = row["payout_id"]
        postings = [
            payout_id,
            f"{payout_id}/returned",
            *(step["detail"]["attempt_id"] for step in attempts),
        ]
        steps = [_step(row["created_at"], "payout", row), *attempts]
        return steps + await self._money(row["slot"], accounts, postings)

    async def _money(
        self, slot: int, accounts: Sequence[str], postings: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Entries, and the events of their commits."""
        rows = await self._entry_rows(slot, accounts, postings)
        events = await self._events([row["created_at"] for row in rows], postings)
        return [*(_step(row["created_at"], "entry", row) for row in rows), *events]

    async def _attempts(self, owners: Sequence[str]) -> list[dict[str, Any]]:
        rows = await _all(
            self._connection,
            "SELECT * FROM attempts WHERE owner_id = ANY(:owners)",
            {"owners": list(owners)},
        )
        return [_step(row["created_at"], "attempt", row) for row in rows]

    async def _owner_of(self, attempt: Row) -> list[dict[str, Any]]:
        owner = attempt["owner_id"]
        found = await self.steps(kind_of_id(owner), slot_of_id(owner), owner)
        return found or [_step(attempt["created_at"], "attempt", attempt)]

    async def _of_transfer(self, row: Row) -> list[dict[str, Any]]:
        identifier = row["transfer_id"]
        steps = [_step(row["created_at"], "transfer", row)]
        payee_slot = slot_of_id(row["payee_account_id"])
        branches = await _all(
            self._connection,
            "SELECT * FROM branches WHERE slot = :slot AND transfer_id = :id",
            {"slot": payee_slot, "id": identifier},
        )
        steps += [_step(branch["created_at"], "branch", branch) for branch in branches]
        postings = [identifier, f"{identifier}/payer", f"{identifier}/payee"]
        for slot, account in (
            (row["slot"], row["payer_account_id"]),
            (payee_slot, row["payee_account_id"]),
        ):
            steps += await self._entries(slot, [account], postings)
        steps += await self._events([row["created_at"], row["touched_at"]], [identifier])
        return steps

    async def _entries(
        self, slot: int, accounts: Sequence[str], postings: Sequence[str]
    ) -> list[dict[str, Any]]:
        rows = await self._entry_rows(slot, accounts, postings)
        return [_step(row["created_at"], "entry", row) for row in rows]

    async def _entry_rows(
        self, slot: int, accounts: Sequence[str], postings: Sequence[str]
    ) -> list[Row]:
        """Of these postings in these accounts; of no posting: the accounts' newest."""
        condition = "AND posting_id = ANY(:postings)" if postings else ""
        return await _all(
            self._connection,
            "SELECT * FROM entries WHERE slot = :slot AND account_id = ANY(:accounts)"
            f" {condition} ORDER BY created_at DESC LIMIT {_ENTRIES_MAX}",
            {"slot": slot, "accounts": list(accounts)}
            | ({"postings": list(postings)} if postings else {}),
        )

    async def _events(self, moments: Sequence[Any], named: Sequence[str]) -> list[dict[str, Any]]:
        """Events that were told in the same commits, and what became of them."""
        steps = []
        batches = await _all(
            self._connection,
            "SELECT lines, sent, created_at FROM outbox WHERE created_at = ANY(:moments)",
            {"moments": list(dict.fromkeys(moments))},
        )
        for batch in batches:
            for line in batch["lines"].splitlines():
                if any(name in line for name in named):
                    event = json.loads(line)
                    told = {**event, "published": batch["sent"]}
                    steps.append(_step(batch["created_at"], "event", told))
                    steps += await self._deliveries(event["id"], event["merchant_id"])
        return steps

    async def _deliveries(self, event_id: str, merchant_id: str) -> list[dict[str, Any]]:
        rows = await _all(
            self._connection,
            "SELECT * FROM deliveries WHERE merchant_id = :merchant AND event_id = :event",
            {"merchant": merchant_id, "event": event_id},
        )
        return [_step(row["created_at"], "delivery", row) for row in rows]

    async def _of_event(self, event_id: str) -> list[dict[str, Any]]:
        """By what it tells of. An event's own row may long be gone; its delivery stays."""
        row = await _one(
            self._connection, "SELECT * FROM deliveries WHERE event_id = :event",
            {"event": event_id},
        )  # fmt: skip
        batches = await _all(
            self._connection,
            "SELECT lines, sent, created_at FROM outbox WHERE slot = :slot AND lines LIKE :like",
            {"slot": slot_of_id(event_id), "like": f"%{event_id}%"},
        )
        for batch in batches:
            for line in batch["lines"].splitlines():
                event = json.loads(line)
                if event["id"] == event_id:
                    steps = await self._behind(event["data"])
                    told = {**event, "published": batch["sent"]}
                    return steps or [_step(batch["created_at"], "event", told)]
        if row is None:
            return []
        return await self._behind(json.loads(row["body"]).get("data", {}))

    async def _behind(self, data: Mapping[str, Any]) -> list[dict[str, Any]]:
        for field in ("payment_id", "transfer_id", "refund_id", "charge_id", "payout_id"):
            if identifier := data.get(field):
                kind = kind_of_id(identifier)
                return await self.steps(kind, slot_of_id(identifier), identifier)
        return []


def _step(moment: Any, what: str, row: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: _shown(value) for name, value in row.items() if name not in _HIDDEN}
    step = {"time": moment.isoformat(), "what": what, "detail": shown}
    if "amount" in row and row.get("currency"):
        # As people read it; the fields stay in minor units, as the books are.
        step["shown"] = f"{decimal_amount(row['amount'], row['currency'])} {row['currency']}"
    return step


def _shown(value: Any) -> Any:
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return value if isinstance(value, str | int | float | bool | dict | list) else str(value)


async def _all(connection: AsyncConnection, query: str, values: Mapping[str, Any]) -> list[Row]:
    return [dict(row) for row in (await connection.execute(text(query), values)).mappings()]


async def _one(connection: AsyncConnection, query: str, values: Mapping[str, Any]) -> Row | None:
    found = await _all(connection, query, values)
    return found[0] if found else None
