"""Processor time by part of the mesh: what a busy machine distorts less than payments a second.

The kernel's own count (/proc, Linux only) of each process that the mesh runs, with its children:
PostgreSQL's backends, a cell's further processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from control.mesh.state import MeshState


def spent_s(state: MeshState) -> dict[str, float]:
    """Seconds since each began, by the mesh's name of it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _fields(entry / "stat")):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    return {
        name: sum(_of(pid) for pid in _family(record.identity.pid, children))
        for name, record in state.processes.items()
    }


def _family(pid: int, children: dict[int, list[int]]) -> Iterable[int]:
    yield pid
    for child in children.get(pid, []):
        yield from _family(child, children)


def _of(pid: int) -> float:
    """All threads of a process; 0 when it has just gone."""
    total = 0
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    except OSError:
        return 0.0
    return total / 1e9


def _fields(path: Path) -> list[str]:
    try:
        return path.read_text().rpartition(")")[2].split()
    except OSError:
        return []
