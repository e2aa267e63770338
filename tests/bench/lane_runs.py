"""The lane alone, in as many processes as a cell has: sizes of population, hot accounts, groups."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control.mesh import launcher
from control.mesh.options import MeshOptions
from tests.bench import pgbench
from tests.bench.figures import POSTGRES, ROOT, Figures
from tests.bench.population import population

PROCESSES = 2
_BATCH_MAX = 512
_IN_FLIGHT = 1024


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    payments: int
    rounds: int
    pgbench_s: int
    accounts: tuple[int, ...]
    ladder: tuple[int, ...]


QUICK = Scale(4_000, 1, 2, (1_000,), ())
FULL = Scale(
    24_000, 3, 6, (1_000, 100_000, 10_000_000), (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
)


def run(figures: Figures, scale: Scale) -> list[dict[str, float]]:
    """Figures of the lane; returns the ladder: callers, group, latencies and throughput."""
    print("the ledger's lane alone, against pgbench", flush=True)
    with tempfile.TemporaryDirectory(prefix="cellpay-bench-") as folder:
        data = Path(folder)
        try:
            with launcher.running(
                data, 1, MeshOptions(only=("postgres",), postgres=POSTGRES)
            ) as state:
                pgbench.prepare(state)
                return asyncio.run(_Run(figures, scale, state).all())
        finally:
            launcher.remove(data)


class _Run:
    def __init__(self, figures: Figures, scale: Scale, state: Any) -> None:
        self._figures = figures
        self._scale = scale
        self._state = state

    async def all(self) -> list[dict[str, float]]:
        ladder: list[dict[str, float]] = []
        url = self._state.database_url
        for accounts in self._scale.accounts:
            print(f"{accounts:,} accounts", flush=True)
            async with population(url, f"lanes_{accounts}", accounts) as database:
                if accounts >= 10_000_000:
                    await self._large(url, database, accounts)
                    continue
                await self._uniform(database, accounts)
                if accounts == max(n for n in self._scale.accounts if n <= 100_000):
                    await self._hot(database, accounts)
                    ladder = [await self._step(database, accounts, n) for n in self._scale.ladder]
        return ladder

    async def _large(self, url: str, database: str, accounts: int) -> None:
        """In turn with the smallest population, so that the machine's moods are shared."""
        fewest = self._scale.accounts[0]
        found, ratios = [], []
        async with population(url, f"again_{fewest}", fewest) as small:
            for _ in range(self._scale.rounds):
                usual = await self._per_s(small, fewest)
                found.append(await self._per_s(database, accounts))
                ratios.append(found[-1] / usual)
        self._figures.add(f"lane_per_s_{accounts}_accounts", "payments/s", found)
        self._figures.add("accounts_10m_vs_1k", "ratio", ratios)

    async def _uniform(self, database: str, accounts: int) -> None:
        """The lane against pgbench before and after; the ratio of the usual population is told."""
        baseline = [pgbench.run(self._state, self._scale.pgbench_s)]
        found = []
        for _ in range(self._scale.rounds):
            found.append(await self._per_s(database, accounts))
            baseline.append(pgbench.run(self._state, self._scale.pgbench_s))
        self._figures.add(f"lane_per_s_{accounts}_accounts", "payments/s", found)
        if accounts == max(n for n in self._scale.accounts if n <= 100_000):
            tps = sum(baseline) / len(baseline)
            self._figures.add("pgbench_beside_lane_tps", "transactions/s", baseline, tps)
            self._figures.add("lane_vs_pgbench", "ratio", [item / tps for item in found])

    async def _hot(self, database: str, accounts: int) -> None:
        """In turn, so that the machine's moods are shared."""
        merchant, payer = [], []
        for _ in range(self._scale.rounds):
            uniform = await self._per_s(database, accounts)
            merchant.append(await self._per_s(database, accounts, hot_merchant=0.5) / uniform)
            payer.append(await self._per_s(database, accounts, hot_payer=0.1) / uniform)
        self._figures.add("hot_merchant_vs_uniform", "ratio", merchant)
        self._figures.add("hot_payer_vs_uniform", "ratio", payer)

    async def _step(self, database: str, accounts: int, callers: int) -> dict[str, float]:
        """One process, so many callers: what group they make, and what each waits."""
        payments = min(self._scale.payments, 400 * callers)
        (done,) = await self._processes(database, accounts, 1, payments, callers)
        return {
            "callers": callers,
            "group": done["payments"] / done["groups"],
            "p50_ms": done["p50_ms"],
            "p99_ms": done["p99_ms"],
            "per_s": done["payments"] / done["seconds"],
        }

    async def _per_s(self, database: str, accounts: int, **more: float) -> float:
        done = await self._processes(
            database, accounts, PROCESSES, self._scale.payments, _IN_FLIGHT, **more
        )
        return sum(item["payments"] for item in done) / max(item["seconds"] for item in done)

    async def _processes(
        self,
        database: str,
        accounts: int,
        processes: int,
        payments: int,
        in_flight: int,
        **more: float,
    ) -> list[dict[str, float]]:
        jobs = [
            {
                "database_url": database, "process": number, "processes": processes,
                "accounts": accounts, "payments": payments // processes,
                "in_flight": max(1, in_flight // processes),
                "lanes": {"batch_size_max": _BATCH_MAX}, **more,
            }
            for number in range(processes)
        ]  # fmt: skip
        return await asyncio.to_thread(_together, jobs)


def _together(jobs: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Runs the jobs at once: each begins when all are ready."""
    running = []
    for job in jobs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.lane"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert process.stdin
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        running.append(process)
    for process in running:
        assert process.stdout
        if process.stdout.readline().strip() != "ready":
            raise SystemExit("a lane of the benchmark did not start")
    for process in running:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate()[0] for process in running]
    return [json.loads(answer) for answer in answers]
