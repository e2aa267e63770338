"""Drills: one story each. Money moves all the while, and at the end the books are audited.

After each story every request's outcome is known, every acknowledged write is there, every key had
one effect, nothing is in doubt, and the audit of the whole mesh finds nothing broken.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from cellpay.control.v1 import control_pb2 as pb

from cells.verification.auditor import audit
from cells.verification.model import Report, lines
from control.cellctl.session import Session
from control.mesh import launcher
from control.slotmap import read_slot_map
from router.client import Mesh
from tests.chaos.bank import Bank

pytestmark = pytest.mark.chaos

_ENDED = (pb.Operation.STEP_DONE, pb.Operation.STEP_FAILED)
_CLIENTS = 12
_WARM_UP_S = 1.0
_SETTLE_S = 40.0


async def operate(session: Session, **fields: object) -> pb.Operation:
    """Starts an operation and follows it to its end, over a controller's death if need be."""
    async with session.control() as control:
        operation = await control.StartOperation(
            pb.StartOperationRequest(reason="a drill", **fields),  # type: ignore[arg-type]
            timeout=10,
            wait_for_ready=True,
        )
        return await followed(control, operation)


async def followed(control: object, operation: pb.Operation) -> pb.Operation:
    until = asyncio.get_running_loop().time() + 60
    while operation.step not in _ENDED:
        assert asyncio.get_running_loop().time() < until, f"stuck: {operation}"
        await asyncio.sleep(0.05)
        operation = await control.GetOperation(  # type: ignore[attr-defined]
            pb.GetOperationRequest(operation_id=operation.operation_id),
            timeout=30,
            wait_for_ready=True,
        )
    return operation


async def cells(session: Session) -> dict[str, pb.Cell]:
    async with session.control() as control:
        listed = await control.ListCells(pb.ListCellsRequest(), timeout=30, wait_for_ready=True)
        return {cell.cell: cell for cell in listed.cells}


async def until_slotless(session: Session, cell: str) -> None:
    """Waits until a cell owns nothing: its failover has been published."""
    for _ in range(2400):
        if not (await cells(session))[cell].slots:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{cell} was never failed over")


async def until_idle(session: Session) -> None:
    """Waits until no operation runs."""
    async with session.control() as control:
        for _ in range(600):
            listed = await control.ListOperations(
                pb.ListOperationsRequest(page_size=1), timeout=30, wait_for_ready=True
            )
            if all(operation.step in _ENDED for operation in listed.operations):
                return
            await asyncio.sleep(0.05)
    raise AssertionError("an operation never ended")


async def audited(session: Session) -> Report:
    """The audit, as soon as nothing is in doubt or unsent any more."""
    until = asyncio.get_running_loop().time() + _SETTLE_S
    async with session.store() as store, session.database() as engine:
        while True:
            current = await read_slot_map(store)
            report = await audit(engine, current[0] if current else None)
            quiet = report.figures.in_doubt == 0 and report.figures.outbox_unsent == 0
            if quiet or not report.ok or asyncio.get_running_loop().time() > until:
                return report
            await asyncio.sleep(0.5)


@asynccontextmanager
async def money_moving(session: Session, mesh: Mesh, edge: Mesh, name: str) -> AsyncIterator[Bank]:
    """A bank at work while the block runs; all is checked when it has ended."""
    bank = Bank([mesh, edge], name)
    await bank.open()
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(bank.work(_CLIENTS, stop))
        await asyncio.sleep(_WARM_UP_S)
        try:
            yield bank
            await asyncio.sleep(_WARM_UP_S)
        finally:
            stop.set()
    await bank.resolve()
    report = await audited(session)
    assert report.ok, "\n".join(lines(report))
    assert report.figures.in_doubt == 0
    assert report.figures.outbox_unsent == 0
    await bank.check()
    await bank.check_settled()
    for kind in ("pay", "transfer", "refund", "deposit"):
        assert bank.counts[kind] > 0, f"no {kind} was acknowledged: {bank.counts}"


async def come_back(session: Session, cell: str) -> None:
    for name in (f"redis-{cell}", f"cell-{cell}", f"relay-{cell}"):
        await asyncio.to_thread(launcher.start, session.data, name)
    await until_idle(session)
    # By force: cells die more often here than the hold-down forgives.
    operation = await operate(session, kind=pb.Operation.KIND_RESTORE, cell=cell, force=True)
    assert operation.step == pb.Operation.STEP_DONE


async def test_a_region_dies_and_its_users_get_a_new_home(
    session: Session, mesh: Mesh, edge: Mesh
) -> None:
    async with money_moving(session, mesh, edge, "region"):
        for name in ("cell-b", "relay-b", "redis-b"):
            launcher.kill(session.data, name, signal.SIGKILL)
        await until_slotless(session, "b")
        await until_idle(session)
    async with money_moving(session, mesh, edge, "region-back"):
        await come_back(session, "b")
    assert (await cells(session))["b"].slots


