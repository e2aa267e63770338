"""ISO 8583 messages a second through one connection and one core of the adapter.

    python -m tests.bench.iso8583 [--seconds 5]

The adapter is the product's; the bank is the simulator in a process of its own, on the other core.
A message is a request or an answer; a purchase is two. What the adapter's core is given is measured
too (process time), for this machine is shared: messages per second of processor say what a core of
its own would do.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import resource
import secrets
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import uvloop

from cells.channels.interface import Channel
from cells.channels.model import Card, Operation, Request, Verdict
from cells.channels.registry import open_channel
from router.ids import Kind, mint
from tests.bench.figures import RESULTS, Figures
from tests.conformance.cases import CASES, Case
from tests.conformance.process import started

_IN_FLIGHT = 256
_RUNS = 5
_CARD = Card("6222021234567890123", "3012", "unionpay")


@dataclass(frozen=True, slots=True)
class Run:
    requests: int
    wall_s: float
    processor_s: float
    # Of each request, sorted.
    times_s: list[float]


def _request(number: int) -> Request:
    reference = mint(
        Kind.ATTEMPT,
        number % 1024,
        unix_ms=time.time_ns() // 1_000_000,
        random_80=secrets.randbits(80),
    )
    return Request(
        Operation.AUTHORISE, reference, 100 + number % 9_000, "CNY", _CARD, merchant="Bakery"
    )


async def _run(channel: Channel, seconds: float) -> Run:
    times: list[float] = []
    numbers = itertools.count()
    began, used = time.perf_counter(), time.process_time()
    until = began + seconds

    async def keep_asking() -> None:
        now = time.perf_counter()
        while now < until:
            answer = await channel.perform(_request(next(numbers)), 30.0)
            if answer.verdict is not Verdict.APPROVED:
                raise SystemExit(f"a purchase was not approved: {answer}")
            before, now = now, time.perf_counter()
            times.append(now - before)

    async with asyncio.TaskGroup() as group:
        for _ in range(_IN_FLIGHT):
            group.create_task(keep_asking())
    wall_s, processor_s = time.perf_counter() - began, time.process_time() - used
    return Run(len(times), wall_s, processor_s, sorted(times))


async def _measure(case: Case, ports: Mapping[str, int], folder: Path, seconds: float) -> list[Run]:
    channel = open_channel(case.channel(ports, folder), lambda _: None)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(channel.run())
        # Until it is signed on, and warm.
        await _run(channel, min(seconds, 1.0))
        runs = [await _run(channel, seconds) for _ in range(_RUNS)]
        running.cancel()
    return runs


def _tell(figures: Figures, name: str, runs: list[Run]) -> None:
    figures.add(
        f"{name}_messages_per_s", "messages/s", [2 * run.requests / run.wall_s for run in runs]
    )
    figures.add(
        f"{name}_messages_per_processor_s",
        "messages/s",
        [2 * run.requests / run.processor_s for run in runs],
    )
    figures.add(
        f"{name}_p99_ms", "ms", [1_000 * run.times_s[len(run.times_s) * 99 // 100] for run in runs]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    seconds = parser.parse_args().seconds
    figures = Figures()
    cores = sorted(os.sched_getaffinity(0))
    # The bank starts with the cores it is left; ours is the first alone.
    if len(cores) > 1:
        os.sched_setaffinity(0, set(cores[1:]))
    for case in CASES:
        if not case.name.startswith("iso8583"):
            continue
        with tempfile.TemporaryDirectory() as folder:
            runs = uvloop.run(_pinned(case, Path(folder), seconds, cores))
        _tell(figures, case.name.replace("-", "_"), runs)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures.notes = {
        "in_flight": _IN_FLIGHT,
        "connections": 1,
        "a_message": "a request or an answer; a purchase is two",
        "adapter_core": cores[0],
        # What else ran here meanwhile: above the number of cores, the clock measures others.
        "load_average": os.getloadavg(),
        "peak_mib": round(peak_kib / 1024),
    }
    figures.write(RESULTS / "iso8583.json")


async def _pinned(case: Case, folder: Path, seconds: float, cores: list[int]) -> list[Run]:
    with started(case.bank(folder), folder) as ports:
        os.sched_setaffinity(0, {cores[0]})
        try:
            return await _measure(case, ports, folder, seconds)
        finally:
            if len(cores) > 1:
                os.sched_setaffinity(0, set(cores[1:]))


if __name__ == "__main__":
    main()
