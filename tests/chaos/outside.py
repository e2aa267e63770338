"""Money that comes from banks and goes to them, and an independent model of it.

Two simulated banks are processes of their own, with books of their own; they misbehave as they are
told. Clients charge cards, pay orders by card, refund and pay out at random. Every request is
written down before it is sent and sent again with the same key until it is answered, so at the end
everything has ended, and our books can be held against the banks'.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import grpc
from cellpay.accounts.v1 import accounts_pb2
from cellpay.charges.v1 import charges_pb2 as charges
from cellpay.orders.v1 import orders_pb2
from cellpay.payouts.v1 import payouts_pb2 as payouts
from cellpay.vault.v1 import instruments_pb2

from router.client import Mesh
from router.errors import Refusal
from tests.chaos.bank import money, refused
from tests.conformance.process import BankProcess, started

_ROOT = Path(__file__).resolve().parents[2]
BANKS = ("north", "south")
_START_MINOR = 50_000
_AWAKE = (charges.Charge.STATE_PROCESSING, charges.Charge.STATE_REVERSING)


def _dialect() -> dict[str, Any]:
    text = (_ROOT / "examples/channels/iso8583-ascii.json").read_text(encoding="utf-8")
    dialect: dict[str, Any] = json.loads(text)
    return dialect


@contextlib.contextmanager
def banks(folder: Path) -> Iterator[tuple[list[dict[str, Any]], dict[str, Mapping[str, int]]]]:
    """The processes; the settings of channels to them, and their ports."""
    channels: list[dict[str, Any]] = []
    ports: dict[str, Mapping[str, int]] = {}
    with contextlib.ExitStack() as stack:
        for name in BANKS:
            options = {"dialect": _dialect()}
            ports[name] = stack.enter_context(
                started({"name": name, "kind": "iso8583", "options": options}, folder)
            )
            reached = {"host": "127.0.0.1", "port": ports[name]["iso8583"], "repeat_s": 0.4}
            channels.append({"name": name, "kind": "iso8583", "options": options | reached})
        yield channels, ports


@contextlib.asynccontextmanager
async def reached(ports: Mapping[str, Mapping[str, int]]) -> AsyncIterator[dict[str, BankProcess]]:
    async with aiohttp.ClientSession() as session:
        yield {name: BankProcess(its, session) for name, its in ports.items()}


def _card(number: int) -> str:
    """A number whose last digit is right (Luhn)."""
    digits = f"400000{number:09}"
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return digits + str(-total % 10)


class Outside:
    def __init__(self, mesh: Mesh, name: str, users: int = 12) -> None:
        self.mesh = mesh
        self.users = [f"{name}-{number}" for number in range(users)]
        self.shop = f"{name}-shop"
        self.cards: dict[str, str] = {}
        self.open: dict[str, tuple[str, Any]] = {}
        # By ID, as last heard of.
        self.charges: dict[str, charges.Charge] = {}
        self.refunds: dict[str, charges.ChargeRefund] = {}
        self.payouts: dict[str, payouts.Payout] = {}
        self.answers: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self._choice = random.Random(name)

    async def begin(self) -> None:
        kinds = [(user, accounts_pb2.Account.KIND_PERSON) for user in self.users]
        kinds.append((self.shop, accounts_pb2.Account.KIND_MERCHANT))
        for user_id, kind in kinds:
            await self.mesh.accounts.OpenAccount(
                accounts_pb2.OpenAccountRequest(user_id=user_id, currency="USD", kind=kind)
            )
        for number, user_id in enumerate(self.users):
            await self.mesh.accounts.Deposit(
                accounts_pb2.DepositRequest(user_id=user_id, amount=money(_START_MINOR))
            )
            card = await self.mesh.instruments.RegisterCard(
                instruments_pb2.RegisterCardRequest(
                    user_id=user_id, number=_card(number), expiry_year=2030, expiry_month=12
                )
            )
            self.cards[user_id] = card.instrument_id

    async def work(self, clients: int, until: asyncio.Event) -> None:
        async def client(number: int) -> None:
            choice = random.Random(f"{self._choice.random()}-{number}")
            while not until.is_set():
                act = choice.choice(
                    [self._top_up, self._top_up, self._buy, self._refund, self._out]
                )
                await act(choice)
                await asyncio.sleep(choice.uniform(0, 0.02))

        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(client(number))

    async def _top_up(self, choice: random.Random) -> None:
        user = choice.choice(self.users)
        await self._charge(user, choice.randint(1, 900), "")

    async def _buy(self, choice: random.Random) -> None:
        user, amount = choice.choice(self.users), choice.randint(1, 900)
        try:
            order = await self.mesh.orders.CreateOrder(
                orders_pb2.CreateOrderRequest(
                    payer_id=user, merchant_id=self.shop, amount=money(amount)
                )
            )
        except grpc.aio.AioRpcError:
            return
        await self._charge(user, amount, order.order_id)

    async def _charge(self, user: str, minor_units: int, order_id: str) -> None:
        await self._send(
            "charge",
            charges.CreateChargeRequest(
                user_id=user, instrument_id=self.cards[user], amount=money(minor_units),
                order_id=order_id, idempotency_key=str(uuid.uuid4()),
            ),
        )  # fmt: skip

    async def _refund(self, choice: random.Random) -> None:
        done = [it for it in self.charges.values() if it.state == charges.Charge.STATE_SUCCEEDED]
        if done:
            charge = choice.choice(done)
            await self._send(
                "refund",
                charges.RefundChargeRequest(
                    charge_id=charge.charge_id,
                    amount=money(choice.randint(1, charge.amount.minor_units)),
                    idempotency_key=str(uuid.uuid4()),
                ),
            )

    async def _out(self, choice: random.Random) -> None:
        user = choice.choice(self.users)
        await self._send(
            "payout",
            payouts.CreatePayoutRequest(
                user_id=user, instrument_id=self.cards[user], amount=money(choice.randint(1, 300)),
                idempotency_key=str(uuid.uuid4()),
            ),
        )  # fmt: skip

    async def _send(self, kind: str, request: Any) -> None:
        methods: dict[str, Any] = {
            "charge": self.mesh.charges.CreateCharge,
            "refund": self.mesh.charges.RefundCharge,
            "payout": self.mesh.payouts.CreatePayout,
        }
        key = request.idempotency_key
        self.open[key] = (kind, request)
        try:
            answer = await methods[kind](request)
        except (grpc.aio.AioRpcError, Refusal) as error:
            if refused(error):
                del self.open[key]
                self.counts[f"{kind} refused"] += 1
            return
        del self.open[key]
        self.counts[kind] += 1
        known = self._known(kind)
        identifier = str(getattr(answer, f"{kind}_id"))
        assert self.answers.setdefault(key, identifier) == identifier
        known[identifier] = answer

    def _known(self, kind: str) -> dict[str, Any]:
        known: dict[str, dict[str, Any]] = {
            "charge": self.charges,
            "refund": self.refunds,
            "payout": self.payouts,
        }
        return known[kind]

    async def resolve(self) -> None:
        """Sends again what has no answer, then waits until everything has ended."""
        for _ in range(60):
            for kind, request in list(self.open.values()):
                await self._send(kind, request)
            if not self.open and not await self._look():
                return
            await asyncio.sleep(0.3)
        raise AssertionError(f"not ended: {list(self.open.values())[:3]} {await self._look()}")

    async def _look(self) -> list[str]:
        """Asks after what had not ended when it last looked; returns that."""
        left = []
        for identifier, charge in list(self.charges.items()):
            if charge.state in _AWAKE:
                left.append(identifier)
                self.charges[identifier] = await self.mesh.charges.GetCharge(
                    charges.GetChargeRequest(charge_id=identifier)
                )
        for identifier, refund in list(self.refunds.items()):
            if refund.state == charges.ChargeRefund.STATE_PENDING:
                left.append(identifier)
                self.refunds[identifier] = await self.mesh.charges.GetChargeRefund(
                    charges.GetChargeRefundRequest(refund_id=identifier)
                )
        for identifier, payout in list(self.payouts.items()):
            if payout.state == payouts.Payout.STATE_PENDING:
                left.append(identifier)
                self.payouts[identifier] = await self.mesh.payouts.GetPayout(
                    payouts.GetPayoutRequest(payout_id=identifier)
                )
        return left

    async def check(self) -> None:
        """Every balance is what came and what went."""
        expected = Counter(dict.fromkeys(self.users, _START_MINOR))
        owner = {}
        for charge in self.charges.values():
            owner[charge.charge_id] = charge.user_id
            if charge.state == charges.Charge.STATE_SUCCEEDED and not charge.payment_id:
                expected[charge.user_id] += charge.amount.minor_units
        for refund in self.refunds.values():
            if refund.state == charges.ChargeRefund.STATE_SUCCEEDED:
                expected[owner[refund.charge_id]] -= refund.amount.minor_units
        for payout in self.payouts.values():
            if payout.state == payouts.Payout.STATE_PAID:
                expected[payout.user_id] -= payout.amount.minor_units
        for user in self.users:
            balance = await self.mesh.accounts.GetBalance(
                accounts_pb2.GetBalanceRequest(user_id=user, currency="USD")
            )
            assert balance.held.minor_units == 0, f"{user} still has money on hold"
            assert balance.total.minor_units == expected[user], user
