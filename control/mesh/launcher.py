"""Bringing a mesh up and down, whole or a process at a time.

Nothing is restarted by itself: who watches a failover must see the failure. A mesh in the
foreground dies with its launcher, even a killed one (see watchdog.py); a detached one stays until
`down`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from control.mesh import binaries, postgres, settings
from control.mesh.components import (
    BINARY_ROLES,
    LAYERS,
    Launch,
    Place,
    launch_of,
    log_of,
    place_of,
    places,
    selected,
)
from control.mesh.errors import MeshMismatch, StartFailure, UnknownProcess
from control.mesh.processes import (
    Identity,
    Spawn,
    exit_code_of,
    identify,
    is_alive,
    log_tail,
    send,
    spawn,
    wait_gone,
)
from control.mesh.readiness import Started
from control.mesh.shutdown import GRACE_S, end_all, end_one
from control.mesh.state import (
    MeshState,
    ProcessRecord,
    cell_names,
    choose_ports,
    is_free,
    load,
    locked,
    port_names,
    save,
)
from control.mesh.watchdog import Watchdog

Progress = Callable[[str], None]

_READY_WAIT_S = 90.0
_READY_POLL_S = 0.03
_MIGRATION_WAIT_S = 120.0
_WATCH_INTERVAL_S = 0.3
_KILLED_WAIT_S = 5.0


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class MeshOptions:
    """What may differ between meshes."""

    # Layers (components.LAYERS), roles or names to start; empty means all.
    only: tuple[str, ...] = ()
    # Merged, in depth, over every cell's settings.
    cell_overrides: Mapping[str, object] = field(default_factory=dict)
    automatic_failover: bool = True
    lease_ttl_s: int = 3
    # Binaries to use instead of the wheels', by component; kept in the directory.
    binaries: Mapping[str, str] = field(default_factory=dict)
    # For each process; generous, since a laptop under load starts nine Pythons at once.
    ready_wait_s: float = _READY_WAIT_S


DEFAULTS = MeshOptions()


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    name: str
    role: str
    cell: str | None
    pid: int | None
    address: str | None
    alive: bool
    log: str


def up(
    data: Path,
    cells: int = 3,
    *,
    detach: bool = False,
    options: MeshOptions = DEFAULTS,
    progress: Progress = _silent,
) -> None:
    """The command `up`. Detached it returns when all is ready; in the foreground it then waits
    until Ctrl-C, SIGTERM or somebody's `down`, and takes everything down. On a mesh that runs
    already it starts what is missing and returns.
    """
    if detach:
        _bring_up(data, cells, options, progress, launcher=None)
        return
    with _signals_interrupt(), _foreground(data, cells, options, progress) as (state, ran_before):
        if not ran_before:
            progress("the mesh runs; Ctrl-C stops it")
            _wait_for_the_end(state, progress)


@contextmanager
def running(
    data: Path,
    cells: int = 3,
    *,
    options: MeshOptions = DEFAULTS,
    progress: Progress = _silent,
) -> Iterator[MeshState]:
    """A mesh for the length of a block (demo, tests); it dies with this process, even by SIGKILL.

    A mesh that ran before stays as it was found.
    """
    with _foreground(data, cells, options, progress) as (state, _):
        yield state


def down(data: Path, *, progress: Progress = _silent, grace_s: float = GRACE_S) -> None:
    """Ends every process of this mesh, and only those. Data, ports and logs stay."""
    if not data.is_dir():
        progress(f"nothing runs in {data}")
        return
    with locked(data):
        if not end_all(data.resolve(), progress, grace_s):
            progress(f"nothing runs in {data}")


def remove(data: Path, *, progress: Progress = _silent) -> None:
    """`down`, and then deletes what the mesh wrote, PostgreSQL's data outside DIR included."""
    down(data, progress=progress)
    state = load(data)
    if state is not None:
        settings.remove_files(state)


def start(
    data: Path, name: str, *, progress: Progress = _silent, ready_wait_s: float = _READY_WAIT_S
) -> ProcessStatus:
    """Starts one process by name where none runs, and waits until it is ready."""
    with locked(data):
        state = _require(data)
        place = place_of(name, state.cells)
        record = state.processes.get(name)
        if record is not None and is_alive(record.identity):
            return _status(state, place)
        settings.write_missing(state, place)
        state, launch = _spawn(state, place)
    # Out of the lock: others may start meanwhile, as chaos tests do.
    _await_ready(state, [launch], ready_wait_s, progress)
    return _status(state, place)


def stop(data: Path, name: str, *, grace_s: float = GRACE_S) -> None:
    """Ends one process the orderly way; nothing happens when it does not run."""
    with locked(data):
        state = _require(data)
        place_of(name, state.cells)
        end_one(state, name, grace_s)


def restart(
    data: Path, name: str, *, progress: Progress = _silent, grace_s: float = GRACE_S
) -> ProcessStatus:
    stop(data, name, grace_s=grace_s)
    return start(data, name, progress=progress)


