"""Overload: three times what a cell can do, with and without policies.

    python -m tests.bench.overload

Unary payments enter through Envoy. First the peak (a closed loop), then an open loop of three times
that rate, in turn without policies and with: a circuit breaker at Envoy, which refuses the excess
before it costs the cell anything, and the adaptive limit in the cell behind it. Goodput counts
payments that were answered within the deadline of 1 s, from when they were due; whatever a payment
was refused with, its order is used again. The load generator has the same two cores.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cellpay.control.v1 import policies_pb2 as pb

from control.cellctl.main import verify_mesh
from control.cellctl.session import Session
from control.mesh import launcher
from control.mesh.options import MeshOptions
from router.client import CallPolicy, TlsFiles
from router.slots import SLOT_HEADER
from tests.bench.figures import RESULTS, ROOT, Figures
from tests.bench.lean import Connection
from tests.bench.load import _body
from tests.bench.mesh_runs import MeshRuns, Scale

_SCALE = Scale(users=600, payments=0, transfers=0, rounds=0, pgbench_s=0, moves=0, kills=0)
_PATH = "/cellpay.payments.v1.PaymentsService/Pay"
_ROUNDS = 3
_PEAK_PAYMENTS = 3000
_PEAK_IN_FLIGHT = 64
_OVERLOAD_S = 4.0
_TIMES = 3.0
_DEADLINE_S = 1.0
_BREAKER = 64
_POLICIES = {
    ("traffic", "overload"): {"circuit_breaker": {"requests_max": _BREAKER}},
    ("limits", "overload"): {
        "concurrency": {"initial": _BREAKER, "minimum": 16, "maximum": 2 * _BREAKER}
    },
}


def _generate(job: dict[str, Any]) -> dict[str, Any]:
    """One connection to the edge; a cell that is alone has every slot."""
    connection = Connection(job["address"], TlsFiles(**job["tls"]), ((SLOT_HEADER, "0"),))
    result = connection.run(
        _PATH,
        (_body("pay", order_id) for order_id in job["orders"]),
        in_flight=_PEAK_IN_FLIGHT if job["per_s"] is None else 1_000_000,
        per_s=job["per_s"],
    )
    connection.close()
    latencies = sorted(result.latencies)
    good = [value for value in latencies if value <= _DEADLINE_S]
    return {
        "seconds": result.seconds,
        "succeeded": len(latencies),
        "good": len(good),
        "refused": result.failed,
        "p99_ms": 1000 * latencies[int(len(latencies) * 0.99)] if latencies else 0.0,
    }


class Overload:
    def __init__(self, data: Path, figures: Figures) -> None:
        self._data = data
        self._session = Session.open(data)
        self._figures = figures

    async def run(self) -> None:
        runs = MeshRuns(self._data, self._figures, _SCALE)
        async with self._session.mesh(CallPolicy(timeout_s=60)) as mesh:
            users = (await runs.people(mesh))["a"]
            addresses = await runs._addresses("a")
        found: dict[str, list[dict[str, Any]]] = {"peak": [], "bare": [], "policies": []}

        async def one(name: str, count: int, per_s: float | None) -> dict[str, Any]:
            orders = runs.orders(addresses, users, count)
            done = await asyncio.to_thread(self._load, orders, per_s)
            found[name].append(done)
            print(f"  {name}: {done}", flush=True)
            return done

        await one("peak", _PEAK_PAYMENTS, None)
        found["peak"].clear()
        for _ in range(_ROUNDS):
            peak = await one("peak", _PEAK_PAYMENTS, None)
            per_s = _TIMES * peak["good"] / peak["seconds"]
            count = int(per_s * _OVERLOAD_S)
            await one("bare", count, per_s)
            await self._set_policies()
            await one("policies", count, per_s)
            await self._delete_policies()
        self._tell(found)
        report = await verify_mesh(self._data)
        self._figures.notes["books_are_sound"] = report.ok

    def _load(self, orders: list[str], per_s: float | None) -> dict[str, Any]:
        tls = self._session.tls("client")
        job = {
            "address": self._session.edge_address,
            "tls": {"ca": tls.ca, "certificate": tls.certificate, "key": tls.key},
            "orders": orders,
            "per_s": per_s,
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.overload", "--generate"],
            input=json.dumps(job), capture_output=True, text=True, cwd=ROOT, check=True,
        )  # fmt: skip
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    async def _set_policies(self) -> None:
        async with self._session.policies() as policies:
            for (kind, name), document in _POLICIES.items():
                await policies.SetPolicy(
                    pb.SetPolicyRequest(
                        kind=kind, name=name, document=json.dumps(document), reason="benchmark"
                    )
                )
        await asyncio.sleep(1)

    async def _delete_policies(self) -> None:
        async with self._session.policies() as policies:
            for kind, name in _POLICIES:
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
        for name in ("bare", "policies"):
            ratios = [one / peak for one, peak in zip(per_s[name], per_s["peak"], strict=True)]
            figures.add(f"overload_goodput_{name}_vs_peak", "ratio", ratios)
            figures.add(f"overload_p99_ms_{name}", "ms", [item["p99_ms"] for item in found[name]])
            refused = [item["refused"] / (item["refused"] + item["succeeded"]) for item in
                       found[name]]  # fmt: skip
            figures.add(f"overload_refused_{name}", "part", refused)
        figures.notes["runs"] = found


def main() -> None:
    if "--generate" in sys.argv:
        print(json.dumps(_generate(json.load(sys.stdin))))
        return
    figures = Figures()
    overrides = {"settlement": {"interval_s": 3600.0}}
    with tempfile.TemporaryDirectory(prefix="cellpay-bench-") as folder:
        data = Path(folder)
        try:
            with launcher.running(data, 1, MeshOptions(cell_overrides=overrides)):
                asyncio.run(Overload(data, figures).run())
        finally:
            launcher.remove(data)
    figures.write(RESULTS / "overload.json")


if __name__ == "__main__":
    main()
