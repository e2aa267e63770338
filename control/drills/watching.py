"""Drills do not outlive their process: the runner's watchdog, and the controller's keeper.

Three look after a fault. The runner ends it by itself. Its watchdog, a process that waits for the
runner's end, heals at once when the runner dies, and ends a runner that is still at it long after
the lease. A controller takes up what has nobody: when both died, or the mesh went down and came up.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import structlog

from control.drills.model import State
from control.drills.store import Journal, journals
from control.mesh.processes import (
    Identity,
    Spawn,
    exit_code_of,
    identify,
    is_alive,
    send,
    spawn,
)

log = structlog.get_logger(__name__)

_POLL_S = 0.25
# Healing takes a while too: restarts, moves, checks.
_OVERTIME_S = 30.0
_KEEP_INTERVAL_S = 2.0
_START_S = 30.0
# A drill that its process cannot end needs a person, not a loop.
_TAKEN_UP_MAX = 3


def start_process(journal: Journal, *arguments: str, of_this_process: bool = False) -> Identity:
    """A runner of its own session: what ends its parent does not end it."""
    more = list(arguments)
    if of_this_process:
        this = identify(os.getpid())
        assert this is not None
        more += [str(this.pid), this.started]
    command = (sys.executable, "-m", "control.drills.runner", str(journal.data), journal.name)
    identity, _ = spawn(
        Spawn(
            name=f"drill {journal.name}",
            command=(*command, *more),
            # Where this package is found, installed or not.
            cwd=Path(__file__).resolve().parents[2],
            log=journal.data / "logs" / f"drill-{journal.name}.log",
            owner=journal.data,
        )
    )
    return identity


def take_over_from(journal: Journal, runner: Identity) -> None:
    """Returns when the runner is no more."""
    while is_alive(runner):
        time.sleep(_POLL_S)
        drill = journal.load()
        lease_ms = drill.lease_until_ms if drill else None
        held = drill is not None and drill.state in {State.INJECTED, State.CHECKED_DURING}
        if held and lease_ms is not None and time.time() > lease_ms / 1000 + _OVERTIME_S:
            send(runner, signal.SIGKILL)


class Keeper:
    """Of a controller: what has not ended and has no owner is taken up."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self._started: list[Identity] = []
        self._taken_up: Counter[tuple[str, int]] = Counter()

    def start(self, journal: Journal, *arguments: str) -> None:
        self._started.append(start_process(journal, *arguments))

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_KEEP_INTERVAL_S)
            # Ended children are waited for, or they stay as zombies.
            self._started = [item for item in self._started if exit_code_of(item) is None]
            for journal in await asyncio.to_thread(journals, self.data):
                drill = await asyncio.to_thread(journal.load)
                if drill is None or drill.ended:
                    continue
                age_s = time.time() - drill.history[-1].time_ms / 1000
                key = (drill.spec.name, drill.run)
                # Its runner may just be starting, which takes a busy machine a while.
                patience_s = _START_S if drill.state == State.PLANNED else 2 * _KEEP_INTERVAL_S
                if age_s < patience_s or self._taken_up[key] >= _TAKEN_UP_MAX:
                    continue
                if journal.has_owner():
                    continue
                self._taken_up[key] += 1
                log.warning("a drill has nobody; healing it", drill=drill.spec.name)
                self.start(journal, "--orphan")
