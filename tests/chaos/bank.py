"""A bank workload and an independent model of what was acknowledged.

Every request is written down before it is sent, with its key. What was acknowledged goes into the
model at once. What failed without a clear refusal is sent again with the same key when the chaos is
over, until it is acknowledged or refused, so at the end every outcome is known and the model says
exactly what each balance must be. The model knows nothing of cells, slots, holds or epochs.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from cellpay.accounts.v1 import accounts_pb2
from cellpay.money.v1.money_pb2 import Money
from cellpay.orders.v1 import orders_pb2
from cellpay.payments.v1 import payments_pb2
from cellpay.transfers.v1 import transfers_pb2

from router.client import Mesh
from router.errors import Refusal, details_of

CURRENCY = "USD"
_START_MINOR = 100_000
_REFUSALS = frozenset(
    {
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.INVALID_ARGUMENT,
    }
)
_NOT_DECIDED = frozenset({"NOT_HOME", "SLOT_MOVED", "NOT_OWNER"})

Request = Callable[[], Awaitable[Any]]


def money(minor_units: int) -> Money:
    return Money(currency=CURRENCY, minor_units=minor_units)


def refused(error: BaseException) -> bool:
    """True when the cells decided: no. Anything else leaves the outcome open."""
    if isinstance(error, Refusal):
        return True
    assert isinstance(error, grpc.aio.AioRpcError)
    return error.code() in _REFUSALS and details_of(error).reason not in _NOT_DECIDED


@dataclass(slots=True)
class Model:
    """What each user must have, from acknowledged requests alone."""

    balances: Counter[str] = field(default_factory=Counter)
    # Payments that merchants were promised, less refunds.
    earned: Counter[str] = field(default_factory=Counter)
    # Resource ID by key: an answer may be repeated, never changed.
    answers: dict[str, str] = field(default_factory=dict)
    deposited: int = 0

    def answered(self, key: str, identifier: str) -> bool:
        """True the first time. A key that answers with another resource breaks invariant 2."""
        known = self.answers.get(key)
        assert known in (None, identifier), f"key {key} answered {known}, then {identifier}"
        self.answers[key] = identifier
        return known is None


class Bank:
    """Users, merchants and clients that move money between them at random."""

    def __init__(self, meshes: list[Mesh], name: str, users: int = 45, merchants: int = 3) -> None:
        self.meshes = meshes
        self.users = [f"{name}-user-{number}" for number in range(users)]
        self.merchants = [f"{name}-shop-{number}" for number in range(merchants)]
        self.model = Model()
        self.open_requests: dict[str, tuple[str, Any]] = {}
        self.payments: list[tuple[str, str, str, int]] = []
        self.counts: Counter[str] = Counter()
        self._random = random.Random(name)

    async def open(self) -> None:
        mesh = self.meshes[0]
        kinds = [(user, accounts_pb2.Account.KIND_PERSON) for user in self.users]
        kinds += [(shop, accounts_pb2.Account.KIND_MERCHANT) for shop in self.merchants]
        for user_id, kind in kinds:
            await mesh.accounts.OpenAccount(
                accounts_pb2.OpenAccountRequest(
                    user_id=user_id, currency=CURRENCY, kind=kind, idempotency_key="open"
                )
            )
        for user_id in self.users:
            await self._deposit(user_id, _START_MINOR)

    async def work(self, clients: int, until: asyncio.Event) -> None:
        """Random requests by several clients until the event is set."""

        async def client(number: int) -> None:
            choice = random.Random(f"{self._random.random()}-{number}")
            while not until.is_set():
                await choice.choice(
                    [self._pay_one, self._pay_one, self._transfer_one, self._transfer_one,
                     self._refund_one, self._deposit_one]
                )(choice)  # fmt: skip
                await asyncio.sleep(choice.uniform(0, 0.01))

        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(client(number))

    async def resolve(self) -> None:
        """Sends again what has no outcome yet, with the same keys, until all have one."""
        for _ in range(30):
            if not self.open_requests:
                return
            for kind, request in list(self.open_requests.values()):
                await self._send(kind, request)
            await asyncio.sleep(0.2)
        raise AssertionError(f"without an outcome: {list(self.open_requests)[:5]}")

    async def check(self) -> None:
        """Every balance is what the model says; merchants' money once it has been settled."""
        mesh = self.meshes[0]
        for user_id in self.users:
            balance = await mesh.accounts.GetBalance(
                accounts_pb2.GetBalanceRequest(user_id=user_id, currency=CURRENCY)
            )
            assert balance.held.minor_units == 0, f"{user_id} still has money on hold"
            assert balance.total.minor_units == self.model.balances[user_id], user_id

    async def check_settled(self, wait_s: float = 40.0) -> None:
        """Settlement brings to the merchants what they earned, to the cent."""
        until = asyncio.get_running_loop().time() + wait_s
        while True:
            got = {}
            for shop in self.merchants:
                balance = await self.meshes[0].accounts.GetBalance(
                    accounts_pb2.GetBalanceRequest(user_id=shop, currency=CURRENCY)
                )
                got[shop] = balance.total.minor_units
            wanted = {shop: self.model.earned[shop] for shop in self.merchants}
            if got == wanted or asyncio.get_running_loop().time() > until:
                assert got == wanted
                return
            await asyncio.sleep(0.5)

    async def _send(self, kind: str, request: Any) -> Any | None:
        """Sends a request that has been written down; None when refused or still open."""
        mesh = self._random.choice(self.meshes)
        methods: dict[str, Any] = {
            "deposit": mesh.accounts.Deposit,
            "order": mesh.orders.CreateOrder,
            "pay": mesh.payments.Pay,
            "refund": mesh.payments.RefundPayment,
            "transfer": mesh.transfers.CreateTransfer,
        }
        key = request.idempotency_key
        self.open_requests[key] = (kind, request)
        try:
            answer = await methods[kind](request)
        except (grpc.aio.AioRpcError, Refusal) as error:
            if refused(error):
                del self.open_requests[key]
                self.counts[f"{kind} refused"] += 1
            else:
                self.counts[f"{kind} open"] += 1
            return None
        if self._acknowledge(kind, request, answer):
            del self.open_requests[key]
            self.counts[kind] += 1
            return answer
        return None

    def _acknowledge(self, kind: str, request: Any, answer: Any) -> bool:
        """Books the answer in the model; False while the answer says "not yet"."""
        model = self.model
        if kind == "transfer":
            if answer.state != transfers_pb2.Transfer.STATE_CONFIRMED:
                return False
            if model.answered(request.idempotency_key, answer.transfer_id):
                model.balances[request.payer_id] -= request.amount.minor_units
                model.balances[request.payee_id] += request.amount.minor_units
        elif kind == "deposit":
            if model.answered(request.idempotency_key, answer.movement_id):
                model.balances[request.user_id] += request.amount.minor_units
                model.deposited += request.amount.minor_units
        elif kind == "order":
            model.answered(request.idempotency_key, answer.order_id)
        elif kind == "pay":
            if model.answered(request.idempotency_key, answer.payment_id):
                amount = answer.amount.minor_units
                model.balances[answer.payer_id] -= amount
                model.earned[answer.merchant_id] += amount
                entry = (answer.payment_id, answer.payer_id, answer.merchant_id, amount)
                self.payments.append(entry)
        else:
            return self._acknowledge_refund(request, answer)
        return True

    def _acknowledge_refund(self, request: Any, answer: Any) -> bool:
        if answer.state == payments_pb2.Refund.STATE_PENDING:
            return False
        first = self.model.answered(request.idempotency_key, answer.refund_id)
        if first and answer.state == payments_pb2.Refund.STATE_SUCCEEDED:
            _, payer, merchant, _ = next(
                entry for entry in self.payments if entry[0] == request.payment_id
            )
            self.model.balances[payer] += answer.amount.minor_units
            self.model.earned[merchant] -= answer.amount.minor_units
        return True

    async def _deposit(self, user_id: str, minor_units: int) -> None:
        await self._send(
            "deposit",
            accounts_pb2.DepositRequest(
                user_id=user_id, amount=money(minor_units), idempotency_key=str(uuid.uuid4())
            ),
        )

    async def _deposit_one(self, choice: random.Random) -> None:
        await self._deposit(choice.choice(self.users), choice.randint(1, 500))

    async def _pay_one(self, choice: random.Random) -> None:
        order = await self._send(
            "order",
            orders_pb2.CreateOrderRequest(
                payer_id=choice.choice(self.users),
                merchant_id=choice.choice(self.merchants),
                amount=money(choice.randint(1, 2_000)),
                idempotency_key=str(uuid.uuid4()),
            ),
        )
        if order is not None:
            await self._send(
                "pay",
                payments_pb2.PayRequest(order_id=order.order_id, idempotency_key=str(uuid.uuid4())),
            )

    async def _refund_one(self, choice: random.Random) -> None:
        if not self.payments:
            return
        payment_id, _, _, amount = choice.choice(self.payments)
        await self._send(
            "refund",
            payments_pb2.RefundPaymentRequest(
                payment_id=payment_id,
                amount=money(choice.randint(1, amount)),
                idempotency_key=str(uuid.uuid4()),
            ),
        )

    async def _transfer_one(self, choice: random.Random) -> None:
        payer, payee = choice.sample(self.users, 2)
        await self._send(
            "transfer",
            transfers_pb2.CreateTransferRequest(
                payer_id=payer,
                payee_id=payee,
                amount=money(choice.randint(1, 3_000)),
                idempotency_key=str(uuid.uuid4()),
            ),
        )
