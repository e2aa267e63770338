"""Starting, recognising and ending processes, by PID and start time and never by name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from control.mesh.errors import StartFailure, StopFailure

# In the environment of each process of a mesh: the directory it belongs to.
OWNER_VARIABLE = "CELLPAY_MESH_PROCESS_OF"
_KILL_WAIT_S = 10.0
_POLL_S = 0.02
# On a busy machine a new process may wait for its turn before its first instruction.
_NEWBORN_WAIT_S = 0.5
_PROC = Path("/proc")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# Children of this very process, which stay zombies until they are waited for.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True, slots=True)
class Identity:
    """A process for certain: PIDs are used again, a PID with its start time is not."""

    pid: int
    # Opaque: compared for equality only (see `started_of`).
    started: str


@dataclass(frozen=True, slots=True)
class RunAs:
    """The system user that a server runs as, when this process is root and the server refuses."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Spawn:
    """One process to start."""

    name: str
    command: tuple[str, ...]
    cwd: Path
    log: Path
    owner: Path
    run_as: RunAs | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def started_of(pid: int) -> str | None:
    """When this process started, as an opaque word; None when it is no more (or a zombie)."""
    if sys.platform == "linux":
        return _started_on_linux(pid)
    return _started_by_ps(pid)


def _started_on_linux(pid: int) -> str | None:
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name stands in parentheses and may contain anything, parentheses too.
    fields = stat[stat.rindex(")") + 2 :].split()
    if fields[0] in {"Z", "X"}:
        return None
    # Ticks since boot mean nothing after the next boot, hence the boot's ID.
    return f"{_boot_id()}:{fields[19]}"


@cache
def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()


def _started_by_ps(pid: int) -> str | None:
    answer = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    state, _, started = answer.stdout.strip().partition(" ")
    if answer.returncode != 0 or not started or state.startswith("Z"):
        return None
    return started.strip()


def identify(pid: int) -> Identity | None:
    started = started_of(pid)
    return None if started is None else Identity(pid, started)


def is_alive(identity: Identity) -> bool:
    _reap(identity.pid)
    return started_of(identity.pid) == identity.started


def is_stopped(identity: Identity) -> bool:
    """True while SIGSTOP holds it (Linux)."""
    stat = _read(identity.pid, "stat").decode()
    stands = stat[stat.rfind(")") + 2 :].startswith("T")
    return stands and is_alive(identity)


def uses(identity: Identity, library: Path) -> bool:
    """True when this library is loaded there (Linux)."""
    return str(library).encode() in _read(identity.pid, "maps") and is_alive(identity)


def exit_code_of(identity: Identity) -> int | None:
    """The exit code of an ended child of this process; None for anybody else's."""
    child = _children.get(identity.pid)
    return None if child is None else child.poll()


def _reap(pid: int) -> None:
    child = _children.get(pid)
    if child is not None:
        child.poll()


def send(identity: Identity, number: int) -> bool:
    """Signals exactly this process; False when it is no more."""
    if sys.platform != "linux":
        if not is_alive(identity):
            return False
        os.kill(identity.pid, number)
        return True
    # A pidfd keeps naming the same process between the check and the signal; a PID would not.
    try:
        handle = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_alive(identity):
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def child_environment(owner: Path, more: Mapping[str, str]) -> dict[str, str]:
    """The environment of everything that a mesh runs, marked with the mesh's directory."""
    # PGDATA, PGHOST… of the user's own PostgreSQL must not steer ours.
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    # gRPC would send even loopback connections through a company's proxy.
    direct = [os.environ.get("no_proxy", ""), "127.0.0.1", "localhost"]
    return {
        **inherited,
        OWNER_VARIABLE: str(owner),
        "PYTHONUNBUFFERED": "1",
        "no_proxy": ",".join(filter(None, direct)),
        **more,
    }