async def test_slots_move_to_and_fro_under_load(session: Session, mesh: Mesh, edge: Mesh) -> None:
    async with money_moving(session, mesh, edge, "moves"):
        for number in range(6):
            target = ("c", "a", "b")[number % 3]
            operation = await operate(
                session, kind=pb.Operation.KIND_MOVE, first=0, last=511, target=target
            )
            assert operation.step == pb.Operation.STEP_DONE
    # The last move left a's slots with b.
    restored = await operate(session, kind=pb.Operation.KIND_RESTORE, cell="a")
    assert restored.step == pb.Operation.STEP_DONE


async def test_a_paused_cell_wakes_deposed_and_commits_nothing(
    session: Session, mesh: Mesh, edge: Mesh
) -> None:
    async with money_moving(session, mesh, edge, "paused"):
        launcher.kill(session.data, "cell-c", signal.SIGSTOP)
        await until_slotless(session, "c")
        await until_idle(session)
        await asyncio.sleep(1)
        launcher.kill(session.data, "cell-c", signal.SIGCONT)
        await asyncio.sleep(2)
        assert not (await cells(session))["c"].slots
    operation = await operate(session, kind=pb.Operation.KIND_RESTORE, cell="c", force=True)
    assert operation.step == pb.Operation.STEP_DONE


async def test_the_controller_dies_in_the_middle_of_operations(
    session: Session, mesh: Mesh, edge: Mesh
) -> None:
    async with money_moving(session, mesh, edge, "controller"):
        for delay_s in (0.0, 0.004, 0.008, 0.012, 0.02):
            async with session.control() as control:
                operation = await control.StartOperation(
                    pb.StartOperationRequest(
                        kind=pb.Operation.KIND_DRAIN, cell="a", reason="a drill"
                    ),
                    timeout=10,
                    wait_for_ready=True,
                )
            await asyncio.sleep(delay_s)
            launcher.kill(session.data, "controller", signal.SIGKILL)
            await asyncio.to_thread(launcher.start, session.data, "controller")
            async with session.control() as control:
                operation = await followed(control, operation)
            assert operation.step == pb.Operation.STEP_DONE
            restored = await operate(session, kind=pb.Operation.KIND_RESTORE, cell="a")
            assert restored.step == pb.Operation.STEP_DONE


async def test_nats_and_the_relays_die_and_every_event_is_told(
    session: Session, mesh: Mesh, edge: Mesh
) -> None:
    async with money_moving(session, mesh, edge, "nats"):
        launcher.kill(session.data, "nats", signal.SIGKILL)
        launcher.kill(session.data, "relay-a", signal.SIGKILL)
        await asyncio.sleep(1)
        await asyncio.to_thread(launcher.start, session.data, "nats")
        launcher.kill(session.data, "relay-b", signal.SIGKILL)
        for name in ("relay-a", "relay-b"):
            await asyncio.to_thread(launcher.start, session.data, name)


async def test_etcd_is_away_for_a_while_and_payments_go_on(
    session: Session, mesh: Mesh, edge: Mesh
) -> None:
    async with money_moving(session, mesh, edge, "etcd") as bank:
        launcher.kill(session.data, "etcd", signal.SIGKILL)
        before = bank.counts["pay"]
        await asyncio.sleep(2)
        assert bank.counts["pay"] > before
        await asyncio.to_thread(launcher.start, session.data, "etcd")
        await asyncio.sleep(2)
    owners = {cell.cell for cell in (await cells(session)).values() if cell.slots}
    assert owners == {"a", "b", "c"}, "an outage of etcd alone must not fail anybody over"


async def test_the_database_is_killed_and_no_acknowledged_write_is_lost(
    session: Session, mesh: Mesh, edge: Mesh
) -> None:
    async with money_moving(session, mesh, edge, "database"):
        launcher.kill(session.data, "postgres", signal.SIGKILL)
        await asyncio.sleep(1)
        await asyncio.to_thread(launcher.start, session.data, "postgres")


async def test_everything_dies_at_once_and_nothing_acknowledged_is_lost(
    session: Session, mesh: Mesh, edge: Mesh
) -> None:
    """A power cut: SIGKILL to the database, its cells with all their processes, NATS, the relays
    and the controller within milliseconds, under load, right after acknowledgements."""
    names = ["postgres", "controller", "nats"]
    names += [f"{role}-{cell}" for cell in "abc" for role in ("cell", "relay")]
    async with money_moving(session, mesh, edge, "blackout") as bank:
        acknowledged = bank.counts["pay"]
        for name in names:
            launcher.kill(session.data, name, signal.SIGKILL)
        for name in names:
            await asyncio.to_thread(launcher.start, session.data, name)
        await until_idle(session)
    assert acknowledged > 0
    for cell, seen in (await cells(session)).items():
        if not seen.slots:
            await come_back(session, cell)
