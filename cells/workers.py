"""A cell of several processes: the first starts the others, tells the mesh of them, ends them.

Each is `python -m cells.serve SETTINGS.json --worker …` with its own listener, event loop and lane.
They share no memory; what two of them do to one account the database's row locks put in order. The
mesh hashes a slot to one of the listeners (ring hash), so that they seldom meet.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

# A worker ends with it when a money invariant broke; then the whole cell must stop.
EXIT_MONEY_BROKEN = 70
_START_WAIT_S = 30.0
_GRACE_S = 4.0
_POLL_S = 0.05
_BACKOFF_BASE_S = 0.1
_BACKOFF_CAP_S = 5.0


class WorkerBroken(Exception):
    """A worker's money invariant broke: the cell stops (fail-stop)."""


class Workers:
    def __init__(self, settings: Path, count: int, incarnation: str) -> None:
        """`count`: further processes."""
        self._settings = settings
        self._count = count
        self.incarnation = incarnation
        self._addresses: dict[int, str] = {}
        # Where each tells of itself (router/probes.py), by the process's number.
        self.probes: dict[str, str] = {}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._stopping = False

    @property
    def addresses(self) -> list[str]:
        return [self._addresses[number] for number in sorted(self._addresses)]

    async def run(self, on_change: Callable[[], Awaitable[None]]) -> None:
        """Keeps the workers running until it is cancelled; then ends them.

        `on_change` is called when `addresses` has become another.
        """
        async with asyncio.TaskGroup() as group:
            for number in range(1, self._count + 1):
                group.create_task(self._keep(number, on_change))

    async def _keep(self, number: int, on_change: Callable[[], Awaitable[None]]) -> None:
        failures = 0
        while True:
            process, address = self._start()
            self._processes[number] = process
            try:
                self._addresses[number], _, probes = (await address).partition(" ")
                if probes:
                    self.probes[str(number)] = probes
                failures = 0
                await on_change()
                await _gone(process)
            except (TimeoutError, EOFError):
                log.error("a worker did not start", worker=number)
            finally:
                await _end(process)
                self.probes.pop(str(number), None)
                if self._addresses.pop(number, None) is not None:
                    await on_change()
            if process.returncode == EXIT_MONEY_BROKEN:
                raise WorkerBroken(f"worker {number}")
            if self._stopping:
                return
            failures += 1
            log.error("a worker ended; starting it anew", worker=number, code=process.returncode)
            ceiling = min(_BACKOFF_CAP_S, _BACKOFF_BASE_S * 2**failures)
            await asyncio.sleep(random.uniform(0, ceiling))

    def stop(self) -> None:
        """Asks them all to end, and starts none anew."""
        self._stopping = True
        for process in self._processes.values():
            process.terminate()

    def _spawn(self, writing: int) -> subprocess.Popen[bytes]:
        """Popen, not asyncio: uvloop forks, and gRPC's threads do not survive a fork."""
        command = [sys.executable, "-m", "cells.serve", str(self._settings)]
        command += ["--worker", self.incarnation, "--tell", str(writing)]
        # The end of its input tells the worker that we are gone, however we went.
        return subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(writing,))

    def _start(self) -> tuple[subprocess.Popen[bytes], Awaitable[str]]:
        """The process and, to be awaited, where it listens and where it tells of itself."""
        reading, writing = os.pipe()
        try:
            process = self._spawn(writing)
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return process, _read_line(reading)


async def _read_line(descriptor: int) -> str:
    """One line of a pipe. Raises EOFError when it was closed before, TimeoutError."""
    reader = asyncio.StreamReader()
    with os.fdopen(descriptor, "rb") as pipe:
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            async with asyncio.timeout(_START_WAIT_S):
                line = await reader.readline()
        finally:
            transport.close()
    if not line.endswith(b"\n"):
        raise EOFError
    return line.decode().strip()


async def _gone(process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        await asyncio.sleep(_POLL_S)


async def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        async with asyncio.timeout(_GRACE_S):
            await _gone(process)
    except TimeoutError:
        process.kill()
        await _gone(process)


async def until_parent_gone() -> None:
    """In a worker: returns when the cell's first process has ended."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    try:
        await reader.read()
    finally:
        transport.close()
