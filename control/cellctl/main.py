"""cellctl: start a local mesh, watch it, move its slots, load it, audit its books.

Every command takes --as NAME (another identity), --approval ID and --break-glass.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import asyncpg
import grpc
import typer
from cellpay.control.v1 import control_pb2 as pb
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy.exc import DBAPIError

from cells.verification.auditor import audit
from cells.verification.model import Report, lines
from control.cellctl import access, operate, policies
from control.cellctl.acting import MissingValue, take_acting
from control.cellctl.console.command import app as console_app
from control.cellctl.drill import app as drill_app
from control.cellctl.key import app as key_app
from control.cellctl.load import (
    Loader,
    LoadReport,
    NotLoadable,
    read_purchases,
    write_rejected,
)
from control.cellctl.plane import (
    APPROVALS,
    CONTROLLERS,
    ETCD_MEMBERS,
    ETCD_TLS,
    XDS_FALLBACK,
    plane_of,
)
from control.cellctl.reconcile import app as reconcile_app
from control.cellctl.risk.command import app as risk_app
from control.cellctl.route_decision import route_decision
from control.cellctl.scrape import scrape_config
from control.cellctl.session import NoMesh, Session
from control.cellctl.show import (
    console,
    errors,
    operation_document,
    print_json,
    show_load,
    show_operation,
    table,
)
from control.cellctl.status import show_status, status_document
from control.cellctl.vault import app as vault_app
from control.cellctl.watch import watch
from control.mesh import launcher
from control.mesh.errors import MeshError
from control.mesh.options import MeshOptions
from router.client import CallPolicy
from router.errors import Refusal, details_of
from router.slots import slot_of_user
from router.store.model import StoreUnavailable
from router.tracing.model import TracingSettings

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
access.register(app)

app.add_typer(policies.app, name="policy")
app.command()(policies.degrade)
app.add_typer(drill_app, name="drill")
app.add_typer(reconcile_app, name="reconcile")
app.add_typer(console_app, name="console")
app.command()(watch)
app.command()(scrape_config)
app.add_typer(vault_app, name="vault")
app.add_typer(risk_app, name="risk")
app.add_typer(key_app, name="key")
app.command()(route_decision)

DATA = Annotated[Path, typer.Option("--data", envvar="CELLPAY_DATA", help="The mesh's directory.")]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
REASON = Annotated[str, typer.Option("--reason", help="Why; kept in the audit log.")]
DEFAULT_DATA = Path(".cellpay")


def tracing_of(otlp: str, ratio: float) -> TracingSettings:
    try:
        return TracingSettings(endpoint=otlp, sample_ratio=ratio)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@app.command()
def up(
    data: DATA = DEFAULT_DATA,
    cells: Annotated[int, typer.Option(min=1, max=26, help="How many cells.")] = 3,
    detach: Annotated[bool, typer.Option("--detach", help="Return when all is ready.")] = False,
    automatic_failover: Annotated[
        bool, typer.Option(help="Fail over when a lease is lost.")
    ] = True,
    cell_settings: Annotated[
        str, typer.Option(help="JSON merged over every cell's settings.")
    ] = "{}",
    etcd_members: ETCD_MEMBERS = None,
    controllers: CONTROLLERS = None,
    xds_fallback: XDS_FALLBACK = None,
    etcd_tls: ETCD_TLS = None,
    approvals: APPROVALS = False,
    otlp: Annotated[
        str, typer.Option(help="Where traces go by OTLP over HTTP, as http://127.0.0.1:4318.")
    ] = "",
    trace_ratio: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="The share of traces that are kept anyhow.")
    ] = 1.0,
) -> None:
    """Starts a mesh on this machine, or what is missing of it."""
    try:
        overrides = json.loads(cell_settings)
    except ValueError as error:
        raise typer.BadParameter(f"--cell-settings is no JSON: {error}") from None
    options = MeshOptions(
        automatic_failover=automatic_failover,
        cell_overrides=overrides,
        plane=plane_of(data, etcd_members, controllers, xds_fallback, etcd_tls),
        approvals=approvals,
        tracing=tracing_of(otlp, trace_ratio),
    )
    launcher.up(data, cells, detach, options, console.print)


@app.command()
def down(data: DATA = DEFAULT_DATA) -> None:
    """Stops every process of the mesh; the data stays."""
    launcher.down(data, console.print)


@app.command()
def status(data: DATA = DEFAULT_DATA, as_json: JSON = False) -> None:
    """Processes, cells, slots, epochs, xDS subscribers."""
    document = _run(status_document(data))
    if as_json:
        print_json(document)
    else:
        show_status(document)


operate.register(app)


@app.command()
def route(user_id: str, data: DATA = DEFAULT_DATA, as_json: JSON = False) -> None:
    """Where a user is at home."""

    async def find() -> dict[str, Any]:
        slot = slot_of_user(user_id)
        async with Session.open(data).control() as control:
            slot_map = await control.GetSlotMap(pb.GetSlotMapRequest(), timeout=5)
            cells = await control.ListCells(pb.ListCellsRequest(), timeout=5)
        home = next(piece for piece in slot_map.ranges if piece.first <= slot <= piece.last)
        cell = next((item for item in cells.cells if item.cell == home.cell), pb.Cell())
        return {
            "user_id": user_id, "slot": slot, "cell": home.cell, "epoch": home.epoch,
            "region": cell.region, "address": cell.address,
        }  # fmt: skip

    found = _run(find())
    if as_json:
        print_json(found)
    else:
        console.print("  ".join(f"{name} {value}" for name, value in found.items()))


@app.command()
def operations(
    operation_id: Annotated[str, typer.Argument(help="One operation, in full.")] = "",
    data: DATA = DEFAULT_DATA,
    as_json: JSON = False,
) -> None:
    """Operations, newest first, or one of them."""

    async def fetch() -> list[pb.Operation]:
        async with Session.open(data).control() as control:
            if operation_id:
                request = pb.GetOperationRequest(operation_id=operation_id)
                return [await control.GetOperation(request, timeout=5)]
            listed = await control.ListOperations(pb.ListOperationsRequest(), timeout=5)
            return list(listed.operations)

    found = _run(fetch())
    if as_json:
        print_json([operation_document(operation) for operation in found])
    elif operation_id:
        show_operation(found[0])
    else:
        table(
            "operations",
            ("id", "kind", "cell", "step", "actor", "reason"),
            [
                [document[name] for name in
                 ("operation_id", "kind", "cell", "step", "actor", "reason")]
                for document in map(operation_document, found)
            ],
        )  # fmt: skip


@app.command()
def load(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)],
    data: DATA = DEFAULT_DATA,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Users at once.")] = 32,
) -> None:
    """Replays purchases from a CSV file; a second run of the same file adds nothing."""
    side_file = file.with_name(f"{file.stem}.rejected.csv")
    report = _run(_load(file, data, concurrency))
    if report.rejected:
        write_rejected(side_file, report.rejected)
    show_load(report, str(side_file))


async def _load(file: Path, data: Path, concurrency: int) -> LoadReport:
    purchases, rejected = read_purchases(file)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    async with Session.open(data).mesh(CallPolicy(timeout_s=60)) as mesh:
        with Progress(*columns, console=errors, transient=True) as bar:
            task = bar.add_task(file.name, total=len(purchases))
            loader = Loader(mesh, concurrency_max=concurrency, on_paid=lambda _: bar.advance(task))
            return await loader.run(purchases, rejected)


@app.command()
def verify(data: DATA = DEFAULT_DATA, as_json: JSON = False) -> None:
    """Audits the books of the whole mesh; exits 1 and names what is wrong when they do not hold."""
    report = _run(verify_mesh(data))
    if as_json:
        print_json(report.to_dict())
    else:
        for line in lines(report):
            console.print(line, markup=False)
    if not report.ok:
        raise typer.Exit(1)


async def verify_mesh(data: Path) -> Report:
    session = Session.open(data)
    async with session.database() as engine:
        slot_map = await session.slot_map()
        try:
            return await audit(engine, slot_map)
        except (OSError, DBAPIError, asyncpg.PostgresError) as error:
            # The error's text may quote what it should not (pitfall 34); its kind is enough.
            raise NoMesh(
                f"the database of {data} does not answer ({type(error).__name__}); "
                f"is the mesh up? cellctl status --data {data}"
            ) from error


@app.command()
def demo(
    data: Annotated[Path | None, typer.Option("--data", help="Keep the mesh's files here.")] = None,
) -> None:
    """A region dies on a laptop, and no cent is lost."""
    from control.cellctl.demo import run_demo

    if not run_demo(data):
        raise typer.Exit(1)


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def main() -> None:
    """Runs a command; every failure ends in one plain sentence and exit code 1."""
    try:
        arguments, variables = take_acting(sys.argv[1:])
        os.environ.update(variables)
        app(arguments)
    except grpc.aio.AioRpcError as error:
        details = details_of(error)
        errors.print(f"{details.reason or error.code().name}: {error.details()}", markup=False)
        for violation in details.violations:
            errors.print(f"  {violation.field}: {violation.description}", markup=False)
        raise SystemExit(1) from None
    except StoreUnavailable as error:
        errors.print(f"etcd does not answer: {error}", markup=False)
        raise SystemExit(1) from None
    except (NoMesh, NotLoadable, MissingValue, MeshError, Refusal, OSError) as error:
        errors.print(str(error), markup=False)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
