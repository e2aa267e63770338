"""Settings files, certificates and bootstraps of a mesh, written before what reads them starts."""

from __future__ import annotations

import shutil

from control.mesh import postgres
from control.mesh.components import Place
from control.mesh.options import MeshOptions
from control.mesh.state import MeshState


def write(state: MeshState, options: MeshOptions) -> None:
    raise NotImplementedError


def write_missing(state: MeshState, place: Place) -> None:
    pass


def remove_files(state: MeshState) -> None:
    """Deletes what a mesh writes in its directory, and nothing else that may be there."""
    postgres.remove_data(state)
    names = ["etcd", "nats", "envoy", "controller", "controller-2", "cells", "logs", "tls", "xds"]
    names += [f"redis-{cell}" for cell in state.cells]
    for name in names:
        shutil.rmtree(state.path / name, ignore_errors=True)
    for name in ("mesh.json", "mesh.lock"):
        (state.path / name).unlink(missing_ok=True)
    if not any(state.path.iterdir()):
        state.path.rmdir()
