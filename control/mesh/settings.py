"""Settings files, certificates and bootstraps of a mesh, written before what reads them starts.

Repeatable: ports and cells are fixed for a directory and certificates are reused while they are
valid, so a second `up` writes the same again.
"""

from __future__ import annotations

import getpass
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from control.mesh import ca, postgres
from control.mesh.components import Place, envoy_config, place_of, settings_of
from control.mesh.options import DEFAULTS, MeshOptions
from control.mesh.state import MeshState, region_of, write_atomically
from router.client.bootstrap import xds_bootstrap
from router.client.tls import TlsFiles
from router.edge.bootstrap import edge_bootstrap
from router.identity import spiffe_id

# The first controller's certificate and settings are called by number, as the second's are.
_CONTROLLERS = {"controller": "controller-1", "controller-2": "controller-2"}


def write(state: MeshState, options: MeshOptions) -> None:
    """Everything that a controller, cell, relay, Envoy or client of this mesh reads."""
    xds_address = state.address("controller")
    for process, name in _CONTROLLERS.items():
        tls = ca.issue(state.path / "tls", name, spiffe_id("controller", name))
        path = settings_of(state, place_of(process, state.cells))
        _write_json(path, _controller(state, options, process, tls))
    for cell in state.cells:
        tls = ca.issue(state.path / "tls", f"cell-{cell}", spiffe_id("cell", cell))
        bootstrap = state.path / "xds" / f"cell-{cell}.json"
        _write_json(bootstrap, xds_bootstrap(xds_address, tls, f"cell-{cell}"))
        document = _cell(state, options, cell, tls, bootstrap)
        path = settings_of(state, place_of(f"cell-{cell}", state.cells))
        _write_json(path, merged(document, options.cell_overrides))
    client = ca.issue(state.path / "tls", "client", spiffe_id("service", "client"))
    _write_json(
        state.path / "xds" / "client.json", xds_bootstrap(xds_address, client, "client-sdk")
    )
    ca.issue(state.path / "tls", "operator", spiffe_id("operator", _operator()))
    edge = ca.issue(state.path / "tls", "edge", spiffe_id("edge", "edge"))
    document = edge_bootstrap(
        xds_address, state.address("envoy.admin"), edge, "edge", spiffe_id("controller", "")
    )
    _write_json(envoy_config(state), document)


def write_missing(state: MeshState, place: Place) -> None:
    """For who starts one process of a mesh that was never up as a whole."""
    if place.role == "envoy":
        needed = envoy_config(state)
    elif place.layer != "base":
        needed = settings_of(state, place)
    else:
        return
    if not needed.exists():
        write(state, DEFAULTS)


def merged(document: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`overrides` over `document`, in depth: an override of one field keeps its neighbours."""
    result = dict(document)
    for key, value in overrides.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            result[key] = merged(below, value)
        else:
            result[key] = value
    return result


def remove_files(state: MeshState) -> None:
    """Deletes what a mesh writes in its directory, and nothing else that may be there."""
    postgres.remove_data(state)
    names = ["etcd", "nats", "envoy", *_CONTROLLERS, "cells", "drills", "logs", "tls", "xds"]
    names += [f"redis-{cell}" for cell in state.cells]
    for name in names:
        shutil.rmtree(state.path / name, ignore_errors=True)
    for name in ("mesh.json", "mesh.lock"):
        (state.path / name).unlink(missing_ok=True)
    if not any(state.path.iterdir()):
        state.path.rmdir()


def _controller(
    state: MeshState, options: MeshOptions, process: str, tls: TlsFiles
) -> dict[str, Any]:
    return {
        "name": _CONTROLLERS[process],
        "listen": state.address(process),
        "database_url": state.database_url,
        "etcd": state.address("etcd"),
        "tls": asdict(tls),
        "cells": {cell: region_of(cell) for cell in state.cells},
        "automatic_failover": options.automatic_failover,
        "edge_listen": state.address("envoy"),
        "mesh": state.data,
    }


def _cell(
    state: MeshState, options: MeshOptions, cell: str, tls: TlsFiles, bootstrap: Path
) -> dict[str, Any]:
    return {
        "cell": cell,
        "region": region_of(cell),
        "listen": state.address(f"cell-{cell}"),
        "database_url": state.database_url,
        "etcd": state.address("etcd"),
        "nats_url": state.nats_url,
        "redis_url": state.redis_url(cell),
        "tls": asdict(tls),
        "xds_bootstrap": str(bootstrap),
        "lease_ttl_s": options.lease_ttl_s,
        "development": True,
    }


def _operator() -> str:
    """The login name, which the audit log will show."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A user without a name, as in many containers.
        return "operator"


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(document, indent=2).encode() + b"\n")
