"""Settings files, certificates and bootstraps of a mesh, written before what reads them starts.

Repeatable: ports and cells are fixed for a directory and certificates are reused while they are
valid, so a second `up` writes the same again.
"""

from __future__ import annotations

import getpass
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from control.mesh import ca, postgres
from control.mesh.components import FALLBACK, Place, envoy_config, place_of, settings_of
from control.mesh.options import DEFAULTS, MeshOptions
from control.mesh.state import ControlPlane, MeshState, region_of, write_atomically
from router.client.bootstrap import xds_bootstrap
from router.client.tls import TlsFiles
from router.edge.bootstrap import HttpEdge, edge_bootstrap
from router.edge.hardening import Ranges
from router.identity import spiffe_id

# Names of certificates and settings; the first controller's is called by number too.
_CONTROLLERS = {name: name for name in ControlPlane(controllers=3).controller_names()} | {
    "controller": "controller-1"
}
# A laptop's certificates are rotated for the show, and that should take no ten minutes.
_TLS_REFRESH_S = 1
# etcd's own administrator: it may do everything, so only the launcher has it.
ETCD_ROOT = "root"


def write(state: MeshState, options: MeshOptions) -> None:
    """Everything that a controller, cell, relay, Envoy or client of this mesh reads."""
    xds_servers = [state.control_address]
    if state.plane.fallback:
        xds_servers.append(state.address(FALLBACK))
        _write_fallback(state)
    for process, name in _CONTROLLERS.items():
        if process not in state.ports:
            continue
        tls = ca.issue(state.path / "tls", name, spiffe_id("controller", name))
        path = settings_of(state, place_of(process, state.cells))
        _write_json(path, _controller(state, options, process, tls))
    _ensure_keystore(state)
    for cell in state.cells:
        tls = ca.issue(state.path / "tls", f"cell-{cell}", spiffe_id("cell", cell))
        bootstrap = state.path / "xds" / f"cell-{cell}.json"
        _write_json(bootstrap, xds_bootstrap(xds_servers, tls, f"cell-{cell}", _TLS_REFRESH_S))
        document = _cell(state, options, cell, tls, bootstrap)
        path = settings_of(state, place_of(f"cell-{cell}", state.cells))
        _write_json(path, merged(document, options.cell_overrides))
    client = ca.issue(state.path / "tls", "client", spiffe_id("service", "client"))
    _write_json(
        state.path / "xds" / "client.json",
        xds_bootstrap(xds_servers, client, "client-sdk", _TLS_REFRESH_S),
    )
    ca.issue(state.path / "tls", "operator", spiffe_id("operator", operator_name()))
    edge = ca.issue(state.path / "tls", "edge", spiffe_id("edge", "edge"))
    # A mesh.json of before the HTTP edge has no port for it.
    http = (
        HttpEdge(
            state.address("envoy.http"),
            state.address("envoy"),
            "edge",
            Ranges(deny=options.edge_denied),
        )
        if "envoy.http" in state.ports
        else None
    )
    document = edge_bootstrap(
        xds_servers, state.address("envoy.admin"), edge, "edge", spiffe_id("controller", ""), http,
        options.tracing,
    )  # fmt: skip
    _write_json(envoy_config(state), document)


def write_etcd_certificates(state: MeshState) -> None:
    """What etcd itself shows, and its administrator's: needed before anything else starts."""
    tls = state.path / "tls"
    ca.issue(tls, "etcd", spiffe_id("etcd", "etcd"))
    ca.issue(tls, ETCD_ROOT, spiffe_id("etcd", ETCD_ROOT))


def _write_fallback(state: MeshState) -> None:
    tls = ca.issue(state.path / "tls", FALLBACK, spiffe_id("controller", "fallback"))
    document = {
        "listen": state.address(FALLBACK),
        "xds_server": state.control_address,
        "snapshot": str(state.path / FALLBACK / "snapshot.json"),
        "tls": asdict(tls),
    }
    _write_json(settings_of(state, place_of(FALLBACK, state.cells)), document)


def _keystore(state: MeshState) -> Path:
    return state.path / "keystore" / "master.json"


def _ensure_keystore(state: MeshState) -> None:
    """The master keys of the cells' vaults, which stay: what they wrapped nothing else unwraps."""
    path = _keystore(state)
    if not path.exists():
        command = [sys.executable, "-m", "cells.vault.keystore", "create", str(path)]
        subprocess.run(command, stdin=subprocess.DEVNULL, check=True, timeout=60)


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
    names = ["nats", "envoy", *_CONTROLLERS, FALLBACK, "cells", "drills"]
    names += ["keystore", "logs", "tls", "xds"]
    names += state.plane.etcd_names()
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
        "probe_listen": state.probes_of(process),
        "database_url": state.database_url,
        "etcd": state.etcd_addresses,
        "etcd_tls": asdict(tls) if state.plane.etcd_tls else None,
        "tls": asdict(tls),
        "shared_listen": state.control_address,
        "snapshot": str(state.path / process / "snapshot.json"),
        "approvals": options.approvals,
        "cells": {cell: region_of(cell) for cell in state.cells},
        "automatic_failover": options.automatic_failover,
        "edge_listen": state.address("envoy"),
        "edge_ranges": {"deny": options.edge_denied},
        # A laptop's user watches.
        "give_back_after_s": 2.0,
        "mesh": state.data,
        "tracing": asdict(options.tracing),
    }


def _cell(
    state: MeshState, options: MeshOptions, cell: str, tls: TlsFiles, bootstrap: Path
) -> dict[str, Any]:
    return {
        "cell": cell,
        "region": region_of(cell),
        "listen": state.address(f"cell-{cell}"),
        "probe_listen": state.probes_of(f"cell-{cell}"),
        "database_url": state.database_url,
        "etcd": state.etcd_addresses,
        "etcd_tls": asdict(tls) if state.plane.etcd_tls else None,
        "nats_url": state.nats_url,
        "redis_url": state.redis_url(cell),
        "tls": asdict(tls),
        "xds_bootstrap": str(bootstrap),
        "lease_ttl_s": options.lease_ttl_s,
        "development": True,
        "vault": {"keystore": str(_keystore(state))},
        "tracing": asdict(options.tracing),
    }


def operator_name() -> str:
    """The login name, which the audit log will show."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A user without a name, as in many containers.
        return "operator"


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(document, indent=2).encode() + b"\n")
