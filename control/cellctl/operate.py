"""cellctl's operations: fail over, drain, move, rebalance, add and remove cells; pause, resume,
abort, take back. Each can be planned first (`--dry-run`)."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from cellpay.control.v1 import control_pb2 as pb
from cellpay.control.v1 import operations_pb2 as ops_pb
from google.protobuf.field_mask_pb2 import FieldMask

from control.cellctl.options import DATA, DEFAULT_DATA
from control.cellctl.session import Session
from control.cellctl.show import console, range_text, show_plan, step_name
from router.slots import SlotRange, parse_range

REASON = Annotated[str, typer.Option("--reason", help="Why; kept in the audit log. Required.")]
TARGET = Annotated[str, typer.Option("--to", help="The cell that takes over; spread if not given.")]
WAIT = Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the operation to its end.")]
REGION = Annotated[str, typer.Option("--region", help="All cells of a region, instead of names.")]
DRY_RUN = Annotated[bool, typer.Option("--dry-run", help="Only show what would move.")]
FORCE = Annotated[bool, typer.Option("--force", help="Also to a cell that is held out.")]

_ENDED = (
    pb.Operation.STEP_DONE,
    pb.Operation.STEP_FAILED,
    pb.Operation.STEP_ABORTED,
    pb.Operation.STEP_ROLLED_BACK,
)
_RESTING = (pb.Operation.STEP_WAITING, pb.Operation.STEP_PAUSED)
_POLL_S = 0.05
# The controller looks at what waits twice a second.
_RESUME_WAIT_S = 1.5
_TIMEOUT_S = 10.0

cell_app = typer.Typer(help="Cells: add, change, remove.", no_args_is_help=True)
operation_app = typer.Typer(help="A running operation: pause, resume, abort, take back.",
                            no_args_is_help=True)  # fmt: skip


def failover(
    cells: Annotated[list[str] | None, typer.Argument(help="One cell or several.")] = None,
    reason: REASON = "",
    data: DATA = DEFAULT_DATA,
    to: TARGET = "",
    region: REGION = "",
    wait: WAIT = True,
    dry_run: DRY_RUN = False,
    force: FORCE = False,
) -> None:
    """Takes all slots from cells or a region, dead or alive, and gives them to others.

    What no other cell has head-room for waits, and goes in waves as there is some."""
    start(
        data, wait, dry_run, kind=pb.Operation.KIND_FAILOVER, cells=cells or [], region=region,
        target=to, reason=reason, force=force,
    )  # fmt: skip


def drain(
    cells: Annotated[list[str] | None, typer.Argument(help="One cell or several.")] = None,
    reason: REASON = "",
    data: DATA = DEFAULT_DATA,
    to: TARGET = "",
    region: REGION = "",
    wait: WAIT = True,
    dry_run: DRY_RUN = False,
    force: FORCE = False,
) -> None:
    """Moves all slots off living cells, for maintenance; refused when that overloads the others."""
    start(
        data, wait, dry_run, kind=pb.Operation.KIND_DRAIN, cells=cells or [], region=region,
        target=to, reason=reason, force=force,
    )  # fmt: skip


def restore(
    cells: Annotated[list[str] | None, typer.Argument(help="One cell or several.")] = None,
    reason: REASON = "",
    data: DATA = DEFAULT_DATA,
    region: REGION = "",
    wait: WAIT = True,
    dry_run: DRY_RUN = False,
    force: FORCE = False,
) -> None:
    """Gives cells back the slots that were their own at the start."""
    start(
        data, wait, dry_run, kind=pb.Operation.KIND_RESTORE, cells=cells or [], region=region,
        reason=reason, force=force,
    )  # fmt: skip


def move(
    to: Annotated[str, typer.Option("--to", help="The cell that takes them.")],
    reason: REASON = "",
    slots: Annotated[str, typer.Option(help="A slot or a range: 7 or 0-340.")] = "",
    source: Annotated[str, typer.Option("--from", help="All slots of this cell.")] = "",
    percent: Annotated[
        str,
        typer.Option(help="In waves, such as 1,10,50,100; each is watched, and taken back when "
                          "payments fail more often or get slower there."),
    ] = "",
    soak_s: Annotated[float, typer.Option(help="How long each wave is watched.")] = 3.0,
    failures_max: Annotated[
        int, typer.Option(help="Percentage points of failed payments more than where they were.")
    ] = 5,
    p99_ms_max: Annotated[
        int, typer.Option(help="A p99 below this is good; above, it may be twice what it was.")
    ] = 256,
    data: DATA = DEFAULT_DATA,
    wait: WAIT = True,
    dry_run: DRY_RUN = False,
    force: FORCE = False,
) -> None:  # fmt: skip
    """Moves slots to a cell, all at once or gradually."""
    if bool(slots) == bool(source):
        raise typer.BadParameter("either --slots or --from", param_hint="--slots")
    piece = _slots(slots) if slots else SlotRange(0, 0)
    gate = pb.Gate(
        soak_ms=max(1, int(soak_s * 1000)), failure_percent_max=failures_max, p99_ms_max=p99_ms_max
    )
    start(
        data, wait, dry_run, kind=pb.Operation.KIND_MOVE, target=to, first=piece.first,
        last=piece.last, cells=[source] if source else [], percents=_numbers(percent),
        gate=gate, reason=reason, force=force,
    )  # fmt: skip


def rebalance(
    weight: Annotated[
        list[str] | None, typer.Option("--weight", help="a=2; a cell not named weighs 1.")
    ] = None,
    reason: REASON = "",
    data: DATA = DEFAULT_DATA,
    wait: WAIT = True,
    dry_run: DRY_RUN = False,
    force: FORCE = False,
) -> None:
    """Moves the fewest slots so that living cells own shares like their weights."""
    start(
        data, wait, dry_run, kind=pb.Operation.KIND_REBALANCE, weights=_weights(weight or []),
        reason=reason, force=force,
    )  # fmt: skip


_CAPACITY = "Slots that it can serve; 0: no limit."
_SURGE = "Slots that it can take at once; 0: no limit."
CAPACITY = Annotated[int, typer.Option(help=_CAPACITY)]
SURGE = Annotated[int, typer.Option(help=_SURGE)]


@cell_app.command(name="add")
def add_cell(
    cell: str,
    region: Annotated[str, typer.Option(help="Where it is.")],
    reason: REASON = "",
    capacity: CAPACITY = 0,
    surge: SURGE = 0,
    data: DATA = DEFAULT_DATA,
) -> None:
    """Declares a cell. It gets slots by `move`, `rebalance` or `restore` once it lives."""
    _declare(data, cell=cell, region=region, capacity=capacity, surge=surge, reason=reason)


@cell_app.command(name="set")
def set_cell(
    cell: str,
    reason: REASON = "",
    capacity: Annotated[int | None, typer.Option(help=_CAPACITY)] = None,
    surge: Annotated[int | None, typer.Option(help=_SURGE)] = None,
    data: DATA = DEFAULT_DATA,
) -> None:
    """Declares what a known cell can take; what is not given stays as it is."""
    given = {
        name: value
        for name, value in (("capacity", capacity), ("surge", surge))
        if value is not None
    }
    if not given:
        raise typer.BadParameter("--capacity, --surge or both", param_hint="--capacity")
    _declare(data, cell=cell, reason=reason, update_mask=FieldMask(paths=list(given)), **given)


@cell_app.command(name="remove")
def remove_cell(
    cell: str,
    reason: REASON = "",
    to: TARGET = "",
    data: DATA = DEFAULT_DATA,
    wait: WAIT = True,
    dry_run: DRY_RUN = False,
) -> None:
    """Moves all slots off a cell, then forgets it."""
    start(
        data, wait, dry_run, kind=pb.Operation.KIND_REMOVE, cells=[cell], target=to, reason=reason
    )


@cell_app.command()
def release(cell: str, reason: REASON = "", data: DATA = DEFAULT_DATA) -> None:
    """Lets its failover start by itself again, after an abort held that down."""

    async def run() -> None:
        async with Session.open(data).operations() as operations:
            request = ops_pb.ReleaseFailoverRequest(cell=cell, reason=reason)
            await operations.ReleaseFailover(request, timeout=_TIMEOUT_S)

    asyncio.run(run())
    console.print(f"cell {cell} is failed over by itself again, if the policy says so")


@operation_app.command()
def pause(operation_id: str, reason: REASON = "", data: DATA = DEFAULT_DATA) -> None:
    """Stops it before its next wave."""
    _ask(data, "PauseOperation", ops_pb.PauseOperationRequest, operation_id, reason)


@operation_app.command()
def resume(
    operation_id: str, reason: REASON = "", data: DATA = DEFAULT_DATA, wait: WAIT = True
) -> None:
    """Lets it go on."""
    _ask(data, "ResumeOperation", ops_pb.ResumeOperationRequest, operation_id, reason, wait=wait)


@operation_app.command()
def abort(
    operation_id: str,
    reason: REASON = "",
    hold_s: Annotated[
        int, typer.Option(help="Of a failover: none starts by itself for so long; 0: at once.")
    ] = 3_600,
    data: DATA = DEFAULT_DATA,
) -> None:
    """Ends it before its next wave; what was moved stays moved.

    The cells of an aborted failover are not failed over automatically for a while, or until
    `cell release`."""
    request = partial(ops_pb.AbortOperationRequest, hold_s=hold_s)
    _ask(data, "AbortOperation", request, operation_id, reason)


@operation_app.command()
def rollback(
    operation_id: str, reason: REASON = "", data: DATA = DEFAULT_DATA, wait: WAIT = True
) -> None:
    """Takes its moves back, by an operation of its own."""
    _ask(
        data, "RollBackOperation", ops_pb.RollBackOperationRequest, operation_id, reason, wait=wait
    )


def failover_policy(
    automatic: Annotated[bool | None, typer.Option("--automatic/--manual")] = None,
    real_traffic: Annotated[bool | None, typer.Option("--real-traffic/--leases-only")] = None,
    failure_percent: Annotated[int, typer.Option(help="A window is bad from here.")] = 0,
    samples_min: Annotated[int, typer.Option(help="Payments that a window needs.")] = 0,
    windows: Annotated[int, typer.Option(help="Bad windows in a row.")] = 0,
    hold_down_s: Annotated[int, typer.Option(help="After a second failover.")] = 0,
    reason: REASON = "",
    data: DATA = DEFAULT_DATA,
) -> None:
    """Shows or sets when a failover starts by itself."""

    async def apply() -> pb.FailoverPolicy:
        async with Session.open(data).control() as control:
            got = await control.GetFailoverPolicy(pb.GetFailoverPolicyRequest(), timeout=_TIMEOUT_S)
            numbers = (failure_percent, samples_min, windows, hold_down_s)
            if automatic is None and real_traffic is None and not any(numbers):
                return got
            wanted = pb.FailoverPolicy(
                automatic=got.automatic if automatic is None else automatic,
                real_traffic=got.real_traffic if real_traffic is None else real_traffic,
                failure_percent=failure_percent,
                samples_min=samples_min,
                windows=windows,
                hold_down_s=hold_down_s,
            )
            request = pb.SetFailoverPolicyRequest(policy=wanted, reason=reason)
            return await control.SetFailoverPolicy(request, timeout=_TIMEOUT_S)

    got = asyncio.run(apply())
    console.print(
        f"automatic failover: {'on' if got.automatic else 'off'}; by "
        f"{'lost leases and failing payments' if got.real_traffic else 'lost leases only'}"
    )
    console.print(
        f"  grey: {got.windows} windows in a row with {got.failure_percent} % of at least "
        f"{got.samples_min} payments failed; hold-down {got.hold_down_s} s"
    )


def start(data: Path, wait: bool, dry_run: bool, **fields: Any) -> None:
    request = pb.StartOperationRequest(**fields)

    async def run() -> pb.Operation | ops_pb.OperationPlan:
        session = Session.open(data)
        if dry_run:
            async with session.operations() as operations:
                return await operations.PlanOperation(
                    ops_pb.PlanOperationRequest(operation=request), timeout=_TIMEOUT_S
                )
        async with session.control() as control:
            operation = await control.StartOperation(request, timeout=_TIMEOUT_S)
            return await _followed(control, operation, wait)

    found = asyncio.run(run())
    if isinstance(found, ops_pb.OperationPlan):
        show_plan(found)
    else:
        _conclude(found)


def _ask(
    data: Path, method: str, request: Any, operation_id: str, reason: str, *, wait: bool = False
) -> None:
    async def run() -> pb.Operation:
        session = Session.open(data)
        async with session.operations() as operations, session.control() as control:
            call = getattr(operations, method)
            operation = await call(
                request(operation_id=operation_id, reason=reason), timeout=_TIMEOUT_S
            )
            return await _followed(control, operation, wait)

    _conclude(asyncio.run(run()))


async def _followed(control: Any, operation: pb.Operation, wait: bool) -> pb.Operation:
    """Prints each step until it ends or rests. Who has just resumed one gives it time to start."""
    seen = 0
    rests_left = int(_RESUME_WAIT_S / _POLL_S) if len(operation.history) > 1 else 0
    while True:
        for record in operation.history[seen:]:
            console.print(f"{record.time.ToJsonString()}  {step_name(record.step)}  {record.note}")
        seen = len(operation.history)
        if operation.step in _RESTING:
            rests_left -= 1
        if not wait or operation.step in _ENDED or (operation.step in _RESTING and rests_left < 0):
            return operation
        await asyncio.sleep(_POLL_S)
        operation = await control.GetOperation(
            pb.GetOperationRequest(operation_id=operation.operation_id), timeout=_TIMEOUT_S
        )


def _conclude(operation: pb.Operation) -> None:
    moved = ", ".join(
        f"{range_text(item.first, item.last)} {item.source}→{item.target}"
        for item in operation.moves
    )
    console.print(f"{operation.operation_id}: {step_name(operation.step)}; {moved}")
    left = sum(piece.last - piece.first + 1 for piece in operation.rest)
    if operation.step == pb.Operation.STEP_WAITING:
        console.print(
            f"{left} slots wait for head-room where they are; they go on by themselves when a "
            f"cell has some (cellctl cell set, cell add), until: cellctl operation abort "
            f"{operation.operation_id}"
        )
    if operation.request == pb.Operation.REQUEST_PAUSE:
        console.print("it is paused when its wave has ended")
    if operation.request == pb.Operation.REQUEST_ABORT:
        console.print("it is aborted when its wave has ended")
    if operation.undone_by:
        console.print(
            f"{operation.undone_by} takes it back: cellctl operations {operation.undone_by}"
        )
    if operation.undoes:
        console.print(f"it takes {operation.undoes} back")
    if operation.step in (pb.Operation.STEP_FAILED, pb.Operation.STEP_ROLLED_BACK):
        raise typer.Exit(1)


def _declare(data: Path, **fields: Any) -> None:
    async def run() -> pb.Cell:
        async with Session.open(data).operations() as operations:
            return await operations.DeclareCell(
                ops_pb.DeclareCellRequest(**fields), timeout=_TIMEOUT_S
            )

    cell = asyncio.run(run())
    console.print(
        f"{cell.cell} in {cell.region}: capacity {cell.capacity or 'unlimited'}, "
        f"surge {cell.surge or 'unlimited'}"
    )


def _slots(text: str) -> SlotRange:
    try:
        return parse_range(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--slots") from None


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no list like 1,10,50,100", param_hint="--percent"
        ) from None


def _weights(texts: list[str]) -> dict[str, int]:
    found = {}
    for text in texts:
        cell, equals, weight = text.partition("=")
        if not (cell and equals and weight.isdecimal()):
            raise typer.BadParameter(f"{text!r} is no weight like a=2", param_hint="--weight")
        found[cell] = int(weight)
    return found
