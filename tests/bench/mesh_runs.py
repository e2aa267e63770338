"""The mesh as a whole: payments end to end, transfers, ways in, moves and kills.

Everything that the product does is on: mTLS, fsync, the fence, idempotency, the outbox and its
relays. pgbench runs on the same PostgreSQL server before, between and after.
"""

from __future__ import annotations

import asyncio
import json
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
from cellpay.accounts.v1 import accounts_pb2
from cellpay.control.v1 import control_pb2 as pb
from cellpay.money.v1.money_pb2 import Money
from sqlalchemy import text

from cells.notifications.consumer import DURABLE
from cells.outbox.stream import STREAM, connect_stream
from control.cellctl.session import Session
from control.cellctl.verify import verify_mesh
from control.mesh import launcher
from router.client import CallPolicy, Mesh, connect_direct
from router.slots import slot_of_user
from router.store.model import LIVE_CELLS_PREFIX
from tests.bench import pgbench
from tests.bench.figures import ROOT, Figures

WORKERS = 2
CELLS = ("a", "b", "c")
_CONNECTIONS = 8
_IN_FLIGHT = 512
_BATCHES_IN_FLIGHT = 16
_MERCHANT = "bench-shop"
_TOLD_WAIT_S = 120.0
_PROBERS = 16
# About as long as a move takes.
_MOVE_S = 0.1


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    users: int
    payments: int
    transfers: int
    rounds: int
    pgbench_s: int
    moves: int
    kills: int


QUICK = Scale(users=600, payments=3000, transfers=400, rounds=1, pgbench_s=3, moves=0, kills=0)
FULL = Scale(users=3000, payments=12_000, transfers=2000, rounds=3, pgbench_s=6, moves=24, kills=3)


