"""Probe payments: what a merchant sees of the mesh while it is drilled.

A steady stream through the SDK, as many for each cell's users; what cannot be paid in time failed.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from typing import Any

import grpc
from cellpay.accounts.v1 import accounts_pb2
from cellpay.money.v1.money_pb2 import Money
from cellpay.orders.v1 import orders_pb2
from cellpay.payments.v1 import payments_pb2

from control.drills.rules import Sample
from router.client import CallPolicy, Mesh
from router.errors import Refusal
from router.slotmap import SlotMap
from router.slots import slot_of_user

_CURRENCY = "USD"
_FUNDS_MINOR = 10_000_000
_USERS_PER_CELL = 3
_USERS_TRIED_MAX = 20_000
# A payment of the probe has this long; a failover must fit, and does.
POLICY = CallPolicy(timeout_s=12.0, attempt_timeout_s=2.0)
# Beyond this the probe itself would be the overload.
_IN_FLIGHT_MAX = 400


def users_of(slot_map: SlotMap, prefix: str) -> Mapping[str, list[str]]:
    """For each cell that owns slots some user IDs that are at home there."""
    found: dict[str, list[str]] = {cell: [] for cell in sorted(slot_map.cells())}
    for number in range(_USERS_TRIED_MAX):
        user = f"{prefix}-{number}"
        cell = slot_map.at(slot_of_user(user)).cell
        if len(found[cell]) < _USERS_PER_CELL:
            found[cell].append(user)
        elif all(len(users) == _USERS_PER_CELL for users in found.values()):
            break
    return found


class Probe:
    def __init__(self, mesh: Mesh, users: Mapping[str, list[str]], shop: str) -> None:
        self.shop = shop
        self.samples: list[Sample] = []
        self.mesh = mesh
        self._cells = list(users)
        self.users = users
        self._in_flight = 0

    def now_ms(self) -> int:
        return int(asyncio.get_running_loop().time() * 1000)

    async def open(self) -> None:
        """Accounts with money. Repeatable: another run of the drill finds its own again."""
        everybody = [user for users in self.users.values() for user in users]
        kinds = [(user, accounts_pb2.Account.KIND_PERSON) for user in everybody]
        for user_id, kind in [*kinds, (self.shop, accounts_pb2.Account.KIND_MERCHANT)]:
            request = accounts_pb2.OpenAccountRequest(
                user_id=user_id, currency=_CURRENCY, kind=kind, idempotency_key="drill-open"
            )
            await self.mesh.accounts.OpenAccount(request, timeout=30)
        for user_id in everybody:
            amount = Money(currency=_CURRENCY, minor_units=_FUNDS_MINOR)
            deposit = accounts_pb2.DepositRequest(
                user_id=user_id, amount=amount, idempotency_key=uuid.uuid4().hex
            )
            await self.mesh.accounts.Deposit(deposit, timeout=30)

    async def run(self, rate_per_s: float) -> None:
        """Begins payments at this rate, cell after cell, whatever becomes of them. For ever."""
        loop = asyncio.get_running_loop()
        number, due = 0, loop.time()
        async with asyncio.TaskGroup() as group:
            while True:
                if self._in_flight < _IN_FLIGHT_MAX:
                    group.create_task(self._sampled(number))
                number += 1
                due = max(due + 1 / rate_per_s, loop.time() - 1.0)
                await asyncio.sleep(max(0.0, due - loop.time()))

    async def pay(self, number: int) -> bool:
        users = self.users[self._cells[number % len(self._cells)]]
        payer = users[number // len(self._cells) % len(users)]
        try:
            order: Any = await self.mesh.orders.CreateOrder(
                orders_pb2.CreateOrderRequest(
                    payer_id=payer,
                    merchant_id=self.shop,
                    amount=Money(currency=_CURRENCY, minor_units=1),
                )
            )
            await self.mesh.payments.Pay(payments_pb2.PayRequest(order_id=order.order_id))
        except (grpc.aio.AioRpcError, Refusal):
            return False
        return True

    async def _sampled(self, number: int) -> None:
        began = self.now_ms()
        self._in_flight += 1
        try:
            paid = await self.pay(number)
        finally:
            self._in_flight -= 1
        cell = self._cells[number % len(self._cells)]
        self.samples.append(Sample(cell, began, self.now_ms(), paid))
