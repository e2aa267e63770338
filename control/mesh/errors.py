"""What can go wrong with a local mesh, as sentences that a person can act on.

MeshError
├─ MissingComponent   a server's binary is not on this machine
├─ StartFailure       a component ended, or was not ready in time
├─ StopFailure        a process did not end, not even by SIGKILL
├─ MeshBusy           another command holds this mesh's lock
├─ MeshMismatch       the directory holds a mesh of another shape, or no readable one
└─ UnknownProcess     no process of the mesh has this name, or it does not run
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class MeshError(Exception):
    """The parent of all errors of the local mesh; its text is meant for people."""


class MissingComponent(MeshError):
    """Says for each missing binary where it was looked for and how to get it."""

    def __init__(self, sentences: Sequence[str]) -> None:
        super().__init__("\n".join(sentences))


class StartFailure(MeshError):
    """A component could not start. Shows the end of what it wrote, so that nobody must look."""

    def __init__(
        self,
        component: str,
        why: str,
        *,
        exit_code: int | None = None,
        log: Path | None = None,
        tail: Sequence[str] = (),
    ) -> None:
        self.component = component
        self.exit_code = exit_code
        self.log = log
        self.tail = tuple(tail)
        lines = [f"{component} could not start: {why}"]
        lines.extend(f"    {line}" for line in self.tail)
        if log is not None:
            lines.append(f"its log: {log}")
        super().__init__("\n".join(lines))


class StopFailure(MeshError):
    """The kernel keeps a process that must end, as in an uninterruptible wait for a disk."""


class MeshBusy(MeshError):
    """Another `up`, `down` or `start` is at work on the same directory."""


class MeshMismatch(MeshError):
    """The directory's mesh.json does not fit what was asked for."""


class UnknownProcess(MeshError):
    """The mesh has no process of this name, or it does not run now."""