class MeshRuns:
    def __init__(self, data: Path, figures: Figures, scale: Scale) -> None:
        self.data = data
        self.session = Session.open(data)
        self.figures = figures
        self.scale = scale

    async def run(self) -> None:
        pgbench.prepare(self.session.state)
        async with self.session.mesh(CallPolicy(timeout_s=60)) as mesh:
            users = await self.people(mesh)
            await self._throughput(users)
            await self.told()
            if self.scale.moves:
                await self._half_load(users)
                await self._cells(users)
                await self.told()
                await self._paths(users["a"])
                await self._moves(mesh, users["a"])
                await self._kills(mesh)
        report = await verify_mesh(self.data)
        self.figures.notes["books_are_sound"] = report.ok
        if not report.ok:
            raise SystemExit("the books are broken after the benchmark")

    async def people(self, mesh: Mesh) -> dict[str, list[str]]:
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
            for number in range(self.scale.users):
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
        """Unary payments, payments by the batch and cross-cell transfers, in turn with pgbench."""
        print("one cell: pgbench, payments, batches, transfers, in turn", flush=True)
        payers, payees = users["a"], users["b"]
        addresses = await self._addresses("a")
        baseline = [pgbench.run(self.session.state, self.scale.pgbench_s)]
        pays, bulks, transfers, p50, p99 = [], [], [], [], []
        for _ in range(self.scale.rounds):
            orders = self.orders(addresses, payers, 2 * self.scale.payments)
            paid = self.load("pay", addresses, orders[::2])
            pays.append(paid["succeeded"] / paid["seconds"])
            p50.append(paid["p50_ms"])
            p99.append(paid["p99_ms"])
            bulk = self.load("batch", addresses, orders[1::2])
            bulks.append(bulk["succeeded"] / bulk["seconds"])
            across = [
                (payers[n % len(payers)], payees[n % len(payees)])
                for n in range(self.scale.transfers)
            ]
            moved = self.load("transfer", addresses, across)
            transfers.append(moved["succeeded"] / moved["seconds"])
            # The relays have told what was paid: pgbench has the machine to itself.
            await self.told()
            baseline.append(pgbench.run(self.session.state, self.scale.pgbench_s))
        tps = statistics.mean(baseline)
        add = self.figures.add
        add("pgbench_tps", "transactions/s", baseline, tps)
        add("unary_pay_per_s", "payments/s", pays)
        add("unary_pay_vs_pgbench", "ratio", [item / tps for item in pays])
        add("unary_pay_p50_ms", "ms", p50)
        add("unary_pay_p99_ms", "ms", p99)
        add("bulk_pay_per_s", "payments/s", bulks)
        add("bulk_pay_vs_pgbench", "ratio", [item / tps for item in bulks])
        add("transfer_per_s", "transfers/s", transfers)
        ratios = [one / other for one, other in zip(transfers, pays, strict=True)]
        add("transfer_vs_pay", "ratio", ratios)

    async def _half_load(self, users: dict[str, list[str]]) -> None:
        """An open loop at half of the peak; latencies count from when a call was due."""
        print("latency at half of the peak", flush=True)
        addresses = await self._addresses("a")
        await self.told()
        per_s = self.figures.found["unary_pay_per_s"].value / 2
        p50, p99 = [], []
        for _ in range(self.scale.rounds):
            orders = self.orders(addresses, users["a"], int(per_s * 5))
            await self.told()
            paid = self.load("pay", addresses, orders, per_s=per_s)
            p50.append(paid["p50_ms"])
            p99.append(paid["p99_ms"])
        self.figures.add("unary_pay_p50_ms_half_load", "ms", p50)
        self.figures.add("unary_pay_p99_ms_half_load", "ms", p99)

    async def _cells(self, users: dict[str, list[str]]) -> None:
        """The same machine, shared by one, two and three cells at work."""
        for count in range(1, len(CELLS) + 1):
            jobs = []
            for cell in CELLS[:count]:
                addresses = await self._addresses(cell)
                each = self.scale.payments // count
                orders = self.orders(addresses, users[cell], each)
                jobs.append(self._job("pay", addresses, orders, None, _IN_FLIGHT // count))
            begin = time.perf_counter()
            running = [_begin(job) for job in jobs]
            done = [_end(process) for process in running]
            seconds = max(item["seconds"] for item in done)
            total = sum(item["succeeded"] for item in done)
            if total != sum(len(job["items"]) for job in jobs):
                raise SystemExit("payments failed")
            self.figures.notes[f"cells_{count}_wall_s"] = round(time.perf_counter() - begin, 2)
            self.figures.add(f"cells_{count}_pay_per_s", "payments/s", [total / seconds])

    def orders(self, addresses: list[str], payers: list[str], count: int) -> list[str]:
        pairs = [(payers[n % len(payers)], _MERCHANT) for n in range(count)]
        orders: list[str] = self.load("orders", addresses, pairs)["orders"]
        return orders

    async def _addresses(self, cell: str) -> list[str]:
        """Where the processes of the cell listen, once all of them do."""
        async with self.session.store() as store:
            while True:
                item = await store.get(LIVE_CELLS_PREFIX + cell)
                found: list[str] = json.loads(item.value)["addresses"] if item else []
                if len(found) == WORKERS:
                    return found
                await asyncio.sleep(0.1)

    async def told(self) -> None:
        """Waits until the relays have told what was paid: the next figures are not theirs."""
        unsent = text("SELECT COALESCE(sum(events), 0) FROM outbox WHERE NOT sent")
        begin = time.perf_counter()
        async with (
            self.session.database() as engine,
            engine.connect() as connection,
            connect_stream(self.session.state.nats_url, "bench") as stream,
        ):
            behind = int((await connection.execute(unsent)).scalar_one())
            while time.perf_counter() - begin < _TOLD_WAIT_S:
                info = await stream.consumer_info(STREAM, DURABLE)
                consumed = info.num_pending == info.num_ack_pending == 0
                if consumed and not (await connection.execute(unsent)).scalar_one():
                    break
                await asyncio.sleep(0.2)
        waited = time.perf_counter() - begin
        told = f"{behind} events behind after a run, {waited:.0f} s"
        self.figures.notes["events"] = told
        print(f"  {told}", flush=True)

    def _job(
        self, job: str, addresses: list[str], items: list[Any], per_s: float | None, in_flight: int
    ) -> dict[str, Any]:
        return {
            "job": job,
            "addresses": addresses,
            "tls": asdict(self.session.tls("client")),
            "connections": _CONNECTIONS,
            "in_flight": in_flight,
            "items": items,
            "per_s": per_s,
        }

    def load(
        self,
        job: str,
        addresses: list[str],
        items: list[Any],
        per_s: float | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        in_flight = _BATCHES_IN_FLIGHT if job == "batch" else _IN_FLIGHT
        result = _end(_begin({**self._job(job, addresses, items, per_s, in_flight), **more}))
        if result["failed"] or result["succeeded"] != len(items):
            raise SystemExit(f"{job}: {result['failed']} calls failed: {result['reasons']}")
        return result

    async def _paths(self, users: list[str]) -> None:
        """One call after the other: direct, by xDS, through Envoy, in turn."""
        print("latency of one call: direct, xDS, Envoy", flush=True)
        tls = self.session.tls("client")
        direct_address = (await self._addresses("a"))[0]
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
            self.figures.add(f"{name}_read_p50_ms", "ms", samples)
        ratios = [one / other for one, other in zip(p50["direct"], p50["xds"], strict=True)]
        self.figures.add("xds_vs_direct", "ratio of speed", ratios)
        added = [one - other for one, other in zip(p50["envoy"], p50["direct"], strict=True)]
        self.figures.add("envoy_added_p50_ms", "ms", added)

    async def _moves(self, mesh: Mesh, users: list[str]) -> None:
        """Slots go to and fro under writes; a stall is a call's time beyond the run's median.

        First as many times nothing happens for as long: what the machine stalls by itself."""
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
        quiet: list[tuple[float, float]] = []
        async with asyncio.TaskGroup() as group:
            for number in range(_PROBERS):
                group.create_task(client(number))
            async with self.session.control() as control:
                await asyncio.sleep(1)
                for _ in range(self.scale.moves):
                    begin = time.perf_counter()
                    await asyncio.sleep(_MOVE_S)
                    quiet.append((begin, time.perf_counter()))
                for number in range(self.scale.moves):
                    begin = time.perf_counter()
                    target = "b" if number % 2 == 0 else "a"
                    await _move(control, first, last, target)
                    windows.append((begin, time.perf_counter()))
                    await asyncio.sleep(0.25)
            done = True
        usual = statistics.median(end - begin for begin, end in calls)

        def stalls_in(window: tuple[float, float]) -> list[float]:
            return [
                (end - begin - usual) * 1000
                for begin, end in calls
                if end >= window[0] and begin <= window[1]
            ]

        for name, looked_at in (("planned_move", windows), ("no_move", quiet)):
            # The worst call of each move, and 99 of 100 calls that met one.
            worst = [max(stalls_in(window)) for window in looked_at]
            self.figures.add(f"{name}_stall_p99_ms", "ms", worst, _p99(worst))
            each = [stall for window in looked_at for stall in stalls_in(window)]
            self.figures.add(f"{name}_call_stall_p99_ms", "ms", [_p99(each)])
        self.figures.add("planned_move_failed", "requests", [float(failed)])
        self.figures.notes["planned_moves"] = (
            f"{self.scale.moves} moves of {last - first + 1} slots, {len(calls)} calls"
        )

    async def _kills(self, mesh: Mesh) -> None:
        """SIGKILL to the first answer for a user of the dead cell; the policy fails over."""
        print("SIGKILL with automatic failover", flush=True)
        outages = []
        for _ in range(self.scale.kills):
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
                await _operate(control, kind=pb.Operation.KIND_RESTORE, cell="c", force=True)
        self.figures.add("sigkill_outage_ms", "ms", outages, max(outages))


def _begin(job: dict[str, Any]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.load"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdin
    process.stdin.write(json.dumps(job))
    process.stdin.close()
    return process


def _end(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout
    answer = process.stdout.read()
    if process.wait():
        raise SystemExit("the load generator failed")
    result: dict[str, Any] = json.loads(answer)
    return result


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


def _p99(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
