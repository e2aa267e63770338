"""What traces cost: unary payments with them and without, side by side in one run.

    python -m tests.bench.tracing [--rounds 3] [--payments 2000]

Three cells of one mesh: one records nothing, one keeps the default sample, one keeps everything,
which is what leaving the choice to a collector costs. They are paid at in turn, and change their
parts twice; a case is compared with "off" in the same cell, so that nothing but the settings tells
them apart. Callers send a traceparent to all of them. Besides payments a second, the processor's
time a payment: it hears less of what else the machine does. Fewer calls are under way than at the
peak: what is slower than `slow_ms` is kept, and would be measured as such.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from control.mesh import launcher
from control.mesh.options import MeshOptions
from router.client import CallPolicy
from router.tracing import TracingSettings
from tests.bench.figures import RESULTS, Figures
from tests.bench.mesh_runs import CELLS, MeshRuns, Scale
from tests.integration.collector import collecting

_SCALE = Scale(users=600, payments=0, transfers=0, rounds=0, pgbench_s=0, moves=0, kills=0)
_OFF, _SAMPLE, _ALL = "off", "sample", "all"
# In no sample: the cell's own ratio would not be asked, so the flag is the sample's own choice.
_TRACEPARENT = "00-{:032x}-00f067aa0ba902b7-{}"
# Of each of the two that pay.
_IN_FLIGHT = 96


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
            _ALL: TracingSettings(endpoint=collector, sample_ratio=1.0),
        }
        # By case and cell.
        self._runs_of: dict[str, dict[str, list[_Run]]] = {
            name: {cell: [] for cell in CELLS} for name in self._settings
        }

    async def run(self) -> None:
        async with self._runs.session.mesh(CallPolicy(timeout_s=60)) as mesh:
            users = await self._runs.people(mesh)
        cases = list(self._settings)
        for turn in range(len(cases)):
            parts = dict(zip(cases, CELLS[turn:] + CELLS[:turn], strict=True))
            for case, cell in parts.items():
                await asyncio.to_thread(self._restart, cell, self._settings[case])
            orders = list(itertools.permutations(cases))
            for number in range(self._given.rounds):
                # The first payments after a start warm caches.
                if number == 0:
                    for case in cases:
                        await self._pay(parts[case], users[parts[case]], case, counts=False)
                for case in orders[(turn + number) % len(orders)]:
                    await self._pay(parts[case], users[parts[case]], case, counts=True)
        self._tell()

    def _restart(self, cell: str, settings: TracingSettings) -> None:
        path = self._data / "cells" / cell / "settings.json"
        document = json.loads(path.read_text())
        document["tracing"] = asdict(settings)
        path.write_text(json.dumps(document))
        for name in (f"cell-{cell}", f"relay-{cell}"):
            launcher.restart(self._data, name)

    async def _pay(self, cell: str, payers: list[str], case: str, *, counts: bool) -> None:
        addresses = [self._runs.session.state.address(f"cell-{cell}")]
        count = self._given.payments if counts else self._given.payments // 4
        orders = await asyncio.to_thread(self._runs.orders, addresses, payers, count)
        await self._runs.told()
        # A hundredth of the payments would be in the sample: a hundredth carries the flag.
        marked = len(orders) if case == _ALL else len(orders) // 100
        process = next(p for p in launcher.status(self._data) if p.name == f"cell-{cell}")
        assert process.pid is not None
        before = _cpu_s(process.pid)
        both = await asyncio.gather(
            *(
                asyncio.to_thread(self._load, addresses, part, flag)
                for part, flag in ((orders[:marked], "01"), (orders[marked:], "00"))
                if part
            )
        )
        cpu_s = _cpu_s(process.pid) - before
        if not counts:
            return
        run = _Run(
            len(orders) / max(item["seconds"] for item in both),
            cpu_s / len(orders) * 1e6,
            max(both, key=lambda item: item["succeeded"])["p99_ms"],
        )
        self._runs_of[case][cell].append(run)
        print(
            f"  {case:7} in {cell}: {run.per_s:.0f}/s, {run.cpu_us:.0f} µs of processor", flush=True
        )

    def _load(self, addresses: list[str], orders: list[str], flag: str) -> dict[str, Any]:
        header = ("traceparent", _TRACEPARENT.format(id(orders), flag))
        return self._runs.load("pay", addresses, orders, headers=(header,), in_flight=_IN_FLIGHT)

    def _tell(self) -> None:
        add = self._figures.add
        for case, by_cell in self._runs_of.items():
            runs = [run for found in by_cell.values() for run in found]
            add(f"pay_per_s_{case}", "payments/s", [run.per_s for run in runs])
            add(f"pay_cpu_us_{case}", "µs", [run.cpu_us for run in runs])
            add(f"pay_p99_ms_{case}", "ms", [run.p99_ms for run in runs])
        for case in (_SAMPLE, _ALL):
            cpu, speed = [], []
            for cell in CELLS:
                on, off = self._runs_of[case][cell], self._runs_of[_OFF][cell]
                # What else the machine does only ever adds: the least disturbed of each.
                cpu.append(min(run.cpu_us for run in on) / min(run.cpu_us for run in off))
                speed.append(max(run.per_s for run in on) / max(run.per_s for run in off))
            add(f"trace_cpu_overhead_{case}", "%", [100 * (ratio - 1) for ratio in cpu])
            add(f"trace_overhead_{case}", "%", [100 * (1 - ratio) for ratio in speed])


def _cpu_s(pid: int) -> float:
    """Of all threads of the process: the one that sends spans too."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.tracing")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--payments", type=int, default=2000)
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
