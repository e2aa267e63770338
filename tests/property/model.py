"""Cellpay in one cell as the design tells it: plain dicts, one request at a time.

Independent of the rules: it shares no code with them, only the words of the design.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

# Her home is another cell.
STRANGER = "zoë"
CURRENCIES = ["USD", "JPY"]


class Request(NamedTuple):
    """A request as a caller makes it: nothing of it was minted by the cell."""

    method: str
    # What the key belongs to; for requests by ID, that ID.
    scope: str
    key: str
    details: tuple[Any, ...]


class Answer(NamedTuple):
    """What the model expects."""

    accepted: bool
    replayed: bool = False
    reused_key: bool = False


def key_of(request: Request) -> tuple[str, str, str]:
    """Keys belong to a scope; those of payments lie with the payments, apart from the others."""
    return request.scope, request.key, "pay" if request.method == "pay" else ""


@dataclass
class Model:
    """Cellpay in one cell, as the design tells it."""

    kinds: dict[tuple[str, str], str] = field(default_factory=dict)
    closed: set[tuple[str, str]] = field(default_factory=set)
    balances: dict[tuple[str, str], int] = field(default_factory=dict)
    # By payer: in tests each payer has a slot of their own.
    collected: dict[tuple[str, str, str], int] = field(default_factory=dict)
    orders: dict[str, dict[str, Any]] = field(default_factory=dict)
    payments: dict[str, dict[str, Any]] = field(default_factory=dict)
    refunds: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: dict[tuple[str, str, str], tuple[Request, str]] = field(default_factory=dict)
    outside: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CURRENCIES, 0))

    def answer(self, request: Request, new_id: str) -> Answer:
        """Decides the request; `new_id` is what the ledger would call what it makes."""
        if self._stranger(request):
            return Answer(accepted=False)
        known = self.keys.get(key_of(request)) if request.key else None
        if known:
            same = known[0] == request
            return Answer(accepted=same, replayed=same, reused_key=not same)
        accepted = getattr(self, f"_{request.method}")(request.scope, new_id, *request.details)
        if accepted and request.key:
            self.keys[key_of(request)] = (request, new_id)
        return Answer(accepted)

    @staticmethod
    def _stranger(request: Request) -> bool:
        return request.scope == STRANGER or request.details[:1] == (STRANGER,)

    def _usable(self, user: str, currency: str) -> bool:
        return (user, currency) in self.kinds and (user, currency) not in self.closed

    def _promised(self, user: str, currency: str) -> bool:
        return any(
            refund["state"] == "pending"
            and (refund["payer"], refund["currency"]) == (user, currency)
            for refund in self.refunds.values()
        )

    def _waiting(self, place: tuple[str, str, str]) -> int:
        return sum(
            refund["amount"]
            for refund in self.refunds.values()
            if refund["state"] == "pending"
            and (refund["payer"], refund["merchant"], refund["currency"]) == place
        )

    def _open(self, user: str, new_id: str, currency: str, kind: str) -> bool:
        if (user, currency) in self.closed:
            return False
        self.balances.setdefault((user, currency), 0)
        return self.kinds.setdefault((user, currency), kind) == kind

    def _close(self, scope: str, new_id: str, user: str, currency: str) -> bool:
        if (user, currency) not in self.kinds:
            return False
        if (user, currency) not in self.closed and self.kinds[user, currency] == "merchant":
            return False
        if self.balances[user, currency] or self._promised(user, currency):
            return False
        self.closed.add((user, currency))
        return True

    def _deposit(self, user: str, new_id: str, currency: str, amount: int) -> bool:
        if not self._usable(user, currency):
            return False
        self.balances[user, currency] += amount
        self.outside[currency] += amount
        return True

    def _withdraw(self, user: str, new_id: str, currency: str, amount: int) -> bool:
        if not self._usable(user, currency) or self.balances[user, currency] < amount:
            return False
        self.balances[user, currency] -= amount
        self.outside[currency] -= amount
        return True

    def _order(self, payer: str, new_id: str, merchant: str, currency: str, amount: int) -> bool:
        if (
            self.kinds.get((merchant, currency)) != "merchant"
            or (merchant, currency) in self.closed
        ):
            return False
        if not self._usable(payer, currency):
            return False
        self.orders[new_id] = {
            "payer": payer, "merchant": merchant, "currency": currency, "amount": amount,
            "state": "open", "payment": "",
        }  # fmt: skip
        return True

    def _close_order(self, order_id: str, new_id: str) -> bool:
        order = self.orders.get(order_id)
        if order is None or order["state"] == "paid":
            return False
        order["state"] = "closed"
        return True

    def _pay(self, order_id: str, new_id: str) -> bool:
        order = self.orders.get(order_id)
        if order is None or order["state"] != "open":
            return False
        payer = (order["payer"], order["currency"])
        if not self._usable(*payer) or self.balances[payer] < order["amount"]:
            return False
        place = (order["payer"], order["merchant"], order["currency"])
        self.balances[payer] -= order["amount"]
        self.collected[place] = self.collected.get(place, 0) + order["amount"]
        order |= {"state": "paid", "payment": new_id}
        self.payments[new_id] = {**order, "order": order_id, "refunded": 0}
        return True

    def _refund(self, payment_id: str, new_id: str, amount: int | None) -> bool:
        payment = self.payments.get(payment_id)
        if payment is None or not self._usable(payment["payer"], payment["currency"]):
            return False
        left = payment["amount"] - payment["refunded"]
        wanted = left if amount is None else amount
        if not 0 < wanted <= left:
            return False
        payment["refunded"] += wanted
        place = (payment["payer"], payment["merchant"], payment["currency"])
        funded = self.collected[place] - self._waiting(place) >= wanted
        self.refunds[new_id] = {
            "payment": payment_id, "payer": place[0], "merchant": place[1], "currency": place[2],
            "amount": wanted, "state": "succeeded" if funded else "pending", "funded": False,
        }  # fmt: skip
        if funded:
            self._give_back(self.refunds[new_id])
        return True

    def _give_back(self, refund: dict[str, Any]) -> None:
        self.collected[refund["payer"], refund["merchant"], refund["currency"]] -= refund["amount"]
        self.balances[refund["payer"], refund["currency"]] += refund["amount"]

    def _end_refund(self, refund_id: str, new_id: str, funded: bool) -> bool:
        refund = self.refunds.get(refund_id)
        if refund is None:
            return False
        if refund["state"] == "pending":
            refund["state"] = "succeeded" if funded else "failed"
            if funded:
                self._give_back(refund)
            else:
                self.payments[refund["payment"]]["refunded"] -= refund["amount"]
        return True

    def _fund(self, merchant: str, new_id: str, payer: str, currency: str, amount: int) -> bool:
        money = self.balances.get((merchant, currency), 0)
        if not self._usable(merchant, currency) or money < amount:
            return False
        self.balances[merchant, currency] -= amount
        self.collected[payer, merchant, currency] += amount
        return True

    def _sweep(self, payer: str, new_id: str, merchant: str, currency: str) -> bool:
        place = (payer, merchant, currency)
        free = self.collected.get(place, 0) - self._waiting(place)
        if free <= 0 or not self._usable(merchant, currency):
            return False
        self.collected[place] -= free
        self.balances[merchant, currency] += free
        return True

    def _transfer(self, payer: str, new_id: str, payee: str, currency: str, amount: int) -> bool:
        if not (self._usable(payer, currency) and self._usable(payee, currency)):
            return False
        if self.balances[payer, currency] < amount:
            return False
        self.balances[payer, currency] -= amount
        self.balances[payee, currency] += amount
        return True
