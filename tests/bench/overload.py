"""Overload: three times what a cell can do, with and without policies.

    python -m tests.bench.overload

Unary payments enter through Envoy. First the peak (a closed loop), then an open loop of three times
that rate. The policies are a circuit breaker at Envoy, which refuses the excess before it costs the
cell anything, and the adaptive limit in the cell behind it. Goodput counts payments that were
answered within the deadline, from when they were due; what was refused stays unpaid.

Without any policy there is a guard already: Envoy lets 1,024 requests at a cell at once. So there
are three cases: that guard taken away, nothing but it, and the policies. Each with callers that
send their deadline of 1 s, which every server honours, and with silent ones, who wait for a second
as well and do not say so: what the mesh answers them later is done in vain.

The load generator and Envoy have one core, the cell, its database and the rest the other one, as
they have machines of their own elsewhere: else the generator's own calls, three times as many,
would take the processor from what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from cellpay.control.v1 import policies_pb2 as pb

from control.cellctl.session import Session
from control.cellctl.verify import verify_mesh
from control.mesh import launcher
from control.mesh.options import MeshOptions
from router.client import CallPolicy, TlsFiles
from router.slots import SLOT_HEADER
from tests.bench import lean
from tests.bench.figures import RESULTS, ROOT, Figures
from tests.bench.lean import Connection
from tests.bench.load import _body
from tests.bench.mesh_runs import MeshRuns, Scale

_SCALE = Scale(users=600, payments=0, transfers=0, rounds=0, pgbench_s=0, moves=0, kills=0)
_PATH = "/cellpay.payments.v1.PaymentsService/Pay"
# As many as the breaker lets in: the peak is not to look small for want of callers.
_PEAK_IN_FLIGHT = 256
_OVERLOAD_S = 2.0
_CELLS_CORE, _CALLERS_CORE = {0}, {1}
_QUIET_S = 4.0
# What Envoy takes of one connection (router/edge/hardening.py): who sends more is cut off.
_STREAMS_MAX = 100
_CONNECTIONS = 80
_TIMES = 3.0
_DEADLINE_S = 1.0
# Whether callers send it.
_CALLERS = {"": True, "silent_": False}
# A little more than what comes in a burst: with less the cell idles between two of them.
_BREAKER = 256
_POLICIES: dict[str, dict[tuple[str, str], dict[str, Any]]] = {
    # As good as none.
    "unguarded": {("traffic", "overload"): {"circuit_breaker": {"requests_max": 1_000_000}}},
    "default": {},
    "policies": {
        ("traffic", "overload"): {"circuit_breaker": {"requests_max": _BREAKER}},
        ("limits", "overload"): {
            "concurrency": {"initial": 2 * _BREAKER, "minimum": _BREAKER, "maximum": 4 * _BREAKER}
        },
    },
}


def _generate(job: dict[str, Any]) -> dict[str, Any]:
    """Some connections to the edge."""
    os.sched_setaffinity(0, _CALLERS_CORE)
    tls = TlsFiles(**job["tls"])
    # A cell that is alone has every slot.
    deadline = ("grpc-timeout", f"{int(_DEADLINE_S * 1000)}m")
    headers = ((SLOT_HEADER, "0"), *([deadline] if job["says_deadline"] else []))
    connections = [Connection(job["address"], tls, headers) for _ in range(_CONNECTIONS)]
    in_flight = _PEAK_IN_FLIGHT // _CONNECTIONS if job["per_s"] is None else _STREAMS_MAX
    per_s = None if job["per_s"] is None else job["per_s"] / _CONNECTIONS
    bodies = [
        iter([_body("pay", order_id) for order_id in job["orders"][number::_CONNECTIONS]])
        for number in range(_CONNECTIONS)
    ]
    begin = time.perf_counter()
    results = lean.run(connections, _PATH, bodies, in_flight=in_flight, per_s=per_s)
    seconds = time.perf_counter() - begin
    latencies = sorted(value for result in results for value in result.latencies)
    return {
        "seconds": seconds,
        "succeeded": len(latencies),
        "good": sum(value <= _DEADLINE_S for value in latencies),
        "refused": sum(result.failed for result in results),
        "p99_ms": 1000 * latencies[int(len(latencies) * 0.99)] if latencies else 0.0,
    }


class Overload:
    def __init__(
        self, data: Path, figures: Figures, scale: Scale, rounds: int, payments: int
    ) -> None:
        self._scale = scale
        self._rounds = rounds
        self._payments = payments
        self._data = data
        self._session = Session.open(data)
        self._figures = figures

    async def run(self) -> None:
        runs = MeshRuns(self._data, self._figures, self._scale)
        async with self._session.mesh(CallPolicy(timeout_s=60)) as mesh:
            users = (await runs.people(mesh))["a"]
            addresses = [self._session.state.address("cell-a")]
        found: dict[str, list[dict[str, Any]]] = {}

        async def one(
            name: str, count: int, per_s: float | None, says: bool = True, policies: str = "default"
        ) -> dict[str, Any]:
            orders = runs.orders(addresses, users, count)
            await self._set_policies(policies)
            done = await asyncio.to_thread(self._load, orders, per_s, says)
            await self._delete_policies(policies)
            found.setdefault(name, []).append(done)
            print(f"  {name}: {done}", flush=True)
            if per_s is not None:
                # What waits in the lane and in Envoy's retries is not the next run's.
                await asyncio.sleep(_QUIET_S)
            return done

        await one("peak", self._payments, None)
        found.clear()
        for _ in range(self._rounds):
            peak = await one("peak", self._payments, None)
            per_s = _TIMES * peak["good"] / peak["seconds"]
            for callers, says in _CALLERS.items():
                for name in _POLICIES:
                    await one(callers + name, int(per_s * _OVERLOAD_S), per_s, says, name)
        self._tell(found)
        report = await verify_mesh(self._data)
        self._figures.notes["books_are_sound"] = report.ok

    def _load(self, orders: list[str], per_s: float | None, says: bool) -> dict[str, Any]:
        tls = self._session.tls("client")
        job = {
            "address": self._session.edge_address,
            "tls": {"ca": tls.ca, "certificate": tls.certificate, "key": tls.key},
            "orders": orders,
            "per_s": per_s,
            "says_deadline": says,
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.overload", "--generate"],
            input=json.dumps(job), stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True,
        )  # fmt: skip
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    async def _set_policies(self, case: str) -> None:
        async with self._session.policies() as policies:
            for (kind, name), document in _POLICIES[case].items():
                await policies.SetPolicy(
                    pb.SetPolicyRequest(
                        kind=kind, name=name, document=json.dumps(document), reason="benchmark"
                    )
                )
        await asyncio.sleep(1)

    async def _delete_policies(self, case: str) -> None:
        async with self._session.policies() as policies:
            for kind, name in _POLICIES[case]:
                await policies.DeletePolicy(
                    pb.DeletePolicyRequest(kind=kind, name=name, reason="benchmark")
                )
        await asyncio.sleep(1)

    def _tell(self, found: dict[str, list[dict[str, Any]]]) -> None:
        figures = self._figures
        per_s = {
            name: [item["good"] / item["seconds"] for item in items]
            for name, items in found.items()
        }
        figures.add("peak_payments_per_s", "1/s", per_s["peak"])
        for name in sorted(found.keys() - {"peak"}):
            ratios = [one / peak for one, peak in zip(per_s[name], per_s["peak"], strict=True)]
            figures.add(f"overload_goodput_{name}_vs_peak", "ratio", ratios)
            figures.add(f"overload_p99_ms_{name}", "ms", [item["p99_ms"] for item in found[name]])
            refused = [item["refused"] / (item["refused"] + item["succeeded"]) for item in
                       found[name]]  # fmt: skip
            figures.add(f"overload_refused_{name}", "part", refused)
        figures.notes["runs"] = found


def _pin_envoy(data: Path) -> None:
    (envoy,) = [item for item in launcher.status(data) if item.name == "envoy"]
    for thread in Path(f"/proc/{envoy.pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), _CALLERS_CORE)


def main() -> None:
    if "--generate" in sys.argv:
        print(json.dumps(_generate(json.load(sys.stdin))))
        return
    parser = argparse.ArgumentParser(prog="python -m tests.bench.overload")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--payments", type=int, default=3000, help="to find the peak with")
    parser.add_argument("--users", type=int, default=600)
    given = parser.parse_args()
    scale = replace(_SCALE, users=given.users)
    figures = Figures()
    # Inherited by everything that is started from here.
    os.sched_setaffinity(0, _CELLS_CORE)
    overrides = {"settlement": {"interval_s": 3600.0}}
    with tempfile.TemporaryDirectory(prefix="cellpay-bench-") as folder:
        data = Path(folder)
        try:
            with launcher.running(data, 1, MeshOptions(cell_overrides=overrides)):
                _pin_envoy(data)
                asyncio.run(Overload(data, figures, scale, given.rounds, given.payments).run())
        finally:
            launcher.remove(data)
    figures.write(RESULTS / "overload.json")


if __name__ == "__main__":
    main()
