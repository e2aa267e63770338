"""A bank that does as a test says, and the desk of a cell over a real database.

The bank keeps a book of its own, so that at the end it can be held against ours.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import grpc
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from cells.accounts.model import Direction
from cells.accounts.rules import MoveMoney, OpenAccount
from cells.answers import resource_of
from cells.channels.attempts import ATTEMPTS, Attempt
from cells.channels.choosing import Ask, InOrder
from cells.channels.desk import Deferred, Desk
from cells.channels.instruments import InstrumentFacts
from cells.channels.interface import StatementFile
from cells.channels.model import (
    Answer,
    AnswerReason,
    Card,
    ChannelSettings,
    Instrument,
    Operation,
    Request,
    Verdict,
)
from cells.charges.model import Charge, IfOrderEnded
from cells.charges.rules import CreateCharge
from cells.database import make_engine
from cells.ledger.model import AccountKind, Idempotency
from cells.ledger.tables import ACCOUNTS
from cells.ledger.worker import Lanes
from cells.orders.rules import CreateOrder
from cells.payouts.model import Payout
from cells.payouts.rules import CreatePayout
from cells.reading import ReadEngine
from cells.settings import BankingSettings, DatabaseSettings, LaneSettings
from router.errors import Refusal
from router.guard import SlotsHere
from router.ids import Kind, account_id, channel_account_id
from router.minting import mint_now
from router.slotmap import SlotMap
from router.slots import slot_of_user

APPROVED = Answer(Verdict.APPROVED, code="00", bank_reference="rrn", clearing_date="2026-01-02")
DECLINED = Answer(Verdict.DECLINED, AnswerReason.INSUFFICIENT_FUNDS, "51")
FAILED = Answer(Verdict.FAILED, AnswerReason.ISSUER_UNAVAILABLE, "91")
UNKNOWN = Answer(Verdict.UNKNOWN, AnswerReason.TIMED_OUT)
PENDING = Answer(Verdict.PENDING)
NOT_FOUND = Answer(Verdict.FAILED, AnswerReason.NOT_FOUND, "25")
# All that a test waits for comes at once: what is due in seconds is due now.
QUICK = BankingSettings(
    answer_timeout_s=5.0, send_window_s=5.0, backoff_base_s=0.0, backoff_cap_s=0.0,
    reverse_after_s=0.0, pending_max_s=3600.0, held_retry_s=0.0, payout_patience_s=3600.0,
)  # fmt: skip


@dataclass
class Say:
    """One answer of the script, and whether the request has its effect though it is not told."""

    answer: Answer
    effect: bool | None = None

    @property
    def has_effect(self) -> bool:
        return self.answer.verdict == Verdict.APPROVED if self.effect is None else self.effect


@dataclass
class ScriptedBank:
    """A Channel. What the script does not foresee is approved; queries tell the truth."""

    name: str
    operations: frozenset[Operation] = frozenset(Operation)
    script: dict[Operation, list[Say]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    # Net effect by reference, as our channel account has it.
    effects: dict[str, int] = field(default_factory=dict)
    verdicts: dict[str, Answer] = field(default_factory=dict)
    # While it is set, answers wait for it.
    hold: asyncio.Event | None = None

    def will(self, operation: Operation, *says: Say | Answer) -> None:
        self.script.setdefault(operation, []).extend(
            it if isinstance(it, Say) else Say(it) for it in says
        )

    def asked(self, operation: Operation) -> list[Request]:
        return [it for it in self.requests if it.operation == operation]

    @property
    def book(self) -> int:
        return sum(self.effects.values())

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def perform(self, request: Request, timeout_s: float) -> Answer:
        assert request.operation in self.operations
        self.requests.append(request)
        waiting = self.script.get(request.operation)
        if request.operation == Operation.QUERY:
            truth = self.verdicts.setdefault(request.original, NOT_FOUND)
            answer = waiting.pop(0).answer if waiting else truth
        else:
            answer = self._act(request, waiting.pop(0) if waiting else Say(APPROVED))
        if self.hold is not None:
            await self.hold.wait()
        return answer

    def _act(self, request: Request, say: Say) -> Answer:
        if request.reference in self.verdicts:
            # A repeat, or too late: it has its verdict already.
            return self.verdicts[request.reference]
        if say.has_effect:
            if request.operation == Operation.VOID:
                self.effects.pop(request.original, None)
                self.verdicts[request.original] = DECLINED
            else:
                taken = request.operation == Operation.AUTHORISE
                self.effects[request.reference] = -request.amount if taken else request.amount
            self.verdicts[request.reference] = APPROVED
        elif say.answer.verdict.is_final and say.answer.reason != AnswerReason.NOT_SENT:
            self.verdicts[request.reference] = say.answer
        return say.answer

    async def fetch_statement(self, day: date, into: Path) -> StatementFile:
        raise NotImplementedError


class PaperVault:
    """One card for each instrument's ID that it was told of."""

    def __init__(self) -> None:
        self.owners: dict[str, str] = {}
        self.away = False

    def register(self, user_id: str) -> str:
        instrument_id = mint_now(Kind.INSTRUMENT, slot_of_user(user_id))
        self.owners[instrument_id] = user_id
        return instrument_id

    async def facts(self, instrument_id: str) -> InstrumentFacts:
        if instrument_id not in self.owners:
            raise Refusal(grpc.StatusCode.NOT_FOUND, "INSTRUMENT_NOT_FOUND", "no such instrument")
        return InstrumentFacts(instrument_id, self.owners[instrument_id], "card", "visa")

    async def reveal(self, instrument_id: str, purpose: str) -> Instrument:
        await self.facts(instrument_id)
        if self.away:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "VAULT_AWAY", "the vault is away")
        return Card("4000000000000002", "3012", "visa")


