"""Drills through DrillService: what is planned heals, whoever dies; what is wrong is told."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
from cellpay.control.v1 import control_pb2
from cellpay.control.v1 import drills_pb2 as pb

from control.cellctl.session import Session
from control.drills.store import Journal
from control.mesh import launcher
from control.mesh.processes import Identity, send, strays_of
from router.errors import details_of

pytestmark = pytest.mark.chaos

_ENDED = frozenset(
    {
        pb.Drill.STATE_REPORTED,
        pb.Drill.STATE_REFUSED,
        pb.Drill.STATE_ABORTED,
        pb.Drill.STATE_FAILED,
    }
)
_WAIT_S = 120.0


def spec(name: str, fault: pb.Fault.ValueType, **fields: Any) -> pb.DrillSpec:
    """Short checks; generous bounds, since a test machine may be busy elsewhere."""
    bounds = pb.Hypothesis(p99_max_ms=8_000, during_p99_max_ms=60_000, during_success_min=0.5)
    plain: dict[str, Any] = {"check_s": 1, "observe_s": 2, "lease_s": 60, "hypothesis": bounds}
    return pb.DrillSpec(name=name, fault=fault, **(plain | fields))


async def start(session: Session, wanted: pb.DrillSpec, name: str = "operator") -> pb.Drill:
    async with session.drills(name) as drills:
        request = pb.StartDrillRequest(spec=wanted, reason="a test")
        return await drills.StartDrill(request, timeout=10)


async def end(session: Session, name: str) -> pb.Drill:
    async with session.drills() as drills:
        request = pb.EndDrillRequest(name=name, reason="the test is over")
        await drills.EndDrill(request, timeout=20)
    return await until(session, name, _ENDED)


async def until(session: Session, name: str, states: frozenset[Any]) -> pb.Drill:
    """Follows a drill to one of these states, over a controller's death if need be."""
    deadline = asyncio.get_running_loop().time() + _WAIT_S
    async with session.drills() as drills:
        while True:
            drill = await drills.GetDrill(
                pb.GetDrillRequest(name=name), timeout=30, wait_for_ready=True
            )
            if drill.state in states:
                return drill
            assert drill.state not in _ENDED, drill
            assert asyncio.get_running_loop().time() < deadline, drill
            await asyncio.sleep(0.1)


async def refusal(call: Any) -> tuple[grpc.StatusCode, str, set[str]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    details = details_of(caught.value)
    return caught.value.code(), details.reason, {item.field for item in details.violations}


def processes_of(session: Session, name: str) -> list[Identity]:
    """The drill's runner and its watchdog: strays that the mesh knows by their mark."""
    return [
        item
        for item in strays_of(session.data.resolve())
        if f"\0{name}\0" in (Path("/proc") / str(item.pid) / "cmdline").read_text()
        and "control.drills.runner" in (Path("/proc") / str(item.pid) / "cmdline").read_text()
    ]


def alive(session: Session) -> set[str]:
    return {item.name for item in launcher.status(session.data) if item.alive}


async def owners(session: Session) -> dict[str, int]:
    async with session.control() as control:
        listed = await control.ListCells(control_pb2.ListCellsRequest(), timeout=10)
    return {cell.cell: sum(s.last - s.first + 1 for s in cell.slots) for cell in listed.cells}


async def test_nats_is_lost_and_payments_do_not_notice(session: Session) -> None:
    drill = await start(session, spec("nats", pb.FAULT_NATS_LOSS))
    assert drill.state == pb.Drill.STATE_PLANNED
    await until(session, "nats", frozenset({pb.Drill.STATE_CHECKED_DURING}))
    assert "nats" not in alive(session)
    drill = await end(session, "nats")
    assert drill.state == pb.Drill.STATE_REPORTED
    assert drill.verdict == "held", drill
    assert "nats" in alive(session)
    assert [check.phase for check in drill.checks] == ["before", "during", "after"]
    report = json.loads((Path(drill.report) / "report.json").read_text())
    assert report["verdict"] == "held"
    assert [item["state"] for item in report["timeline"]][-1] == "reported"
    assert "## Timeline" in (Path(drill.report) / "report.md").read_text()


async def test_a_cell_is_lost_and_the_drill_too_and_both_heal(session: Session) -> None:
    """The drill's process is killed in the middle of it: its watchdog heals, checks and reports."""
    before = await owners(session)
    wanted = spec("loss", pb.FAULT_CELL_LOSS, cell="b", observe_s=30)
    await start(session, wanted)
    await until(session, "loss", frozenset({pb.Drill.STATE_INJECTED}))
    assert "cell-b" not in alive(session)
    # The same again changes nothing; another one of this name, or beside it, is refused.
    assert (await start(session, wanted)).run == 1
    assert await refusal(start(session, spec("loss", pb.FAULT_NATS_LOSS))) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "DRILL_EXISTS",
        set(),
    )
    assert await refusal(start(session, spec("other", pb.FAULT_NATS_LOSS))) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "DRILL_IN_PROGRESS",
        set(),
    )
    runner = min(processes_of(session, "loss"), key=lambda item: item.pid)
    send(runner, signal.SIGKILL)
    drill = await until(session, "loss", _ENDED)
    assert drill.state == pb.Drill.STATE_ABORTED
    assert drill.checks[-1].phase == "after"
    assert drill.checks[-1].books == "ok"
    assert "cell-b" in alive(session)
    assert await owners(session) == before


