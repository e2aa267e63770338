"""A cell of several processes: the first starts the others, tells the mesh of them, ends them.

Each is `python -m cells.serve SETTINGS.json --worker …` with its own listener, event loop and lane.
They share no memory; what two of them do to one account the database's row locks put in order. The
mesh hashes a slot to one of the listeners (ring hash), so that they seldom meet.

A process tells the first one, a line each, where it listens and is asked, and then what it feels of
its load. One that leaves is first taken out of the mesh; then it ends by itself, when nobody calls
it any more (`EMPTY_SIGNAL`). If the mesh cannot be told, it stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from cells.elasticity.model import Felt

log = structlog.get_logger(__name__)

# A worker ends with it when a money invariant broke; then the whole cell must stop.
EXIT_MONEY_BROKEN = 70
# Asks a worker to end as soon as nobody calls it any more.
EMPTY_SIGNAL = signal.SIGUSR1
_START_WAIT_S = 30.0
_GRACE_S = 4.0
_POLL_S = 0.05
_TELL_AGAIN_S = 0.2
_BACKOFF_BASE_S = 0.1
_BACKOFF_CAP_S = 5.0
_READ_BYTES = 65_536

# Tells the mesh of the addresses as they are now; False when it could not.
Announce = Callable[[], Awaitable[bool]]


class WorkerBroken(Exception):
    """A worker's money invariant broke: the cell stops (fail-stop)."""


class Workers:
    def __init__(self, settings: Path, incarnation: str, leave_max_s: float) -> None:
        """None runs before `resize`. `leave_max_s`: for how long one that leaves may be busy."""
        self._settings = settings
        self._incarnation = incarnation
        self._leave_max_s = leave_max_s
        # Further processes, beside the first.
        self._wanted = 0
        self._resized = asyncio.Event()
        self._keepers: set[int] = set()
        self._addresses: dict[int, str] = {}
        self._felt: dict[int, Felt] = {}
        # Where each tells of itself (router/probes.py), by the process's number.
        self.probes: dict[str, str] = {}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._emptying = False
        self._stopping = False

    @property
    def addresses(self) -> list[str]:
        return [self._addresses[number] for number in sorted(self._addresses)]

    def felt(self) -> list[Felt]:
        """What each feels that takes work and has told of it."""
        return [self._felt[number] for number in sorted(self._felt) if number in self._addresses]

    def resize(self, count: int) -> None:
        """`count`: further processes. Those with the highest numbers leave."""
        self._wanted = 0 if self._emptying else count
        self._resized.set()

    async def empty(self) -> None:
        """All leave, and none comes any more; returns when they have ended."""
        self._emptying = True
        self.resize(0)
        while self._keepers:
            await asyncio.sleep(_POLL_S)

    async def run(self, announce: Announce) -> None:
        """Keeps the workers running until it is cancelled; then ends them.

        `announce` is called when `addresses` has become another.
        """
        async with asyncio.TaskGroup() as group:
            while True:
                for number in set(range(1, self._wanted + 1)) - self._keepers:
                    self._keepers.add(number)
                    group.create_task(self._keep(number, announce))
                await self._resized.wait()
                self._resized.clear()

    def _is_wanted(self, number: int) -> bool:
        return number <= self._wanted and not self._stopping

    async def _keep(self, number: int, announce: Announce) -> None:
        """Starts it, and again when it ended unasked, until it is not wanted."""
        failures = 0
        while self._is_wanted(number):
            process, pipe = self._start(number)
            self._processes[number] = process
            left = False
            try:
                first = await _first_line(process, pipe)
                self._addresses[number], _, probes = first.partition(" ")
                if probes:
                    self.probes[str(number)] = probes
                failures = 0
                await announce()
                await self._until_gone(number, process, pipe)
                if left := process.returncode is None:
                    await self._leave(number, process, announce)
            except (TimeoutError, EOFError):
                log.error("a worker did not start", worker=number)
            finally:
                await _end(process)
                pipe.close()
                self.probes.pop(str(number), None)
                self._felt.pop(number, None)
                if self._addresses.pop(number, None) is not None:
                    await announce()
            if process.returncode == EXIT_MONEY_BROKEN:
                raise WorkerBroken(f"worker {number}")
            if left or not self._is_wanted(number):
                continue
            failures += 1
            log.error("a worker ended; starting it anew", worker=number, code=process.returncode)
            ceiling = min(_BACKOFF_CAP_S, _BACKOFF_BASE_S * 2**failures)
            await asyncio.sleep(random.uniform(0, ceiling))
        # No turn of the loop since it was looked at: `run` sees this number free, or wanted again.
        self._keepers.discard(number)
        self._resized.set()

    async def _until_gone(self, number: int, process: subprocess.Popen[bytes], pipe: _Pipe) -> None:
        """Until the process has ended, or is not wanted any more."""
        while process.poll() is None and number <= self._wanted:
            for line in pipe.lines():
                with contextlib.suppress(ValueError, TypeError):
                    self._felt[number] = Felt.from_line(line)
            await asyncio.sleep(_POLL_S)

    async def _leave(
        self, number: int, process: subprocess.Popen[bytes], announce: Announce
    ) -> None:
        """Out of the mesh first, then to its end."""
        del self._addresses[number]
        while not await announce():
            if self._stopping or process.poll() is not None:
                return
            await asyncio.sleep(_TELL_AGAIN_S)
        log.info("a worker leaves", worker=number)
        process.send_signal(EMPTY_SIGNAL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._leave_max_s + _GRACE_S):
                while process.poll() is None and not self._stopping:
                    await asyncio.sleep(_POLL_S)

    def stop(self) -> None:
        """Asks them all to end, and starts none anew."""
        self._stopping = True
        for process in self._processes.values():
            process.terminate()

    def _spawn(self, number: int, writing: int) -> subprocess.Popen[bytes]:
        """Popen, not asyncio: uvloop forks, and gRPC's threads do not survive a fork."""
        command = [sys.executable, "-m", "cells.serve", str(self._settings)]
        command += ["--worker", self._incarnation, "--number", str(number), "--tell", str(writing)]
        # The end of its input tells the worker that we are gone, however we went.
        return subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(writing,))

    def _start(self, number: int) -> tuple[subprocess.Popen[bytes], _Pipe]:
        """The process, and what it tells."""
        reading, writing = os.pipe()
        try:
            process = self._spawn(number, writing)
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return process, _Pipe(reading)


class _Pipe:
    """Lines that a process tells, read without waiting."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._rest = b""
        self.ended = False

    def lines(self) -> list[str]:
        """Those that have come since the last call."""
        while not self.ended:
            try:
                piece = os.read(self._descriptor, _READ_BYTES)
            except BlockingIOError:
                break
            self._rest += piece
            self.ended = not piece
        *whole, self._rest = self._rest.split(b"\n")
        return [line.decode(errors="replace") for line in whole]

    def close(self) -> None:
        os.close(self._descriptor)


def tell_line(descriptor: int, line: str) -> None:
    """In a worker: to the cell's first process. What it cannot take now it does not hear (a short
    line is written whole or not at all); that it has gone, `until_parent_gone` says."""
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        os.write(descriptor, f"{line}\n".encode())


async def _first_line(process: subprocess.Popen[bytes], pipe: _Pipe) -> str:
    """Raises EOFError when the process ended before, TimeoutError."""
    until = time.monotonic() + _START_WAIT_S
    while time.monotonic() < until:
        if lines := pipe.lines():
            return lines[0]
        if pipe.ended or process.poll() is not None:
            raise EOFError
        await asyncio.sleep(_POLL_S)
    raise TimeoutError


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
