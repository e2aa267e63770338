"""Bringing a mesh up and down, whole or a process at a time.

Nothing is restarted by itself: who watches a failover must see the failure. A mesh in the
foreground dies with its launcher, even with a killed one (see watchdog.py); a detached one stays
until `down`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from control.mesh import binaries, postgres, settings
from control.mesh.components import (
    BINARY_ROLES,
    LAYERS,
    Place,
    log_of,
    place_of,
    places,
    selected,
)
from control.mesh.errors import MeshMismatch, StartFailure, UnknownProcess
from control.mesh.options import DEFAULTS, MeshOptions, Progress, silent
from control.mesh.processes import (
    Identity,
    exit_code_of,
    identify,
    is_alive,
    send,
    wait_gone,
    wait_stopped,
)
from control.mesh.shutdown import end, end_all
from control.mesh.starting import await_ready, begin, migrate
from control.mesh.state import (
    MeshState,
    cell_names,
    choose_ports,
    load,
    locked,
    port_names,
    save,
)
from control.mesh.watchdog import Watchdog

_WATCH_INTERVAL_S = 0.3
_KILLED_WAIT_S = 5.0
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    name: str
    role: str
    cell: str | None
    # None when it does not run.
    pid: int | None
    # Kept over restarts; None for what listens nowhere.
    address: str | None
    alive: bool
    log: str


def up(
    data: Path,
    cells: int = 3,
    detach: bool = False,
    options: MeshOptions = DEFAULTS,
    progress: Progress = silent,
) -> None:
    """The command `up`. Detached it returns when all is ready. In the foreground it then waits for
    Ctrl-C, SIGTERM or somebody's `down`, and takes everything down. On a mesh that runs already it
    starts what is missing and returns.
    """
    with _interrupted_by_signals():
        if detach:
            _bring_up(data, cells, options, progress, launcher=None)
            return
        with _foreground(data, cells, options, progress) as (state, ran_before):
            if not ran_before:
                progress("the mesh is up; Ctrl-C takes it down")
                _wait_for_the_end(state, progress)


@contextmanager
def running(
    data: Path,
    cells: int = 3,
    options: MeshOptions = DEFAULTS,
    progress: Progress = silent,
) -> Iterator[MeshState]:
    """A mesh for the length of a block (demo, tests); it dies with this process, even by SIGKILL.

    A mesh that ran before is left running.
    """
    with _foreground(data, cells, options, progress) as (state, _):
        yield state


def down(data: Path, progress: Progress = silent, grace_s: float = DEFAULTS.grace_s) -> None:
    """Ends every process of this mesh, and only those. Data, ports and logs stay."""
    if not data.is_dir():
        progress(f"nothing runs in {data}")
        return
    with locked(data):
        ended = end_all(data.resolve(), progress, grace_s)
    progress(f"processes ended: {ended}" if ended else f"nothing runs in {data}")


def remove(data: Path, progress: Progress = silent) -> None:
    """`down`, and then deletes what the mesh wrote, PostgreSQL's data outside DIR included."""
    down(data, progress)
    state = load(data)
    if state is not None:
        settings.remove_files(state)


def start(
    data: Path,
    name: str,
    progress: Progress = silent,
    environment: Mapping[str, str] | None = None,
) -> ProcessStatus:
    """Starts one process by name where none runs, and waits until it is ready.

    `environment`: more of it, for this start alone.
    """
    state = _require(data)
    place = place_of(name, state.cells)
    with locked(data):
        state = _require(data)
        record = state.processes.get(name)
        if record is not None and is_alive(record.identity):
            return _status(state, place)
        settings.write_missing(state, place)
        state, process = begin(state, place, environment)
    # Outside the lock: others may start meanwhile, as chaos tests do.
    await_ready([process], DEFAULTS.ready_wait_s, progress)
    return _status(state, place)


