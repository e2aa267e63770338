"""Options of `cellctl up` about the size of the control plane."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from control.mesh.state import ControlPlane, load

ETCD_MEMBERS = Annotated[
    int | None, typer.Option(min=1, max=5, help="Members of etcd; 3 outlive the loss of one.")
]
CONTROLLERS = Annotated[
    int | None, typer.Option(min=1, max=3, help="Controllers; any one serves, one leads.")
]
XDS_FALLBACK = Annotated[
    bool | None,
    typer.Option(help="A server of the last xDS snapshot; with several controllers by itself."),
]
ETCD_TLS = Annotated[bool | None, typer.Option(help="etcd with certificates, users and roles.")]
APPROVALS = Annotated[
    bool, typer.Option("--approvals/--no-approvals", help="Two persons where it takes two.")
]


def plane_of(
    data: Path,
    etcd_members: int | None,
    controllers: int | None,
    xds_fallback: bool | None,
    etcd_tls: bool | None,
) -> ControlPlane:
    """What was asked for, over what the directory's mesh has."""
    state = load(data)
    known = state.plane if state else ControlPlane()
    several = (controllers or known.controllers) > 1
    return ControlPlane(
        known.etcd_members if etcd_members is None else etcd_members,
        known.controllers if controllers is None else controllers,
        (known.fallback or several) if xds_fallback is None else xds_fallback,
        known.etcd_tls if etcd_tls is None else etcd_tls,
    )
