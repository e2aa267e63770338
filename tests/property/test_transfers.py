"""Transfers across cells end well whatever is lost: the real rules under the real coordinator.

Coordinators run as coroutines that this machine holds: wherever one asks its database or the
payee's cell, Hypothesis decides whether the question arrives, whether the answer does, whether the
coordinator dies there, what another coordinator of the same transfer does first, which messages
arrive late or twice, and whether slots move meanwhile. After each step the money is conserved;
after recovery every transfer has ended, the same on both sides, and nothing is held (invariant 5).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Coroutine, Generator, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

import grpc
import pytest
from cellpay.transfers.v1.participant_pb2 import BranchStep
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from structlog.testing import capture_logs

from cells.accounts.model import Direction
from cells.accounts.rules import CloseAccount, MoveMoney, OpenAccount
from cells.answers import resource_of
from cells.ledger.model import Accepted, AccountKind, Command, Idempotency, Outcome
from cells.ledger.tables import ACCOUNTS
from cells.settings import TransferSettings
from cells.transfers.coordinator import Coordinator
from cells.transfers.model import Transfer, TransferKind
from cells.transfers.rules import BeginTransfer, EndBranch, TryBranch
from cells.transfers.tables import BRANCHES, TRANSFERS
from router.errors import Refusal
from router.ids import Kind, account_id, mint, slot_of_id
from router.slots import slot_of_user
from tests.property.memory import NOW, MemoryStore, Owner, check_books

CELLS = ["a", "b"]
USERS = {"ann": "a", "bob": "b", "cy": "b"}
# What may follow what; written from the design, not taken from the rules.
NEXT = {
    "": {"trying", "confirmed"},
    "trying": {"trying", "committing", "cancelling"},
    "committing": {"committing", "confirmed"},
    "cancelling": {"cancelling", "cancelled"},
    "confirmed": {"confirmed"},
    "cancelled": {"cancelled"},
}
ENDED = {"confirmed", "cancelled"}


class Ask:
    """A question of a coordinator: awaiting it hands it to the machine."""

    def __init__(self, method: str, content: Any) -> None:
        self.method = method
        self.content = content

    def __await__(self) -> Generator[Ask, Any, Any]:
        return (yield self)


class AskingLanes:
    """Stands for the lanes of the coordinator's own cell."""

    async def submit(self, command: Command, timeout_s: float | None = None) -> Outcome:
        return cast("Outcome", await Ask("submit", command))


class AskingBranches:
    """Stands for the mesh: the payee's cell, wherever it is."""

    async def step(self, step: BranchStep) -> None:
        await Ask(BranchStep.Kind.Name(step.kind), step)


@dataclass(eq=False)
class Driver:
    """A coordinator at work on one transfer, in one cell, at one of its questions."""

    cell: str
    coroutine: Coroutine[Ask, Any, Transfer]
    asks: Ask


def unanswered(code: grpc.StatusCode) -> Refusal:
    return Refusal(code, code.name, "")


class TransferMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        owners = {slot_of_user(user): Owner(cell, 1) for user, cell in USERS.items()}
        self.store = MemoryStore(owners)
        self.drivers: list[Driver] = []
        self.late: list[Ask] = []
        self.arrived: list[Ask] = []
        self.states: dict[str, str] = {}
        self.begun: list[Transfer] = []
        self.flows: Counter[str] = Counter()
        self._random = itertools.count(1)

    def new(self, kind: Kind, slot: int) -> str:
        return mint(kind, slot, unix_ms=0, random_80=next(self._random))

    def key(self, user: str, method: str) -> Idempotency:
        return Idempotency(user, str(next(self._random)), method, b"")

    def owner(self, slot: int) -> str:
        return self.store.owners[slot].cell

    def at_home(self, command: Command) -> Outcome:
        return self.store.commit(self.owner(command.slot), [command])[0]

    @initialize()
    def people_with_money(self) -> None:
        for user in USERS:
            slot = slot_of_user(user)
            opened = OpenAccount(
                slot, user, "USD", AccountKind.PERSON, self.key(user, "OpenAccount")
            )
            assert isinstance(self.at_home(opened), Accepted)
            self.move_money(user, Direction.IN, 100)

    @rule(
        user=st.sampled_from(list(USERS)),
        way=st.sampled_from(list(Direction)),
        amount=st.integers(1, 100),
    )
    def move_money(self, user: str, way: Direction, amount: int) -> None:
        slot = slot_of_user(user)
        command = MoveMoney(
            slot, self.new(Kind.MOVEMENT, slot), user, way, amount, "USD", self.key(user, "Move")
        )
        if isinstance(self.at_home(command), Accepted):
            self.flows[user] += amount if way == Direction.IN else -amount

    @rule()
    def empty_and_close(self) -> None:
        """A payee who goes away: tries to them are refused, promises to them are kept."""
        user = "cy"
        slot, account = slot_of_user(user), account_id(user, "USD")
        left = self.store.get(ACCOUNTS, slot, account)
        if left.available and left.state == "open":
            self.move_money(user, Direction.OUT, left.available)
        outcome = self.at_home(CloseAccount(slot, account, self.key(account, "CloseAccount")))
        closed = isinstance(outcome, Accepted)
        assert closed == (not left.held and not left.promised)

    @rule(
        parties=st.permutations(list(USERS)),
        amount=st.integers(1, 60),
        dies=st.booleans(),
    )
    def begin(self, parties: list[str], amount: int, dies: bool) -> None:
        payer, payee, *_ = parties
        slot = slot_of_user(payer)
        command = BeginTransfer(
            slot, self.new(Kind.TRANSFER, slot), self.new(Kind.EVENT, slot), TransferKind.USER,
            payer, payee, account_id(payer, "USD"), account_id(payee, "USD"), amount, "USD", "",
            self.key(payer, "CreateTransfer"),
        )  # fmt: skip
        outcome = self.at_home(command)
        if not isinstance(outcome, Accepted):
            return
        self.begun.append(outcome.resource)
        # In one cell it is done; across cells, whoever began it may die before it drives it.
        if outcome.resource.state not in ENDED and not dies:
            self.drive(outcome.resource, self.owner(slot), None)

    def drive(self, transfer: Transfer, cell: str, now: datetime | None) -> None:
        coordinator = Coordinator(cast("Any", AskingLanes()), AskingBranches(), TransferSettings())
        self.resume(Driver(cell, coordinator.drive(transfer, now=now), Ask("", None)))

    def resume(
        self, driver: Driver, answer: Any = None, error: BaseException | None = None
    ) -> None:
        """Runs a coordinator to its next question, or to its end."""
        try:
            if error is not None:
                driver.asks = driver.coroutine.throw(error)
            else:
                driver.asks = driver.coroutine.send(answer)
        except StopIteration:
            self.forget(driver)
        except Refusal as refusal:
            self.forget(driver)
            # The only reason why its own cell may refuse it: the slot has gone.
            if refusal.reason != "NOT_OWNER":
                raise
        else:
            if driver not in self.drivers:
                self.drivers.append(driver)

    def forget(self, driver: Driver) -> None:
        if driver in self.drivers:
            self.drivers.remove(driver)

    @precondition(lambda self: self.in_doubt())
    @rule(data=st.data(), cell=st.sampled_from(CELLS), too_late=st.booleans())
    def another_coordinator(self, data: st.DataObject, cell: str, too_late: bool) -> None:
        """Recovery, while the first may still be at work; even in a cell that lost the slot."""
        transfer = data.draw(st.sampled_from(self.in_doubt()))
        age = timedelta(hours=1) if too_late else timedelta()
        self.drive(transfer, cell, NOW + age)

    @precondition(lambda self: self.drivers)
    @rule(data=st.data(), steps=st.integers(1, 4))
    def all_goes_well_for_a_while(self, data: st.DataObject, steps: int) -> None:
        driver = data.draw(st.sampled_from(self.drivers))
        for _ in range(steps):
            if driver in self.drivers:
                self.answer_truly(driver)
                self.a_decision_is_made_once()

    @precondition(lambda self: self.drivers)
    @rule(
        data=st.data(),
        fate=st.sampled_from(
            ["arrives", "arrives", "arrives", "lost", "answer lost", "late", "twice", "crash"]
        ),
    )
    def step(self, data: st.DataObject, fate: str) -> None:
        self.meet(data.draw(st.sampled_from(self.drivers)), fate)

    def meet(self, driver: Driver, fate: str) -> None:
        """What happens to a coordinator's question."""
        asks = driver.asks
        if fate == "crash":
            self.crash(driver)
        elif asks.method == "submit":
            # Its own database: an answer that is lost is a crash after the commit.
            if fate in {"lost", "late"}:
                self.crash(driver)
                return
            outcome = self.store.commit(driver.cell, [asks.content])[0]
            if fate == "answer lost":
                self.crash(driver)
            else:
                self.resume(driver, outcome)
        elif fate in {"lost", "late"}:
            if fate == "late":
                self.late.append(asks)
            self.resume(driver, error=unanswered(grpc.StatusCode.DEADLINE_EXCEEDED))
        else:
            if fate == "twice":
                self.participate(asks)
            answer = self.participate(asks)
            if fate == "answer lost":
                answer = unanswered(grpc.StatusCode.UNAVAILABLE)
            if isinstance(answer, Refusal):
                self.resume(driver, error=answer)
            else:
                self.resume(driver, answer)

    def participate(self, asks: Ask) -> Any:
        """The payee's cell takes a request, as ParticipantService does."""
        self.arrived.append(asks)
        request = asks.content
        account, transfer_id = request.payee_account_id, request.transfer_id
        slot = slot_of_id(account)
        command: Command
        if asks.method == "KIND_TRY":
            money = request.amount
            command = TryBranch(slot, transfer_id, account, money.minor_units, money.currency)
        else:
            command = EndBranch(slot, transfer_id, account, asks.method == "KIND_CONFIRM")
        try:
            branch = resource_of(self.at_home(command))
        except Refusal as refusal:
            return refusal
        # What success means to whoever asked: a late try is never told that it is promised.
        meant = {
            "KIND_TRY": {"tried", "confirmed"},
            "KIND_CONFIRM": {"confirmed"},
            "KIND_CANCEL": {"cancelled"},
        }
        assert branch.state in meant[asks.method]
        return branch

    def crash(self, driver: Driver) -> None:
        driver.coroutine.close()
        self.forget(driver)

    @precondition(lambda self: self.drivers)
    @rule(
        data=st.data(),
        fates=st.lists(st.sampled_from(["answer lost", "late", "crash"]), max_size=2),
    )
    def overtaken(self, data: st.DataObject, fates: list[str]) -> None:
        """A coordinator has trouble, and another one thinks that it is too late."""
        driver = data.draw(st.sampled_from(self.drivers))
        transfer_id = getattr(driver.asks.content, "transfer_id", "")
        for fate in fates:
            if driver in self.drivers:
                self.meet(driver, fate)
                self.a_decision_is_made_once()
        for transfer in self.in_doubt():
            if transfer.transfer_id == transfer_id:
                self.drive(transfer, self.owner(transfer.slot), NOW + timedelta(hours=1))

    @precondition(lambda self: self.late)
    @rule(data=st.data(), again=st.booleans())
    def late_message(self, data: st.DataObject, again: bool) -> None:
        asks = data.draw(st.sampled_from(self.late))
        self.participate(asks)
        if not again:
            self.late.remove(asks)

    @rule(user=st.sampled_from(list(USERS)), cell=st.sampled_from(CELLS))
    def slot_moves(self, user: str, cell: str) -> None:
        slot = slot_of_user(user)
        self.store.owners[slot] = Owner(cell, self.store.owners[slot].epoch + 1)

    def in_doubt(self) -> list[Transfer]:
        return [it for it in self.store.all(TRANSFERS) if it.state not in ENDED]

    @invariant()
    def books_hold_at_every_step(self) -> None:
        check_books(self.store)

    @invariant()
    def money_is_conserved_and_in_flight_money_is_known(self) -> None:
        inside = [it for it in self.store.all(ACCOUNTS) if it.purpose != "external"]
        assert sum(account.balance for account in inside) == sum(self.flows.values())
        branches = {it.transfer_id: it.state for it in self.store.all(BRANCHES)}
        flying = sum(
            it.amount
            for it in self.store.all(TRANSFERS)
            if it.state == "committing" and branches.get(it.transfer_id) != "confirmed"
        )
        assert sum(it.balance for it in self.store.by_purpose("clearing")) == flying

    @invariant()
    def a_decision_is_made_once(self) -> None:
        for transfer in self.store.all(TRANSFERS):
            before = self.states.get(transfer.transfer_id, "")
            assert transfer.state in NEXT[before]
            self.states[transfer.transfer_id] = transfer.state

    @invariant()
    def both_sides_agree(self) -> None:
        branches = {it.transfer_id: it.state for it in self.store.all(BRANCHES)}
        posted = {entry.posting_id for entry in self.store.entries.values()}
        for transfer in self.store.all(TRANSFERS):
            branch = branches.get(transfer.transfer_id, "")
            allowed = {
                "trying": {"", "tried"},
                "committing": {"tried", "confirmed"},
                "cancelling": {"", "tried", "cancelled"},
                "cancelled": {"cancelled"},
                "confirmed": {"" if transfer.transfer_id in posted else "confirmed"},
            }
            assert branch in allowed[transfer.state], (transfer.state, branch)

    def teardown(self) -> None:
        """Everything crashes; then recovery, with a network that works; then what was late, and
        all that ever arrived once more."""
        for driver in list(self.drivers):
            self.crash(driver)
        for transfer in self.in_doubt():
            self.drive(transfer, self.owner(transfer.slot), NOW)
            for _ in range(10):
                if not self.drivers:
                    break
                (driver,) = self.drivers
                self.answer_truly(driver)
                self.a_decision_is_made_once()
            assert not self.drivers, "recovery does not end"
        for asks in self.late + self.arrived:
            self.participate(asks)
        assert not self.in_doubt()
        self.books_hold_at_every_step()
        self.money_is_conserved_and_in_flight_money_is_known()
        self.both_sides_agree()
        self.nothing_is_left()

    def answer_truly(self, driver: Driver) -> None:
        asks = driver.asks
        if asks.method == "submit":
            self.resume(driver, self.store.commit(driver.cell, [asks.content])[0])
            return
        answer = self.participate(asks)
        if isinstance(answer, Refusal):
            self.resume(driver, error=answer)
        else:
            self.resume(driver, answer)

    def nothing_is_left(self) -> None:
        expected = Counter(self.flows)
        for begun in self.begun:
            ended = self.store.get(TRANSFERS, begun.slot, begun.transfer_id)
            if ended.state == "confirmed":
                expected[begun.payer_id] -= begun.amount
                expected[begun.payee_id] += begun.amount
        for account in self.store.all(ACCOUNTS):
            assert (account.held, account.promised, account.reserved) == (0, 0, 0)
            if account.purpose == "balance":
                assert account.balance == expected[account.user_id]
        told = Counter(
            event["data"]["transfer_id"]
            for event in self.store.events.values()
            if event["type"].startswith("transfer.")
        )
        assert told == Counter(begun.transfer_id for begun in self.begun)


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Coordinators log each lost answer; here that is all that they do."""
    with capture_logs():
        yield


TestTransfers = TransferMachine.TestCase
TestTransfers.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