async def test_a_paused_cell_is_woken_when_the_lease_runs_out(session: Session) -> None:
    before = await owners(session)
    await start(session, spec("pause", pb.FAULT_PAUSE, cell="c", lease_s=7))
    drill = await until(session, "pause", _ENDED)
    assert drill.state == pb.Drill.STATE_REPORTED
    assert drill.checks[-1].holds, drill
    assert await owners(session) == before


async def test_a_drill_without_any_process_is_taken_up_by_a_controller(session: Session) -> None:
    """As after a restart of the mesh: neither runner nor watchdog, another controller."""
    await start(session, spec("orphan", pb.FAULT_REDIS_LOSS, cell="a", observe_s=30))
    await until(session, "orphan", frozenset({pb.Drill.STATE_INJECTED}))
    launcher.kill(session.data, "controller", signal.SIGKILL)
    for _ in range(3):
        # The watchdog may be at its start still.
        for process in processes_of(session, "orphan"):
            send(process, signal.SIGKILL)
    assert "redis-a" not in alive(session)
    await asyncio.to_thread(launcher.start, session.data, "controller")
    drill = await until(session, "orphan", _ENDED)
    assert drill.state == pb.Drill.STATE_ABORTED
    assert "redis-a" in alive(session)
    # To end what has ended is no error.
    assert (await end(session, "orphan")).state == pb.Drill.STATE_ABORTED


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        (spec("x", pb.FAULT_CELL_LOSS, cell="z"), "spec.cell"),
        (spec("x", pb.FAULT_PARTITION, cell="a", other_cell="a"), "spec.other_cell"),
        (spec("x", pb.FAULT_REGION_LOSS, region="mars"), "spec.region"),
        (spec("../../x", pb.FAULT_NATS_LOSS), "spec.name"),
        (spec("x", pb.FAULT_UNSPECIFIED), "spec.fault"),
        (spec("x", pb.FAULT_NATS_LOSS, lease_s=999_999), "spec.lease_s"),
    ],
)
async def test_a_wrong_drill_is_refused_by_its_field(
    session: Session, wanted: pb.DrillSpec, field: str
) -> None:
    code, reason, fields = await refusal(start(session, wanted))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert reason == "INVALID_REQUEST"
    assert field in fields


async def test_only_operators_drill_and_refusals_are_audited(session: Session) -> None:
    wanted = spec("stranger", pb.FAULT_NATS_LOSS)
    code, reason, _ = await refusal(start(session, wanted, "client"))
    assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED")
    async with session.drills() as drills:
        unknown = pb.EndDrillRequest(name="never", reason="why not")
        code, reason, _ = await refusal(drills.EndDrill(unknown, timeout=10))
        assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "DRILL_NOT_FOUND")
        code, _, fields = await refusal(
            drills.StartDrill(pb.StartDrillRequest(spec=wanted), timeout=10)
        )
        assert (code, fields) == (grpc.StatusCode.INVALID_ARGUMENT, {"reason"})
    async with session.control() as control:
        request = control_pb2.ListAuditRecordsRequest(page_size=100)
        listed = await control.ListAuditRecords(request, timeout=10)
    found = [item for item in listed.records if item.action.startswith("drill.")]
    gate = [item for item in listed.records if item.action == "DrillService.StartDrill"]
    assert any(item.verdict == "denied: has no role for this" for item in gate)
    assert any(item.verdict == "denied: DRILL_NOT_FOUND" for item in found)
    assert Journal(session.data, "stranger").load() is None
