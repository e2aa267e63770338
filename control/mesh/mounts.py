"""A small tmpfs over a folder of a mesh: how a drill fills one disk without filling any other.

What lies in the folder when it is covered lies in it still, and what was written meanwhile stays
when it is uncovered. The one who takes a mesh down uncovers too: else `remove` could delete neither
the folder nor its mount, and who deletes the directory by hand would leave the memory occupied.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from control.mesh.errors import MeshError

# The mount's source, by which ours are known.
_SOURCE = "cellpay-drill"
_FILL = "drill.fill"
_MOUNTS = Path("/proc/self/mounts")
_PAGE = 4096
_ROOM_BYTES = 16 * 1024 * 1024


def cover(folder: Path) -> None:
    """A tmpfs of a little more than what the folder holds, over it, with all that it holds."""
    used = sum(path.stat().st_size + _PAGE for path in folder.rglob("*"))
    copy = _copy_of(folder)
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    options = f"size={used + _ROOM_BYTES},mode=0755"
    _run(["mount", "-t", "tmpfs", "-o", options, _SOURCE, str(folder)])
    shutil.copytree(copy, folder, dirs_exist_ok=True)
    shutil.rmtree(copy)


def fill(folder: Path) -> int:
    """Takes all that is free there, to the last page; how many bytes that were."""
    free = os.statvfs(folder)
    wanted = free.f_bavail * free.f_frsize
    with open(folder / _FILL, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(wanted, _PAGE))
    return wanted


def uncover(folder: Path) -> None:
    """Ends the tmpfs; what it held goes to the folder below. Nobody may be at work in it."""
    copy = _copy_of(folder)
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(_FILL))
    _run(["umount", str(folder)])
    shutil.rmtree(folder)
    copy.rename(folder)


def uncover_all(data: Path) -> list[Path]:
    """Whatever drills have covered below this directory is uncovered; which folders."""
    try:
        lines = _MOUNTS.read_text().splitlines()
    except OSError:
        return []
    found = covered_below(data, lines)
    for folder in found:
        uncover(folder)
    return found


def covered_below(data: Path, mounts: Iterable[str]) -> list[Path]:
    """Of lines as /proc/self/mounts has them: our folders below the directory."""
    found = []
    for line in mounts:
        source, _, rest = line.partition(" ")
        if source == _SOURCE:
            # Blanks and the like stand there in octal: \040.
            folder = Path(rest.split(" ")[0].encode().decode("unicode_escape"))
            if folder.is_relative_to(data):
                found.append(folder)
    return found


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise MeshError(f"{' '.join(command)}: {done.stderr.strip()}")


def _copy_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.copy")
