"""The components of a mesh: for each its command, its configuration and how to see it is ready."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from control.mesh import binaries, postgres, readiness
from control.mesh.errors import UnknownProcess
from control.mesh.processes import RunAs
from control.mesh.readiness import Probe
from control.mesh.state import LOOPBACK, ONE_OF_EACH, ControlPlane, MeshState

# In the order of starting; `schema` is no process but a step between.
LAYERS = ("base", "schema", "controller", "fallback", "cells", "relays", "edge")
_LAYER_OF_ROLE = {
    "etcd": "base",
    "postgres": "base",
    "nats": "base",
    "redis": "base",
    "controller": "controller",
    "fallback": "fallback",
    "cell": "cells",
    "relay": "relays",
    "envoy": "edge",
}
# Roles that run a server's binary rather than this Python.
BINARY_ROLES = frozenset({"etcd", "postgres", "nats", "redis", "envoy"})
_CONTROLLERS_MAX = 3
_ETCD_MEMBERS_MAX = 5
FALLBACK = "xds-fallback"
# A cell's worth of cache on a laptop; writes are refused beyond it, since evicting a nonce or a
# limit's counter unseen would weaken them.
_REDIS_MEMORY_MAX = "256mb"
_ENVOY_WORKERS_MAX = 2
_ETCD_FEATURE_GATES_SINCE = (3, 6)


@dataclass(frozen=True, slots=True)
class Place:
    """What a process's name says: its role and, for some, its cell."""

    name: str
    role: str
    cell: str | None

    @property
    def layer(self) -> str:
        return layer_of(self.role)


@dataclass(frozen=True, slots=True)
class Launch:
    """All that starting one process takes."""

    place: Place
    # The first is the main one.
    addresses: Mapping[str, str]
    command: tuple[str, ...]
    cwd: Path
    probe: Probe
    run_as: RunAs | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def places(cells: Iterable[str], plane: ControlPlane = ONE_OF_EACH) -> tuple[Place, ...]:
    """The processes of a whole mesh, in the order of starting."""
    cells = tuple(cells)
    return (
        *(Place(name, "etcd", None) for name in plane.etcd_names()),
        Place("nats", "nats", None),
        *(Place(f"redis-{cell}", "redis", cell) for cell in cells),
        Place("postgres", "postgres", None),
        *(Place(name, "controller", None) for name in plane.controller_names()),
        *((Place(FALLBACK, "fallback", None),) if plane.fallback else ()),
        *(Place(f"cell-{cell}", "cell", cell) for cell in cells),
        *(Place(f"relay-{cell}", "relay", cell) for cell in cells),
        Place("envoy", "envoy", None),
    )


def place_of(name: str, cells: Sequence[str]) -> Place:
    """The process of this name, also of one that runs only on demand, such as `controller-2`."""
    most = ControlPlane(_ETCD_MEMBERS_MAX, _CONTROLLERS_MAX, fallback=True)
    known = {place.name: place for place in places(cells, most)}
    if name not in known:
        raise UnknownProcess(f"no process is called {name!r}; there are {', '.join(known)}")
    return known[name]


def selected(place: Place, only: Sequence[str]) -> bool:
    """`only` names layers, roles or processes; empty means all."""
    return not only or bool({place.layer, place.role, place.name} & set(only))


def layer_of(role: str) -> str:
    return _LAYER_OF_ROLE[role]


def stop_signal(role: str) -> int:
    # PostgreSQL's SIGTERM waits for its clients to go; SIGINT is its fast shutdown.
    return signal.SIGINT if role == "postgres" else signal.SIGTERM


def log_of(state: MeshState, name: str) -> Path:
    return state.path / "logs" / f"{name}.log"


def settings_of(state: MeshState, place: Place) -> Path:
    """The settings file of a Python process; a relay reads its cell's."""
    if place.cell is not None:
        return state.path / "cells" / place.cell / "settings.json"
    return state.path / place.name / "settings.json"


def envoy_config(state: MeshState) -> Path:
    return state.path / "envoy" / "bootstrap.json"


def launch_of(state: MeshState, place: Place) -> Launch:
    """How to start it now. Writes configuration that depends on nothing but `state`."""
    (state.path / "logs").mkdir(exist_ok=True)
    return _BUILDERS[place.role](state, place)


def _etcd(state: MeshState, place: Place) -> Launch:
    binary = binaries.find("etcd", state.binaries)
    scheme = "https" if state.plane.etcd_tls else "http"
    names = state.plane.etcd_names()
    peers = {name: f"{scheme}://{state.address(f'{name}.peer')}" for name in names}
    client, peer = f"{scheme}://{state.address(place.name)}", peers[place.name]
    metrics = state.address(f"{place.name}.metrics")
    data = _directory(state, place.name)
    # A mesh of one member has had this name since before there were several.
    member = {name: "cellpay" if name == "etcd" else name for name in names}
    cluster = ",".join(f"{member[name]}={url}" for name, url in peers.items())
    command = [str(binary), "--name", member[place.name], "--data-dir", str(data / "data")]
    command += ["--listen-client-urls", client, "--advertise-client-urls", client]
    command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
    command += ["--initial-cluster", cluster, "--initial-cluster-state", "new"]
    # Health without a certificate, for whoever looks whether it is ready.
    command += ["--listen-metrics-urls", f"http://{metrics}"]
    if state.plane.etcd_tls:
        command += _etcd_tls(state)
    # Every lease refresh and slot map is a revision: without this the laptop's etcd only grows.
    command += ["--auto-compaction-mode", "periodic", "--auto-compaction-retention", "1h"]
    # etcd 3.5.0 to 3.5.2 may lose data of a killed member (etcd issue 13766): look at each start.
    if binaries.version_of(binary) >= _ETCD_FEATURE_GATES_SINCE:
        command += ["--feature-gates", "InitialCorruptCheck=true"]
    else:
        command += ["--experimental-initial-corrupt-check=true"]
    return Launch(
        place=place,
        addresses={
            "client": state.address(place.name),
            "peer": state.address(f"{place.name}.peer"),
            "metrics": metrics,
        },
        command=tuple(command),
        cwd=data,
        probe=readiness.etcd_healthy(metrics),
    )