def spawn(what: Spawn) -> tuple[Identity, int]:
    """Starts it in a session of its own, so that a Ctrl-C reaches the launcher alone.

    Returns its identity and the offset at which its output begins in the log.
    """
    what.log.parent.mkdir(parents=True, exist_ok=True)
    with open(what.log, "ab") as log:
        offset = log.tell()
        try:
            child = subprocess.Popen(
                as_user(what.run_as, what.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=what.cwd,
                env=child_environment(what.owner, what.environment),
                start_new_session=True,
            )
        except OSError as error:
            raise StartFailure(what.name, str(error), log=what.log) from error
    _children[child.pid] = child
    identity = identify(child.pid)
    if identity is None:
        why = f"it ended at once with exit code {child.wait()}"
        tail = log_tail(what.log, offset)
        raise StartFailure(what.name, why, exit_code=child.returncode, log=what.log, tail=tail)
    return identity, offset


# Becoming another user happens in a small program of its own: subprocess's way forks this process,
# and gRPC's threads do not survive a fork (what begins without it is spawned, which is safe).
_BECOME = """
import os, sys
try:
    os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[1]))
except OSError as error:
    print(error, file=sys.stderr)
    sys.exit(125)
try:
    os.execv(sys.argv[3], sys.argv[3:])
except OSError as error:
    print(error, file=sys.stderr)
    sys.exit(127)
"""
BECOMING_FAILED = 125


def as_user(run_as: RunAs | None, command: Sequence[str]) -> list[str]:
    """The command as another user (of no other group), or as it is.

    It ends with BECOMING_FAILED when this user may not become that one, with 127 when that one
    cannot execute it.
    """
    if run_as is None:
        return list(command)
    become = [sys.executable, "-I", "-S", "-c", _BECOME, str(run_as.uid), str(run_as.gid)]
    return [*become, *command]


def log_tail(log: Path, offset: int = 0, lines: int = 15) -> tuple[str, ...]:
    try:
        with open(log, "rb") as file:
            file.seek(offset)
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    return tuple(text.splitlines()[-lines:])


def stop(signals: Mapping[Identity, int], grace_s: float) -> None:
    """Asks each with its own signal, and after the grace ends those that did not obey."""
    for identity, number in signals.items():
        # A paused process cannot obey before it continues.
        if send(identity, number):
            send(identity, signal.SIGCONT)
    stubborn = wait_gone(signals, grace_s)
    for identity in stubborn:
        send(identity, signal.SIGKILL)
    left = wait_gone(stubborn, _KILL_WAIT_S)
    if left:
        raise StopFailure(f"PIDs {[item.pid for item in left]} survived SIGKILL")


def wait_gone(identities: Iterable[Identity], wait_s: float) -> Sequence[Identity]:
    """Those that are still alive after the wait."""
    deadline = time.monotonic() + wait_s
    asked = list(identities)
    left = [item for item in asked if is_alive(item)]
    while left and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        left = [item for item in left if is_alive(item)]
    # Only these: another that has ended meanwhile is still to be asked for its exit code.
    for item in asked:
        if item not in left:
            _children.pop(item.pid, None)
    return left


def wait_stopped(pid: int, wait_s: float) -> None:
    """After SIGSTOP: until none of its threads runs (Linux; elsewhere it cannot be seen)."""
    deadline = time.monotonic() + wait_s
    while not _is_stopped(pid) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _is_stopped(pid: int) -> bool:
    try:
        states = [
            # The name before it may hold anything.
            (thread / "stat").read_text().rpartition(")")[2].split()[0]
            for thread in Path(f"/proc/{pid}/task").iterdir()
        ]
    except OSError:
        # It has ended, or a thread of it has.
        return not Path(f"/proc/{pid}/task").exists()
    return set(states) <= {"T", "t", "Z", "X"}


def strays_of(owner: Path) -> list[Identity]:
    """Living processes that carry this mesh's mark, recorded or not (Linux; elsewhere none known).

    Closes the moment between a process's start and its record, and finds what a process started.
    """
    deadline = time.monotonic() + _NEWBORN_WAIT_S
    return [
        item
        for item in _living()
        if item.pid != os.getpid() and _is_marked(item.pid, owner, deadline)
    ]


def _is_marked(pid: int, owner: Path, deadline: float) -> bool:
    environment = _environment(pid, deadline)
    if b"=" in environment:
        return f"{OWNER_VARIABLE}={owner}".encode() in environment.split(b"\0")
    # Redis writes its title over its environment: then it is known by where it works.
    directory = _link(pid, "cwd")
    return bool(directory) and Path(directory).is_relative_to(owner)


def _environment(pid: int, deadline: float) -> bytes:
    """A process shows none for a moment at its very start, when the kernel has loaded its program
    and not yet its environment: whoever interrupts a launcher just then would overlook it."""
    while not (found := _read(pid, "environ")) and _link(pid, "exe"):
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    return found


def session_of(leader: Identity) -> list[Identity]:
    """The other living processes of the session that this one leads: what it started (Linux)."""
    return [
        item for item in _living() if item.pid != leader.pid and _session(item.pid) == leader.pid
    ]


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def workers_of(directory: Path, executable: Path) -> list[Identity]:
    """Living processes of this executable at work in this directory.

    PostgreSQL's children outlive a killed postmaster for a moment, and hide their environment.
    """
    return [
        item
        for item in _living()
        if works_in(item.pid, directory) and _link(item.pid, "exe") == str(executable)
    ]


def works_in(pid: int, directory: Path) -> bool:
    """True for a living process whose working directory this is (Linux)."""
    return _link(pid, "cwd") == str(directory)


def _living() -> list[Identity]:
    if sys.platform != "linux":
        return []
    pids = [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]
    found = [identify(pid) for pid in pids]
    return [item for item in found if item is not None]


def _read(pid: int, name: str) -> bytes:
    try:
        return (_PROC / str(pid) / name).read_bytes()
    except OSError:
        return b""


def _link(pid: int, name: str) -> str:
    try:
        return os.readlink(_PROC / str(pid) / name)
    except OSError:
        return ""
