"""`make demo`: a region dies in the middle of the load, and no cent is lost.

Real purchases are replayed through three cells, transfers cross them, one cell is killed with
SIGKILL, its users get a new home, the books are audited, and the cell is given its slots back.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cellpay.accounts.v1 import accounts_pb2
from cellpay.control.v1 import control_pb2 as pb
from cellpay.money.v1.money_pb2 import Money
from cellpay.payments.v1 import payments_pb2
from cellpay.transfers.v1 import transfers_pb2

from cells.verification.auditor import audit
from cells.verification.model import Report, lines
from control.cellctl.load import Loader, LoadReport, Purchase, read_purchases
from control.cellctl.session import Session
from control.cellctl.show import console, decimal_amount, range_text, step_name
from control.mesh import launcher
from control.slotmap import read_slot_map
from router.client import CallPolicy, Mesh
from router.client.channel import CallFigures
from router.slots import slot_of_user

PURCHASES = Path(__file__).resolve().parents[2] / "examples" / "cdnow.csv"
_VICTIM = "b"
_KILL_AT = 0.35
_PEOPLE = 60
_TRANSFERRING = 6
_PERSON_MONEY_MINOR = 100_000
_PROBES = 24
_CURRENCY = "USD"
_CALLS = CallPolicy(timeout_s=40.0)


@dataclass(slots=True)
class Story:
    """What happened, as the clients saw it. Seconds count from the start of the load."""

    started: float = field(default_factory=time.monotonic)
    events: list[tuple[float, str]] = field(default_factory=list)
    victim_slots: frozenset[int] = frozenset()
    killed_at: float | None = None
    # The first answer for a user of the dead cell after its death.
    back_at: float | None = None
    probes_back: list[float] = field(default_factory=list)
    transfers: int = 0
    transfers_refused: int = 0
    transfers_across: int = 0
    done: bool = False

    def tell(self, text: str) -> None:
        moment = time.monotonic() - self.started
        self.events.append((moment, text))
        console.print(f"[dim]{moment:6.2f} s[/dim]  {text}")


def run_demo(data: Path | None) -> bool:
    """True when the books balance and nothing that was acknowledged is missing."""
    with contextlib.ExitStack() as stack:
        folder = data or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cellpay-")))
        console.print("[bold]Starting three cells[/bold] (etcd, PostgreSQL, NATS, Redis, Envoy, …)")
        stack.enter_context(_timed("the mesh is up"))
        stack.enter_context(launcher.running(folder, 3, progress=_quiet))
        return asyncio.run(_Demo(folder).run())


def _quiet(line: str) -> None:
    console.print(f"[dim]  {line}[/dim]")


@contextlib.contextmanager
def _timed(what: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    console.print(f"[dim]everything stopped; {time.monotonic() - start:.0f} s in all[/dim]")


class _Demo:
    def __init__(self, data: Path) -> None:
        self._data = data
        self._session = Session.open(data)
        self._story = Story()
        self._homes: dict[int, str] = {}

    async def run(self) -> bool:
        purchases, rejected = read_purchases(PURCHASES)
        console.print(
            f"\n[bold]Replaying {len(purchases):,} real purchases[/bold] (CDNOW, 1997-98) of "
            f"{len({item.user_id for item in purchases}):,} customers; "
            f"{len(rejected)} rows of 0.00 dollars are reported, not paid"
        )
        async with self._session.mesh(_CALLS) as mesh, self._session.control() as control:
            self._homes = await self._read_homes(control)
            self._story.victim_slots = frozenset(
                slot for slot, cell in self._homes.items() if cell == _VICTIM
            )
            await self._open_people(mesh)
            self._story.started = time.monotonic()
            loader = Loader(mesh, concurrency_max=48, on_paid=lambda _: None)
            async with asyncio.TaskGroup() as group:
                loading = group.create_task(loader.run(purchases, rejected))
                group.create_task(self._transfer_until_done(mesh))
                group.create_task(self._kill_in_the_middle(mesh, control, loader, len(purchases)))
                await loading
                self._story.done = True
            self._story.tell(f"load finished: {loader.report.payments_per_s:.0f} payments/s")
            await self._come_back(control)
            report = await self._settled_audit()
            missing = await self._missing(mesh, purchases)
            figures = mesh.channel.figures
            self._summary(loader.report, report, missing, figures)
        return report.ok and missing == 0

    async def _read_homes(self, control: Any) -> dict[int, str]:
        slot_map = await control.GetSlotMap(pb.GetSlotMapRequest(), timeout=5)
        return {
            slot: piece.cell
            for piece in slot_map.ranges
            for slot in range(piece.first, piece.last + 1)
        }

    def _home(self, user_id: str) -> str:
        """Where a user was at home when the load began."""
        return self._homes[slot_of_user(user_id)]

    async def _open_people(self, mesh: Mesh) -> None:
        async def one(user_id: str) -> None:
            await mesh.accounts.OpenAccount(
                accounts_pb2.OpenAccountRequest(
                    user_id=user_id, currency=_CURRENCY, idempotency_key="demo-open"
                )
            )
            await mesh.accounts.Deposit(
                accounts_pb2.DepositRequest(
                    user_id=user_id,
                    amount=Money(currency=_CURRENCY, minor_units=_PERSON_MONEY_MINOR),
                    idempotency_key="demo-fund",
                )
            )

        async with asyncio.TaskGroup() as group:
            for number in range(_PEOPLE):
                group.create_task(one(f"person-{number}"))

    async def _transfer_until_done(self, mesh: Mesh) -> None:
        """Random transfers between people, most of them across cells."""

        async def one(worker: int) -> None:
            choice = random.Random(worker)
            while not self._story.done:
                payer, payee = choice.sample(range(_PEOPLE), 2)
                request = transfers_pb2.CreateTransferRequest(
                    payer_id=f"person-{payer}",
                    payee_id=f"person-{payee}",
                    amount=Money(currency=_CURRENCY, minor_units=choice.randint(1, 5_000)),
                )
                try:
                    await mesh.transfers.CreateTransfer(request)
                    self._story.transfers += 1
                    if self._home(request.payer_id) != self._home(request.payee_id):
                        self._story.transfers_across += 1
                except grpc.aio.AioRpcError:
                    self._story.transfers_refused += 1
                await asyncio.sleep(0.02)

        async with asyncio.TaskGroup() as group:
            for worker in range(_TRANSFERRING):
                group.create_task(one(worker))

    async def _kill_in_the_middle(
        self, mesh: Mesh, control: Any, loader: Loader, purchases: int
    ) -> None:
        story = self._story
        while loader.report.paid < purchases * _KILL_AT:
            await asyncio.sleep(0.02)
        for name in (f"cell-{_VICTIM}", f"relay-{_VICTIM}", f"redis-{_VICTIM}"):
            await asyncio.to_thread(launcher.kill, self._data, name, signal.SIGKILL)
            if story.killed_at is None:
                story.killed_at = time.monotonic()
        story.tell(
            f"[bold red]SIGKILL: cell {_VICTIM} of region-{_VICTIM} is dead[/bold red] "
            f"({loader.report.paid:,} payments done, {len(story.victim_slots)} slots homeless)"
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_failover(control))
            for user_id in self._victims():
                group.create_task(self._probe(mesh, user_id))

    def _victims(self) -> list[str]:
        users = (f"probe-{number}" for number in range(10_000))
        mine = (user for user in users if slot_of_user(user) in self._story.victim_slots)
        return [next(mine) for _ in range(_PROBES)]

    async def _probe(self, mesh: Mesh, user_id: str) -> None:
        """A user of the dead cell wants an account now: how long does the SDK keep him waiting?"""
        await mesh.accounts.OpenAccount(
            accounts_pb2.OpenAccountRequest(user_id=user_id, currency=_CURRENCY)
        )
        assert self._story.killed_at is not None
        waited = time.monotonic() - self._story.killed_at
        self._story.probes_back.append(waited)
        if self._story.back_at is None:
            self._story.back_at = time.monotonic()
            self._story.tell(f"first answer to a user of cell {_VICTIM} again")

    async def _watch_failover(self, control: Any) -> None:
        """Tells each step of the failover that the policy starts."""
        seen: set[int] = set()
        while True:
            listed = await control.ListOperations(pb.ListOperationsRequest(page_size=1), timeout=10)
            for operation in listed.operations:
                for record in operation.history:
                    if record.step not in seen:
                        seen.add(record.step)
                        self._story.tell(
                            f"failover {step_name(record.step)} {record.note}".rstrip()
                        )
                if operation.step in (pb.Operation.STEP_DONE, pb.Operation.STEP_FAILED):
                    moves = ", ".join(
                        f"{range_text(move.first, move.last)} → {move.target}"
                        for move in operation.moves
                    )
                    self._story.tell(f"new homes: {moves}")
                    return
            await asyncio.sleep(0.02)

    async def _come_back(self, control: Any) -> None:
        """The region is repaired and gets its users back, without an outage this time."""
        for name in (f"redis-{_VICTIM}", f"cell-{_VICTIM}", f"relay-{_VICTIM}"):
            await asyncio.to_thread(launcher.start, self._data, name)
        self._story.tell(f"cell {_VICTIM} runs again")
        operation = await control.StartOperation(
            pb.StartOperationRequest(
                kind=pb.Operation.KIND_RESTORE, cell=_VICTIM, reason="demo: the region is repaired"
            ),
            timeout=10,
        )
        while operation.step not in (pb.Operation.STEP_DONE, pb.Operation.STEP_FAILED):
            await asyncio.sleep(0.05)
            operation = await control.GetOperation(
                pb.GetOperationRequest(operation_id=operation.operation_id), timeout=10
            )
        self._story.tell(f"restore {step_name(operation.step)}: its slots are home again")

    async def _settled_audit(self) -> Report:
        """The audit, once nothing is in doubt any more."""
        until = time.monotonic() + 20
        async with self._session.store() as store, self._session.database() as engine:
            while True:
                current = await read_slot_map(store)
                report = await audit(engine, current[0] if current else None)
                if report.figures.in_doubt == 0 or time.monotonic() > until:
                    return report
                await asyncio.sleep(0.5)

    async def _missing(self, mesh: Mesh, purchases: list[Purchase]) -> int:
        """Acknowledged payments that the cells do not know: must be none."""
        sums = 0
        users = sorted({item.user_id for item in purchases})
        limit = asyncio.Semaphore(32)

        async def count(user_id: str) -> int:
            async with limit:
                listed = await mesh.payments.ListPayments(
                    payments_pb2.ListPaymentsRequest(payer_id=user_id, page_size=1000)
                )
                return len(listed.payments)

        async with asyncio.TaskGroup() as group:
            counting = [group.create_task(count(user_id)) for user_id in users]
        sums = sum(task.result() for task in counting)
        return len(purchases) - sums

    def _summary(
        self, load: LoadReport, report: Report, missing: int, figures: CallFigures
    ) -> None:
        story = self._story
        console.print("\n[bold]What happened[/bold]")
        for moment, text in story.events:
            console.print(f"  {moment:6.2f} s  {text}")
        console.print("\n[bold]What the clients saw[/bold]")
        if story.killed_at and story.back_at:
            outage_ms = (story.back_at - story.killed_at) * 1000
            console.print(
                f"  outage for users of cell {_VICTIM}: {outage_ms:.0f} ms to the first answer, "
                f"{max(story.probes_back) * 1000:.0f} ms to the last of {_PROBES} waiting users"
            )
        console.print(
            f"  {figures.calls:,} calls, {figures.retries:,} attempts retried by the SDK, "
            f"{figures.failures - story.transfers_refused:,} calls failed"
        )
        console.print(
            f"  {load.paid:,} payments acknowledged, {missing:,} of them missing; "
            f"{story.transfers:,} transfers ({story.transfers_across:,} across cells), "
            f"{story.transfers_refused:,} refused"
        )
        console.print("\n[bold]The books[/bold]")
        for line in lines(report):
            console.print(f"  {line}", markup=False)
        verdict = (
            "[bold green]No cent was lost." if report.ok and not missing else "[bold red]BROKEN"
        )
        total = sum(load.merchants.values())
        console.print(f"\n{verdict}[/] {decimal_amount(total, _CURRENCY)} {_CURRENCY} were paid.")