def kill(data: Path, name: str, number: int = signal.SIGKILL) -> int:
    """Sends one process a signal and returns its PID. After SIGKILL it is gone, children too."""
    state = _require(data)
    place = place_of(name, state.cells)
    record = state.processes.get(name)
    if record is None or not send(record.identity, number):
        raise UnknownProcess(f"{name} does not run in {data}")
    if number == signal.SIGKILL:
        wait_gone([record.identity], _KILLED_WAIT_S)
        if place.role == "postgres":
            postgres.wait_for_workers(postgres.server(state))
    return record.identity.pid


def status(data: Path) -> list[ProcessStatus]:
    """Every process that this mesh has or should have; empty when there never was a mesh."""
    state = load(data)
    if state is None:
        return []
    known = list(places(state.cells))
    names = {place.name for place in known}
    known += [place_of(name, state.cells) for name in state.processes if name not in names]
    return [_status(state, place) for place in known]


def _status(state: MeshState, place: Place) -> ProcessStatus:
    # Written by whoever started it last, which may be another command.
    record = state.processes.get(place.name)
    alive = record is not None and is_alive(record.identity)
    return ProcessStatus(
        name=place.name,
        role=place.role,
        cell=place.cell,
        pid=record.identity.pid if record is not None and alive else None,
        address=_address(state, place),
        alive=alive,
        log=str(log_of(state, place.name)),
    )


def _address(state: MeshState, place: Place) -> str | None:
    return state.address(place.name) if place.name in state.ports else None


def _require(data: Path) -> MeshState:
    state = load(data)
    if state is None:
        raise MeshMismatch(f"{data} holds no mesh; start one with `cellctl up --data {data}`")
    return state


@contextmanager
def _foreground(
    data: Path, cells: int, options: MeshOptions, progress: Progress
) -> Iterator[tuple[MeshState, bool]]:
    """Up, tied to this process; and down in the end, unless the mesh ran before."""
    launcher = identify(os.getpid())
    assert launcher is not None
    with Watchdog(data, launcher) as watchdog:
        state, ran_before = _bring_up(data, cells, options, progress, launcher)
        try:
            yield state, ran_before
        finally:
            if not ran_before:
                _end_uninterrupted(data, progress)
        watchdog.dismiss()


def _end_uninterrupted(data: Path, progress: Progress) -> None:
    """A second Ctrl-C must not leave half of the mesh behind; every step has its own bound."""
    if threading.current_thread() is not threading.main_thread():
        down(data, progress=progress)
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        down(data, progress=progress)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _bring_up(
    data: Path, cells: int, options: MeshOptions, progress: Progress, launcher: Identity | None
) -> tuple[MeshState, bool]:
    """Starts what is missing. A failure takes down what ran not before this call."""
    with locked(data):
        state = _open(data.resolve(), cells, options)
        wanted = [place for place in places(state.cells) if selected(place, options.only)]
        alive = [name for name, item in state.processes.items() if is_alive(item.identity)]
        missing = [place for place in wanted if place.name not in alive]
        if alive:
            names = ", ".join(place.name for place in missing) or "nothing"
            progress(f"the mesh in {data} runs already ({len(alive)} processes); missing: {names}")
        state = replace(state, launcher=_launcher(state, bool(alive), launcher))
        binaries.require(
            [place.role for place in missing if place.role in BINARY_ROLES and not place.cell]
            + ["redis" for place in missing[:1] if any(item.role == "redis" for item in missing)],
            state.binaries,
        )
        save(state)
        try:
            state = _start_layers(state, missing, options, progress)
        except BaseException:
            if alive:
                for place in reversed(missing):
                    end_one(state=_require(data), name=place.name, grace_s=GRACE_S)
            else:
                end_all(state.path, progress, GRACE_S)
            raise
        return state, bool(alive)


def _launcher(state: MeshState, ran: bool, launcher: Identity | None) -> Identity | None:
    """Whom the mesh dies with: an `up` that adds to a living mesh leaves that as it is."""
    if not ran:
        return launcher
    if state.launcher is not None and is_alive(state.launcher):
        return state.launcher
    return None


def _open(data: Path, cells: int, options: MeshOptions) -> MeshState:
    names = cell_names(cells)
    state = load(data)
    if state is None:
        state = MeshState(data=str(data), cells=names, ports={})
    if state.cells != names:
        raise MeshMismatch(
            f"{data} holds a mesh of {len(state.cells)} cells, not of {cells}: "
            f"give --cells {len(state.cells)}, or another directory"
        )
    return replace(
        state,
        ports=choose_ports(port_names(names), state.ports),
        binaries={**state.binaries, **options.binaries},
    )


def _start_layers(
    state: MeshState, missing: Sequence[Place], options: MeshOptions, progress: Progress
) -> MeshState:
    if any(place.layer != "base" for place in missing):
        settings.write(state, options.cell_overrides, _cell_defaults(options), _failover(options))
    for layer in LAYERS:
        if layer == "schema":
            if _needs_schema(missing, options):
                _migrate(state, progress)
            continue
        launched = []
        for place in (place for place in missing if place.layer == layer):
            state, launch = _spawn(state, place)
            launched.append(launch)
        _await_ready(state, launched, options.ready_wait_s, progress)
    return state