def stop(data: Path, name: str, grace_s: float = DEFAULTS.grace_s) -> None:
    """Ends one process in the orderly way; nothing happens when it does not run."""
    place_of(name, _require(data).cells)
    with locked(data):
        end(_require(data), [name], silent, grace_s)


def restart(
    data: Path, name: str, progress: Progress = silent, grace_s: float = DEFAULTS.grace_s
) -> ProcessStatus:
    stop(data, name, grace_s)
    return start(data, name, progress)


def kill(data: Path, name: str, number: int = signal.SIGKILL) -> int:
    """Sends one process a signal and returns its PID. After SIGKILL it is gone, children too; after
    SIGSTOP none of its threads runs."""
    state = _require(data)
    place_of(name, state.cells)
    record = state.processes.get(name)
    if record is None or not send(record.identity, number):
        raise UnknownProcess(f"{name} does not run in {data}")
    if number == signal.SIGSTOP:
        wait_stopped(record.identity.pid, _KILLED_WAIT_S)
    if number == signal.SIGKILL:
        wait_gone([record.identity], _KILLED_WAIT_S)
        if record.role == "postgres":
            postgres.wait_for_workers(Path(record.command[2]), Path(record.command[0]))
    return record.identity.pid


def status(data: Path) -> list[ProcessStatus]:
    """Every process that this mesh has or should have; empty when there never was a mesh."""
    state = load(data)
    if state is None:
        return []
    known = list(places(state.cells, state.plane))
    names = {place.name for place in known}
    known += [place_of(name, state.cells) for name in state.processes if name not in names]
    return [_status(state, place) for place in known]


def _status(state: MeshState, place: Place) -> ProcessStatus:
    record = state.processes.get(place.name)
    alive = record is not None and is_alive(record.identity)
    return ProcessStatus(
        name=place.name,
        role=place.role,
        cell=place.cell,
        pid=record.identity.pid if record is not None and alive else None,
        address=state.address(place.name) if place.name in state.ports else None,
        alive=alive,
        log=str(log_of(state, place.name)),
    )


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
    with Watchdog(data, launcher):
        state, ran_before = _bring_up(data, cells, options, progress, launcher)
        try:
            yield state, ran_before
        finally:
            if not ran_before:
                with _deaf_to_signals():
                    _down_ours(data, launcher, options.grace_s, progress)


def _down_ours(data: Path, launcher: Identity, grace_s: float, progress: Progress) -> None:
    """`down`, unless somebody's `down` and `up` made it another mesh in the meantime."""
    with locked(data):
        state = load(data)
        if state is not None and state.launcher == launcher:
            ended = end_all(data.resolve(), progress, grace_s)
            progress(f"processes ended: {ended}")


def _bring_up(
    data: Path, cells: int, options: MeshOptions, progress: Progress, launcher: Identity | None
) -> tuple[MeshState, bool]:
    """Starts what is missing; when that fails, ends what it started. True: the mesh ran before."""
    cell_names(cells)
    with locked(data):
        state = _open(data.resolve(), cells, options)
        wanted = [
            place for place in places(state.cells, state.plane) if selected(place, options.only)
        ]
        alive = {name for name, item in state.processes.items() if is_alive(item.identity)}
        missing = [place for place in wanted if place.name not in alive]
        if alive:
            names = ", ".join(place.name for place in missing) or "nothing"
            progress(f"the mesh in {data} is running; missing: {names}")
        else:
            state = replace(state, processes={})
        state = replace(state, launcher=_owner(state, bool(alive), launcher))
        binaries.require(sorted({place.role for place in missing} & BINARY_ROLES), state.binaries)
        save(state)
        try:
            state = _start_layers(state, missing, options, progress)
        except BaseException:
            with _deaf_to_signals():
                if alive:
                    names_begun = [place.name for place in missing]
                    end(_require(data), names_begun, progress, options.grace_s)
                else:
                    end_all(state.path, progress, options.grace_s)
            raise
        return state, bool(alive)