class Counter:
    """A cell's desk, its banks and its books."""

    def __init__(
        self,
        cell: str,
        engine: AsyncEngine,
        banks: Iterable[ScriptedBank],
        vault: PaperVault,
        settings: BankingSettings = QUICK,
    ) -> None:
        url = engine.url.render_as_string(hide_password=False)
        self._lane_engine = make_engine(url, cell, DatabaseSettings(), pool_size=1, lanes=True)
        self._read_engine = make_engine(url, cell, DatabaseSettings(), pool_size=4)
        self.lanes = Lanes(self._lane_engine, cell, LaneSettings())
        self.engine = ReadEngine(self._read_engine)
        self.banks = {bank.name: bank for bank in banks}
        self.vault = vault
        self.here = SlotsHere(cell)
        self.here.publish(SlotMap.even([cell]))
        self.deferring = False
        self.order = InOrder(self.banks, [ChannelSettings(name, "x", {}) for name in self.banks])
        self.desk = Desk(
            self.lanes, self.engine, self.here, self.banks, self.order, vault, settings,
            Deferred(lambda: self.deferring, lambda: self.deferring),
        )  # fmt: skip
        self._keys = itertools.count(1)

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[Counter]:
        """Leaving it is the process's death: what was under way stays as it was written."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(runner()) for runner in self.lanes.runners()]
                tasks.append(group.create_task(self.desk.run()))
                yield self
                for task in tasks:
                    task.cancel()
        finally:
            await self._lane_engine.dispose()
            await self._read_engine.dispose()

    def key(self, method: str, scope: str) -> Idempotency:
        return Idempotency(scope, f"key-{next(self._keys)}", method, b"hash")

    async def do(self, command: Any) -> Any:
        return resource_of(await self.lanes.submit(command))

    async def open(self, user: str, minor_units: int = 0, *, merchant: bool = False) -> str:
        slot = slot_of_user(user)
        kind = AccountKind.MERCHANT if merchant else AccountKind.PERSON
        await self.do(OpenAccount(slot, user, "USD", kind, self.key("OpenAccount", user)))
        if minor_units:
            await self.do(
                MoveMoney(
                    slot, mint_now(Kind.MOVEMENT, slot), user, Direction.IN, minor_units, "USD",
                    self.key("Deposit", user),
                )
            )  # fmt: skip
        return user

    async def ordered(self, user: str, shop: str, minor_units: int) -> str:
        slot = slot_of_user(user)
        order = await self.do(
            CreateOrder(
                slot, mint_now(Kind.ORDER, slot), user, shop, minor_units, "USD", "",
                self.key("CreateOrder", user),
            )
        )  # fmt: skip
        return str(order.order_id)

    async def charge_command(
        self,
        user: str,
        minor_units: int,
        order_id: str = "",
        if_order_ended: IfOrderEnded = IfOrderEnded.KEEP,
    ) -> tuple[CreateCharge, Ask]:
        slot, charge_id = slot_of_user(user), mint_now(Kind.CHARGE, slot_of_user(user))
        facts = InstrumentFacts("", user, "card", "visa")
        ask = Ask(Operation.AUTHORISE, charge_id, user, facts, minor_units, "USD")
        command = CreateCharge(
            slot, charge_id, user, order_id, self.vault.register(user), minor_units, "USD",
            if_order_ended, await self.desk.charging.first(ask), self.key("CreateCharge", user),
        )  # fmt: skip
        return command, ask

    async def charge(self, user: str, minor_units: int, *rest: Any) -> Charge:
        command, ask = await self.charge_command(user, minor_units, *rest)
        return await self.desk.charging.create(command, ask, None, self.lanes)

    async def payout(self, user: str, minor_units: int) -> Payout:
        slot = slot_of_user(user)
        command = CreatePayout(
            slot, mint_now(Kind.PAYOUT, slot), user, self.vault.register(user), minor_units,
            "USD", "", self.key("CreatePayout", user),
        )  # fmt: skip
        return await self.desk.paying.create(command, None, self.lanes)

    async def recover(self) -> int:
        found = await self.desk.recovery.recover(self.here.owned())
        # What it began in the background is to have ended.
        while self.desk.drives._in_flight:
            await asyncio.sleep(0.005)
        return found

    async def row(self, record: Any, identifier: str) -> Any:
        table = record.table
        statement = select(*(table.c[name] for name in record.fields)).where(
            table.c[record.id_field] == identifier
        )
        async with self._read_engine.connect() as connection:
            rows = (await connection.execute(statement)).all()
        return record.row(*rows[0]) if rows else None

    async def attempts(self, owner_id: str) -> list[Attempt]:
        table = ATTEMPTS.table
        statement = (
            select(*(table.c[name] for name in ATTEMPTS.fields))
            .where(table.c.owner_id == owner_id)
            .order_by(table.c.created_at, table.c.attempt_id)
        )
        async with self._read_engine.connect() as connection:
            return [Attempt(*row) for row in (await connection.execute(statement)).all()]

    async def account(self, user: str) -> Any:
        return await self.row(ACCOUNTS, account_id(user, "USD"))

    async def lying(self, user: str, bank: str) -> int:
        """What lies with a bank, in the user's slot."""
        identifier = channel_account_id(slot_of_user(user), bank, "USD")
        found = await self.row(ACCOUNTS, identifier)
        return found.balance if found else 0
