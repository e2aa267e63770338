"""`cellctl drill`: planned faults on the local mesh, healed by their end, lease or process."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer
from cellpay.control.v1 import drills_pb2 as pb

from control.cellctl.options import DATA, DEFAULT_DATA, JSON, REASON
from control.cellctl.session import Session
from control.cellctl.show import console, print_json, table

app = typer.Typer(
    help="Planned faults, healed by their end, lease or process.", no_args_is_help=True
)

WAIT = Annotated[bool, typer.Option("--wait/--no-wait", help="Follow it.")]

_ENDED = frozenset(
    {
        pb.Drill.STATE_REPORTED,
        pb.Drill.STATE_REFUSED,
        pb.Drill.STATE_ABORTED,
        pb.Drill.STATE_FAILED,
    }
)
# `start` follows it until the fault has been judged: then it waits for its end.
_STANDS = _ENDED | {pb.Drill.STATE_CHECKED_DURING}
_POLL_S = 0.25
_FAULTS = [name.removeprefix("FAULT_").lower() for name in pb.Fault.keys()[1:]]


@app.command()
def start(
    name: str,
    fault: Annotated[str, typer.Option(help=", ".join(_FAULTS))],
    reason: REASON,
    data: DATA = DEFAULT_DATA,
    cell: str = "",
    other_cell: Annotated[str, typer.Option(help="For a partition.")] = "",
    region: str = "",
    lease_s: Annotated[int, typer.Option(help="It heals after this at the latest.")] = 60,
    observe_s: Annotated[int, typer.Option(help="Judged after this.")] = 10,
    latency_ms: int = 0,
    loss_ratio: float = 0.0,
    clock_offset_s: int = 0,
    times: Annotated[int, typer.Option(help="For overload.")] = 0,
    wait: WAIT = True,
    as_json: JSON = False,
) -> None:
    """Checks the steady state, injects the fault, checks again. `end` heals it."""
    if fault not in _FAULTS:
        raise typer.BadParameter(f"must be one of {', '.join(_FAULTS)}", param_hint="--fault")
    spec = pb.DrillSpec(
        name=name,
        fault=pb.Fault.Value(f"FAULT_{fault.upper()}"),
        cell=cell,
        other_cell=other_cell,
        region=region,
        lease_s=lease_s,
        observe_s=observe_s,
        latency_ms=latency_ms,
        loss_ratio=loss_ratio,
        clock_offset_s=clock_offset_s,
        times=times,
    )

    async def begin() -> pb.Drill:
        async with Session.open(data).drills() as drills:
            request = pb.StartDrillRequest(spec=spec, reason=reason)
            drill = await drills.StartDrill(request, timeout=10)
            return await _followed(drills, drill, _STANDS, wait=wait, quiet=as_json)

    _tell(asyncio.run(begin()), as_json)


@app.command()
def end(
    name: str, reason: REASON, data: DATA = DEFAULT_DATA, wait: WAIT = True, as_json: JSON = False
) -> None:
    """Heals a drill, checks the steady state and writes the report."""

    async def finish() -> pb.Drill:
        async with Session.open(data).drills() as drills:
            drill = await drills.EndDrill(pb.EndDrillRequest(name=name, reason=reason), timeout=15)
            return await _followed(drills, drill, _ENDED, wait=wait, quiet=as_json)

    _tell(asyncio.run(finish()), as_json)


@app.command()
def show(name: str, data: DATA = DEFAULT_DATA, as_json: JSON = False) -> None:
    """One drill: its last run."""

    async def fetch() -> pb.Drill:
        async with Session.open(data).drills() as drills:
            return await drills.GetDrill(pb.GetDrillRequest(name=name), timeout=5)

    drill = asyncio.run(fetch())
    if as_json:
        print_json(drill_document(drill))
    else:
        _show(drill)


@app.command(name="list")
def list_drills(data: DATA = DEFAULT_DATA, as_json: JSON = False) -> None:
    """Every drill's last run, newest first."""

    async def fetch() -> list[pb.Drill]:
        async with Session.open(data).drills() as drills:
            listed = await drills.ListDrills(pb.ListDrillsRequest(page_size=500), timeout=5)
            return list(listed.drills)

    documents = [drill_document(drill) for drill in asyncio.run(fetch())]
    if as_json:
        print_json(documents)
        return
    columns = ("name", "run", "fault", "state", "verdict", "outage_ms", "report")
    table("drills", columns, [[document[name] for name in columns] for document in documents])


