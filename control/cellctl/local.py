"""`cellctl up`, `down`, `demo`: a mesh on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from control.cellctl.options import DATA, DEFAULT_DATA
from control.cellctl.plane import (
    APPROVALS,
    CONTROLLERS,
    ETCD_MEMBERS,
    ETCD_TLS,
    XDS_FALLBACK,
    plane_of,
)
from control.cellctl.show import console
from control.mesh import launcher
from control.mesh.options import MeshOptions
from router.tracing.model import TracingSettings


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
        tracing=_tracing_of(otlp, trace_ratio),
    )
    launcher.up(data, cells, detach, options, console.print)


def down(data: DATA = DEFAULT_DATA) -> None:
    """Stops every process of the mesh; the data stays."""
    launcher.down(data, console.print)


def demo(
    data: Annotated[Path | None, typer.Option("--data", help="Keep the mesh's files here.")] = None,
) -> None:
    """A region dies on a laptop, and no cent is lost."""
    from control.cellctl.demo import run_demo

    if not run_demo(data):
        raise typer.Exit(1)


def _tracing_of(otlp: str, ratio: float) -> TracingSettings:
    try:
        return TracingSettings(endpoint=otlp, sample_ratio=ratio)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
