"""Starting processes of a mesh and waiting until they are ready."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from control.mesh import postgres
from control.mesh.components import Launch, Place, launch_of, log_of
from control.mesh.errors import StartFailure
from control.mesh.options import Progress
from control.mesh.processes import (
    Spawn,
    child_environment,
    exit_code_of,
    is_alive,
    log_tail,
    spawn,
)
from control.mesh.readiness import Started
from control.mesh.state import MeshState, ProcessRecord, is_free, save

_READY_POLL_S = 0.03
_PORT_WAIT_S = 3.0
_MIGRATION_WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Running:
    """Started, and perhaps not ready yet."""

    launch: Launch
    record: ProcessRecord

    @property
    def log(self) -> Path:
        return Path(self.record.log)


def begin(
    state: MeshState, place: Place, environment: Mapping[str, str] | None = None
) -> tuple[MeshState, Running]:
    """Starts a process that does not run, and writes down that it does. Needs the lock."""
    if place.role == "postgres":
        placed = postgres.place(state)
        if placed != state:
            save(placed)
        state = placed
    launch = launch_of(state, place)
    _require_free(launch)
    log = log_of(state, place.name)
    identity, offset = spawn(
        Spawn(
            name=place.name,
            command=launch.command,
            cwd=launch.cwd,
            log=log,
            owner=state.path,
            run_as=launch.run_as,
            environment={**launch.environment, **(environment or {})},
        )
    )
    record = ProcessRecord(
        name=place.name,
        role=place.role,
        cell=place.cell,
        identity=identity,
        addresses=launch.addresses,
        log=str(log),
        log_offset=offset,
        command=launch.command,
    )
    state = state.with_process(record)
    save(state)
    return state, Running(launch, record)


def _require_free(launch: Launch) -> None:
    """A killed process of many threads holds its port for a moment after it counts as dead."""
    deadline = time.monotonic() + _PORT_WAIT_S
    for address in launch.addresses.values():
        while not is_free(int(address.rpartition(":")[2])):
            if time.monotonic() > deadline:
                raise StartFailure(
                    launch.place.name,
                    f"another program listens on {address}, which this mesh keeps for it; "
                    "end that program, or take another --data",
                )
            time.sleep(_READY_POLL_S)


def await_ready(running: Sequence[Running], wait_s: float, progress: Progress) -> None:
    """Returns when all are ready; raises StartFailure for the first that ends or takes too long."""
    begun = time.monotonic()
    waiting = list(running)
    while True:
        for process in list(waiting):
            if not is_alive(process.record.identity):
                code = exit_code_of(process.record.identity)
                raise _failure(process, f"it ended with {_code(code)}", code)
            if _is_ready(process):
                waiting.remove(process)
                progress(_announcement(process, time.monotonic() - begun))
        if not waiting:
            return
        if time.monotonic() - begun > wait_s:
            raise _failure(waiting[0], f"it was not ready after {wait_s:.0f} s", None)
        time.sleep(_READY_POLL_S)


def migrate(state: MeshState, progress: Progress) -> None:
    """Brings the database's schema up to date, before any cell may look at it."""
    begun = time.monotonic()
    log = log_of(state, "migrations")
    with open(log, "ab") as output:
        offset = output.tell()
        answer = subprocess.run(
            [sys.executable, "-m", "cells.migrations", "upgrade", state.database_url],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
            env=child_environment(state.path, {}),
            timeout=_MIGRATION_WAIT_S,
        )
    if answer.returncode != 0:
        raise StartFailure(
            "schema",
            f"`cells.migrations upgrade` ended with {_code(answer.returncode)}",
            exit_code=answer.returncode,
            log=log,
            tail=log_tail(log, offset),
        )
    progress(f"{'schema':<14} up to date in {time.monotonic() - begun:.1f} s")


def _is_ready(process: Running) -> bool:
    record = process.record
    return process.launch.probe(Started(record.identity.pid, process.log, record.log_offset))


def _announcement(process: Running, seconds: float) -> str:
    record = process.record
    address = next(iter(record.addresses.values()), "")
    return f"{record.name:<14} ready in {seconds:.1f} s  pid {record.identity.pid}  {address}"


def _code(code: int | None) -> str:
    if code is None:
        return "an unknown exit code"
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def _failure(process: Running, why: str, code: int | None) -> StartFailure:
    log, offset = process.log, process.record.log_offset
    return StartFailure(
        process.record.name, why, exit_code=code, log=log, tail=log_tail(log, offset)
    )
