"""Ending a mesh: in the reverse order of starting, by PID and start time, leaving nothing behind.

Apart from the launcher, so that the watchdog of a launcher that died can do the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from control.mesh import postgres
from control.mesh.components import LAYERS, layer_of, stop_signal
from control.mesh.mounts import uncover_all
from control.mesh.options import Progress
from control.mesh.processes import is_alive, stop, strays_of
from control.mesh.state import MeshState, ProcessRecord, load, save

_STRAY_ROUNDS_MAX = 5


def end_all(data: Path, progress: Progress, grace_s: float) -> int:
    """Ends every process of the mesh and returns how many there were. Needs the lock.

    Processes that mesh.json does not know (a launcher was killed before it could write, or the
    file was deleted) are known by the mark in their environment.
    """
    state = load(data)
    ended = 0
    if state is not None:
        ended += end(state, state.processes, progress, grace_s)
        save(replace(state, processes={}, launcher=None))
    # Again until there is none: what ends may be starting another one at that moment.
    for _ in range(_STRAY_ROUNDS_MAX):
        strays = strays_of(data)
        if not strays:
            break
        progress(f"stopping {len(strays)} more, started by this mesh")
        stop({stray: stop_signal("") for stray in strays}, grace_s)
        ended += len(strays)
    for folder in uncover_all(data):
        progress(f"a drill's tmpfs is taken off {folder}")
    return ended


def end(state: MeshState, names: Iterable[str], progress: Progress, grace_s: float) -> int:
    """Ends these processes and returns how many of them were alive."""
    records = [state.processes[name] for name in names if name in state.processes]
    ended = 0
    for layer in reversed(LAYERS):
        members = [record for record in records if layer_of(record.role) == layer]
        alive = [record for record in members if is_alive(record.identity)]
        if alive:
            progress(f"stopping {', '.join(record.name for record in alive)}")
            stop({record.identity: stop_signal(record.role) for record in alive}, grace_s)
        for record in members:
            _end_children(record)
        ended += len(alive)
    return ended


def _end_children(record: ProcessRecord) -> None:
    if record.role == "postgres":
        # As postgres.command wrote it: BINARY -D DATA …
        postgres.wait_for_workers(Path(record.command[2]), Path(record.command[0]))
