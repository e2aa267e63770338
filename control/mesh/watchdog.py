"""A launcher that is killed takes its foreground mesh with it.

PR_SET_PDEATHSIG would be shorter, and leaks: the kernel forgets it when a child changes its user
(PostgreSQL), sends it when the launching *thread* ends, knows nothing of processes that another
command restarted, and exists on Linux alone. So one small process waits for the launcher's end and
does what the launcher would have done.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from control.mesh.processes import Identity, is_alive

_POLL_S = 0.2
# A crash, not a farewell: whoever kills the launcher wants the ports back soon.
_GRACE_S = 2.0


class Watchdog:
    """Around the life of a foreground mesh. Leaving the block in an orderly way dismisses it."""

    def __init__(self, data: Path, launcher: Identity) -> None:
        self._command = (
            *(sys.executable, "-m", "control.mesh.watchdog"),
            *(str(data.resolve()), str(launcher.pid), launcher.started),
        )
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Watchdog:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # What kills the launcher's terminal or group must not reach it.
            start_new_session=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


def wait_for_end_of(launcher: Identity) -> None:
    if sys.platform == "linux":
        try:
            handle = os.pidfd_open(launcher.pid)
        except ProcessLookupError:
            return
        # Asked after the handle is open: from here on it cannot be another process.
        if is_alive(launcher):
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            poll.poll()
        os.close(handle)
        return
    while is_alive(launcher):
        time.sleep(_POLL_S)


def main(data: Path, launcher: Identity) -> None:
    wait_for_end_of(launcher)
    # Only now: it waits for hours, and small.
    from control.mesh.options import silent
    from control.mesh.shutdown import end_all
    from control.mesh.state import load, locked

    if not data.is_dir():
        return
    with locked(data):
        state = load(data)
        # Another launcher may have taken the mesh over in the meantime.
        if state is not None and state.launcher == launcher:
            end_all(data, silent, _GRACE_S)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Identity(int(sys.argv[2]), sys.argv[3]))