async def _followed(
    drills: Any, drill: pb.Drill, until: frozenset[Any], *, wait: bool, quiet: bool
) -> pb.Drill:
    seen = 0
    while True:
        for record in drill.history[seen:]:
            if not quiet:
                state = _state_name(record.state)
                console.print(f"{record.time.ToJsonString()}  {state}  {record.note}", markup=False)
        seen = len(drill.history)
        if not wait or drill.state in until:
            return drill
        await asyncio.sleep(_POLL_S)
        request = pb.GetDrillRequest(name=drill.spec.name)
        drill = await drills.GetDrill(request, timeout=10, wait_for_ready=True)


def _tell(drill: pb.Drill, as_json: bool) -> None:
    """Exit code 1 for what did not go as planned, the steady state included."""
    if as_json:
        print_json(drill_document(drill))
    else:
        _show(drill)
    if drill.state in _ENDED and (
        drill.state != pb.Drill.STATE_REPORTED or drill.verdict != "held"
    ):
        raise typer.Exit(1)


def _show(drill: pb.Drill) -> None:
    document = drill_document(drill)
    console.print(
        f"{document['name']} run {document['run']}: {document['fault']}  {document['state']}"
        f"  {document['verdict']}",
        markup=False,
    )
    for check in document["checks"]:
        holds = "holds" if check["holds"] else f"does not hold: {check['why']}"
        console.print(
            f"  {check['phase']:<7} {check['payments']} payments, {check['success_ratio']:.2%} "
            f"made, p99 {check['p99_ms']} ms, books {check['books']}: {holds}",
            markup=False,
        )
    if drill.state in _ENDED:
        console.print(
            f"  outage {document['outage_ms']} ms, budget burnt {document['budget_burnt']:.4%}, "
            f"report {document['report']}",
            markup=False,
        )
    elif document["lease_expire_time"]:
        console.print(f"  heals by itself at {document['lease_expire_time']}", markup=False)


def drill_document(drill: pb.Drill) -> dict[str, Any]:
    spec = drill.spec
    leased = drill.HasField("lease_expire_time")
    return {
        "name": spec.name,
        "run": drill.run,
        "fault": pb.Fault.Name(spec.fault).removeprefix("FAULT_").lower(),
        "cell": spec.cell,
        "other_cell": spec.other_cell,
        "region": spec.region,
        "state": _state_name(drill.state),
        "verdict": drill.verdict,
        "actor": drill.actor,
        "reason": drill.reason,
        "outage_ms": drill.outage_ms,
        "budget_burnt": drill.budget_burnt,
        "report": drill.report,
        "lease_expire_time": drill.lease_expire_time.ToJsonString() if leased else None,
        "checks": [
            {
                "phase": check.phase,
                "payments": check.payments,
                "success_ratio": check.success_ratio,
                "p99_ms": check.p99_ms,
                "books": check.books,
                "holds": check.holds,
                "why": check.why,
            }
            for check in drill.checks
        ],
        "history": [
            {
                "state": _state_name(record.state),
                "time": record.time.ToJsonString(),
                "note": record.note,
            }
            for record in drill.history
        ],
    }


def _state_name(state: pb.Drill.State.ValueType) -> str:
    return pb.Drill.State.Name(state).removeprefix("STATE_").lower()
