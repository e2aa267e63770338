"""A drill's folder in the mesh's directory: the journal that outlives whoever carries it out.

Not etcd, which is itself drilled: what must be undone is on the disk of the machine where it was
done. Every write is whole or absent; one process at a time holds the folder's lock and is the
drill's owner, and the kernel frees it when that process dies.

    DIR/drills/<name>/drill.json   the journal: plan, state, how to undo
                      end.json     somebody asked for the end
                      run-<n>/     report.md, report.json
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from control.drills.model import Drill
from control.mesh.state import write_atomically

FOLDER = "drills"
_LOCK_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class EndRequest:
    run: int
    actor: str
    reason: str
    # False: etcd was away; the drill's owner records it when etcd is back.
    audited: bool


_END = TypeAdapter(EndRequest)


class Journal:
    def __init__(self, data: Path, name: str) -> None:
        self.data = data
        self.name = name
        self.folder = data / FOLDER / name

    def load(self) -> Drill | None:
        try:
            return Drill.from_json((self.folder / "drill.json").read_bytes())
        except FileNotFoundError:
            return None

    def save(self, drill: Drill) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "drill.json", drill.to_json().encode())

    def ask_to_end(self, request: EndRequest) -> None:
        write_atomically(self.folder / "end.json", _END.dump_json(request))

    def end_request(self, run: int) -> EndRequest | None:
        try:
            request = _END.validate_json((self.folder / "end.json").read_bytes())
        except FileNotFoundError:
            return None
        return request if request.run == run else None

    def report_folder(self, run: int) -> Path:
        return self.folder / f"run-{run}"

    def write_report(self, run: int, markdown: str, document: str) -> None:
        folder = self.report_folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "report.md", markdown.encode())
        write_atomically(folder / "report.json", document.encode())

    @contextmanager
    def owned(self, wait_s: float = 0.0) -> Iterator[bool]:
        """True within the block: this process, and no other, carries the drill out.

        Somebody who only asks (`has_owner`) holds the lock for a moment too, hence the wait.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        with os.fdopen(handle, "rb") as file:
            until = time.monotonic() + wait_s
            while not _locked(file.fileno()):
                if time.monotonic() >= until:
                    yield False
                    return
                time.sleep(_LOCK_POLL_S)
            yield True

    def has_owner(self) -> bool:
        with self.owned() as free:
            return not free


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def journals(data: Path) -> list[Journal]:
    folder = data / FOLDER
    if not folder.is_dir():
        return []
    return [Journal(data, entry.name) for entry in sorted(folder.iterdir()) if entry.is_dir()]