def _owner(state: MeshState, ran: bool, launcher: Identity | None) -> Identity | None:
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
    plane = options.plane or state.plane
    fixed = ("etcd_members", "etcd_tls")
    if state.ports and any(getattr(plane, name) != getattr(state.plane, name) for name in fixed):
        raise MeshMismatch(
            f"{data} holds a mesh of {state.plane.etcd_members} etcd members, with TLS "
            f"{'on' if state.plane.etcd_tls else 'off'}: that stays as it is, or take another "
            "directory"
        )
    return replace(
        state,
        plane=plane,
        ports=choose_ports(port_names(names, plane), state.ports),
        postgres={**state.postgres, **options.postgres},
        binaries={**state.binaries, **options.binaries},
    )


def _start_layers(
    state: MeshState, missing: Sequence[Place], options: MeshOptions, progress: Progress
) -> MeshState:
    for layer in LAYERS:
        members = [place for place in missing if place.layer == layer]
        if layer == "schema" and _needs_schema(missing, options):
            migrate(state, progress)
        if layer == "controller" and any(place.layer != "base" for place in missing):
            settings.write(state, options)
        if layer == "base" and state.plane.etcd_tls:
            settings.write_etcd_certificates(state)
        # Processes of a layer start together; PostgreSQL's first start makes its files meanwhile.
        processes = []
        for place in members:
            state, process = begin(state, place)
            processes.append(process)
        await_ready(processes, options.ready_wait_s, progress)
        if layer == "base" and state.plane.etcd_tls and any(p.role == "etcd" for p in members):
            _give_etcd_users(state)
    return state


def _give_etcd_users(state: MeshState) -> None:
    # Not at the top: with it comes gRPC, whose import takes a while.
    from control.etcd_users import EtcdUsers, NoUsers, ensure
    from router.client.tls import TlsFiles

    tls = state.path / "tls"
    root = TlsFiles(str(tls / "ca.pem"), str(tls / "root.pem"), str(tls / "root.key"))
    users = EtcdUsers(
        tuple(f"controller-{number}" for number in range(1, 4)),
        {f"cell-{cell}": cell for cell in state.cells},
    )
    try:
        ensure(state.address("etcd"), root, users)
    except NoUsers as error:
        raise StartFailure("etcd", str(error)) from error


def _needs_schema(missing: Sequence[Place], options: MeshOptions) -> bool:
    if options.only:
        return "schema" in options.only
    return any(place.role in {"postgres", "controller", "cell"} for place in missing)


def _wait_for_the_end(state: MeshState, progress: Progress) -> None:
    """Until a signal, or until somebody takes the mesh down. Tells of each process that ended."""
    told: set[Identity] = set()
    try:
        while True:
            time.sleep(_WATCH_INTERVAL_S)
            now = load(state.path)
            if now is None or now.launcher != state.launcher:
                progress("the mesh was taken down by another command")
                return
            for record in now.processes.values():
                if record.identity not in told and not is_alive(record.identity):
                    told.add(record.identity)
                    code = exit_code_of(record.identity)
                    how = "" if code is None else f" ({code})"
                    progress(f"{record.name} ended{how}; its log: {record.log}")
    except KeyboardInterrupt:
        progress("taking the mesh down")


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the launcher as Ctrl-C does: after it has taken everything down."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handling(interrupt):
        yield


@contextmanager
def _deaf_to_signals() -> Iterator[None]:
    """A second Ctrl-C must not leave half of the mesh behind; every step has its own bound."""

    def ignore(number: int, frame: FrameType | None) -> None:
        pass

    # A function and not SIG_IGN, which children would inherit.
    with _handling(ignore):
        yield


@contextmanager
def _handling(handler: signal._HANDLER) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        # Python delivers signals to the main thread alone; whoever runs there handles them.
        yield
        return
    before = {number: signal.signal(number, handler) for number in _ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