def _etcd_tls(state: MeshState) -> list[str]:
    """Clients and peers show certificates of the mesh's CA; a client's common name is its user."""
    tls = state.path / "tls"
    files = ["--trusted-ca-file", str(tls / "ca.pem"), "--client-cert-auth"]
    files += ["--cert-file", str(tls / "etcd.pem"), "--key-file", str(tls / "etcd.key")]
    files += ["--peer-trusted-ca-file", str(tls / "ca.pem"), "--peer-client-cert-auth"]
    files += ["--peer-cert-file", str(tls / "etcd.pem"), "--peer-key-file", str(tls / "etcd.key")]
    return files


def _postgres(state: MeshState, place: Place) -> Launch:
    server = postgres.server(state)
    postgres.prepare(server, state.path, log_of(state, place.name))
    return Launch(
        place=place,
        addresses={"sql": state.address("postgres")},
        command=postgres.command(server, state.ports["postgres"], state.postgres),
        cwd=server.directory,
        probe=readiness.postmaster_ready(server.data),
        run_as=server.run_as,
        environment=server.environment,
    )


def _nats(state: MeshState, place: Place) -> Launch:
    binary = binaries.find("nats", state.binaries)
    directory = _directory(state, place.name)
    configuration = directory / "nats.conf"
    configuration.write_text(
        f"""# Written by the local mesh at each start; changes are lost.
server_name: cellpay
listen: "{state.address("nats")}"
jetstream {{
  store_dir: "{_quoted(directory / "data")}"
  # An acknowledged message is on disk.
  sync_interval: always
}}
"""
    )
    return Launch(
        place=place,
        addresses={"client": state.address("nats")},
        command=(str(binary), "--config", str(configuration)),
        cwd=directory,
        probe=readiness.nats_info(state.address("nats")),
    )


def _redis(state: MeshState, place: Place) -> Launch:
    binary = binaries.find("redis", state.binaries)
    directory = _directory(state, place.name)
    command = [str(binary), "--bind", LOOPBACK, "--port", str(state.ports[place.name])]
    # A cache: a cell must work without what it forgets, so nothing is written to disk.
    command += ["--save", "", "--appendonly", "no", "--dir", str(directory)]
    command += ["--maxmemory", _REDIS_MEMORY_MAX, "--maxmemory-policy", "noeviction"]
    return Launch(
        place=place,
        addresses={"client": state.address(place.name)},
        command=tuple(command),
        cwd=directory,
        probe=readiness.redis_pong(state.address(place.name)),
    )


def _controller(state: MeshState, place: Place) -> Launch:
    address = state.address(place.name)
    return Launch(
        place=place,
        addresses={"grpc": address},
        command=_python("control.serve", settings_of(state, place)),
        cwd=_directory(state, place.name),
        probe=readiness.grpc_serving(address, state.path / "tls"),
    )


def _fallback(state: MeshState, place: Place) -> Launch:
    address = state.address(place.name)
    return Launch(
        place=place,
        addresses={"grpc": address},
        command=_python("control.xds.fallback", settings_of(state, place)),
        cwd=_directory(state, place.name),
        probe=readiness.grpc_serving(address, state.path / "tls"),
    )


def _cell(state: MeshState, place: Place) -> Launch:
    settings = settings_of(state, place)
    address = state.address(place.name)
    return Launch(
        place=place,
        addresses={"grpc": address},
        command=_python("cells.serve", settings),
        cwd=settings.parent,
        probe=readiness.grpc_serving(address, state.path / "tls"),
    )


def _relay(state: MeshState, place: Place) -> Launch:
    settings = settings_of(state, place)
    return Launch(
        place=place,
        addresses={},
        command=_python("cells.relay", settings),
        cwd=settings.parent,
        probe=readiness.log_says("relay ready"),
    )


def _envoy(state: MeshState, place: Place) -> Launch:
    binary = binaries.find("envoy", state.binaries)
    admin = state.address("envoy.admin")
    command = [str(binary), "--config-path", str(envoy_config(state))]
    command += ["--concurrency", str(min(_ENVOY_WORKERS_MAX, os.cpu_count() or 1))]
    # Hot restart shares memory by a base ID, which two meshes on one machine would fight for.
    command += ["--disable-hot-restart", "--log-level", "info"]
    return Launch(
        place=place,
        addresses={
            "edge": state.address("envoy"),
            "admin": admin,
            **({"http": state.address("envoy.http")} if "envoy.http" in state.ports else {}),
        },
        command=tuple(command),
        cwd=_directory(state, place.name),
        # LIVE only after the first answer of the xDS server.
        probe=readiness.http_ok(admin, "/ready"),
    )


_BUILDERS: Mapping[str, Callable[[MeshState, Place], Launch]] = {
    "etcd": _etcd,
    "postgres": _postgres,
    "nats": _nats,
    "redis": _redis,
    "controller": _controller,
    "fallback": _fallback,
    "cell": _cell,
    "relay": _relay,
    "envoy": _envoy,
}


def _directory(state: MeshState, name: str) -> Path:
    directory = state.path / name
    directory.mkdir(exist_ok=True)
    return directory


def _python(module: str, settings: Path) -> tuple[str, ...]:
    return (sys.executable, "-m", module, str(settings))


def _quoted(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace('"', '\\"')
