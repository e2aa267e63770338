"""What traces cost: unary payments with them and without, side by side in one run.

    python -m tests.bench.tracing [--segments 12] [--payments 400]

Three cells of one mesh: one records nothing, one keeps the default sample, one keeps everything,
which is what leaving the choice to a collector costs. They are paid at in turn, for some tenths of
a second each, and change their parts twice, so that each has been in each cell; a segment is
compared with that of "off" which was its neighbour in time. Besides payments a second, the
processor's time a payment, which hears less of what else the machine does. Fewer calls are under
way than at the peak: what is slower than `slow_ms` is kept, and would be measured as such.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from control.mesh import launcher
from control.mesh.options import MeshOptions
from router.client import CallPolicy
from router.tracing import TracingSettings
from tests.bench import load
from tests.bench.figures import RESULTS, Figures
from tests.bench.mesh_runs import CELLS, MeshRuns, Scale
from tests.integration.collector import collecting

_SCALE = Scale(users=600, payments=0, transfers=0, rounds=0, pgbench_s=0, moves=0, kills=0)
_OFF, _SAMPLE, _ALL = "off", "sample", "all"
_IN_FLIGHT = 64
_CONNECTIONS = 8


class _Run(NamedTuple):
    per_s: float
    cpu_us: float
    p99_ms: float


class TraceBench:
    def __init__(self, data: Path, figures: Figures, collector: str, given: Any) -> None:
        self._data = data
        self._figures = figures
        self._given = given
        self._runs = MeshRuns(data, figures, _SCALE)
        self._settings = {
            _OFF: TracingSettings(),
            _SAMPLE: TracingSettings(endpoint=collector),
            _ALL: TracingSettings(
                endpoint=collector, sample_ratio=1.0, spans_per_s_max=50_000, queue_max=200_000
            ),
        }
        # By turn: each case's segments, in the order of time.
        self._turns: list[dict[str, list[_Run]]] = []

    async def run(self) -> None:
        async with self._runs.session.mesh(CallPolicy(timeout_s=60)) as mesh:
            users = await self._runs.people(mesh)
        cases = list(self._settings)
        for turn in range(len(cases)):
            parts = dict(zip(cases, CELLS[turn:] + CELLS[:turn], strict=True))
            for case, cell in parts.items():
                await asyncio.to_thread(self._restart, cell, self._settings[case])
            await self._turn(turn, parts, users)
        self._tell()

    def _restart(self, cell: str, settings: TracingSettings) -> None:
        path = self._data / "cells" / cell / "settings.json"
        document = json.loads(path.read_text())
        document["tracing"] = asdict(settings)
        path.write_text(json.dumps(document))
        for name in (f"cell-{cell}", f"relay-{cell}"):
            launcher.restart(self._data, name)

    async def _turn(self, turn: int, parts: dict[str, str], users: dict[str, list[str]]) -> None:
        """Segments in every order of the cases; the first of each warms caches."""
        segments, payments = self._given.segments + 1, self._given.payments
        orders = {}
        for case, cell in parts.items():
            addresses = [self._runs.session.state.address(f"cell-{cell}")]
            orders[case] = await asyncio.to_thread(
                self._runs.orders, addresses, users[cell], segments * payments
            )
        await self._runs.told()
        ways = list(itertools.permutations(parts))
        runs: dict[str, list[_Run]] = {case: [] for case in parts}
        self._turns.append(runs)
        for number in range(segments):
            for case in ways[(turn + number) % len(ways)]:
                part = orders[case][number * payments : (number + 1) * payments]
                run = await asyncio.to_thread(self._pay, parts[case], part)
                if number:
                    runs[case].append(run)
        for case, cell in parts.items():
            found = statistics.median(run.cpu_us for run in runs[case])
            print(f"  {case:7} in {cell}: {found:.0f} µs of processor", flush=True)

    def _pay(self, cell: str, orders: list[str]) -> _Run:
        process = next(p for p in launcher.status(self._data) if p.name == f"cell-{cell}")
        assert process.pid is not None
        job = {
            "job": "pay",
            "addresses": [process.address],
            "tls": asdict(self._runs.session.tls("client")),
            "connections": _CONNECTIONS,
            "in_flight": _IN_FLIGHT,
            "items": orders,
        }
        before = _cpu_s(process.pid)
        done = load.run(job)
        cpu_s = _cpu_s(process.pid) - before
        if done["succeeded"] != len(orders):
            raise SystemExit(f"{done['failed']} payments failed")
        return _Run(len(orders) / done["seconds"], cpu_s / len(orders) * 1e6, done["p99_ms"])

    def _tell(self) -> None:
        add = self._figures.add
        for case in self._settings:
            runs = [run for turn in self._turns for run in turn[case]]
            add(f"pay_per_s_{case}", "payments/s", [run.per_s for run in runs])
            add(f"pay_cpu_us_{case}", "µs", [run.cpu_us for run in runs])
            add(f"pay_p99_ms_{case}", "ms", [run.p99_ms for run in runs])
        for case in (_SAMPLE, _ALL):
            cpu = [_against(turn[case], turn[_OFF], "cpu_us") for turn in self._turns]
            speed = [_against(turn[_OFF], turn[case], "per_s") for turn in self._turns]
            # The cells differ by what else each does, but each has had every part.
            for name, ratios in (("trace_cpu_overhead", cpu), ("trace_overhead", speed)):
                found = 100 * (statistics.geometric_mean(ratios) - 1)
                add(f"{name}_{case}", "%", [100 * (ratio - 1) for ratio in ratios], found)


def _against(runs: list[_Run], others: list[_Run], figure: str) -> float:
    """Of segments that were neighbours in time: how many times the others' figure, mostly."""
    ratios: list[float] = [
        getattr(one, figure) / getattr(other, figure)
        for one, other in zip(runs, others, strict=True)
    ]
    return statistics.median(ratios)


def _cpu_s(pid: int) -> float:
    """Of all threads of the process: the one that sends spans too."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.tracing")
    parser.add_argument("--segments", type=int, default=12)
    parser.add_argument("--payments", type=int, default=400)
    given = parser.parse_args()
    figures = Figures()
    overrides = {"settlement": {"interval_s": 3600.0}}
    with collecting() as collector, tempfile.TemporaryDirectory(prefix="cellpay-bench-") as folder:
        data = Path(folder)
        try:
            # A cell that is restarted keeps its slots.
            options = MeshOptions(cell_overrides=overrides, automatic_failover=False)
            with launcher.running(data, len(CELLS), options):
                asyncio.run(TraceBench(data, figures, collector.url, given).run())
        finally:
            launcher.remove(data)
    figures.write(RESULTS / "tracing.json")


if __name__ == "__main__":
    main()
