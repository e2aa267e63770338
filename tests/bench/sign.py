"""`make sign-bench`: what signatures take of the throughput of unary Pay → bench/results/sign.json.

One cell of one process, called as Envoy calls it. A signed payment is verified, its nonce is taken
in Redis, and the answer is signed. Signing the requests is the merchants' own affair: they are
signed before the clock starts. Ways take turns, so that a busy machine is busy for all of them.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from control.mesh import launcher
from control.mesh.options import MeshOptions
from control.mesh.state import load as load_state
from router.client import CallPolicy
from router.signing.keys import Signer
from router.signing.model import Algorithm
from tests.bench.figures import RESULTS, Figures
from tests.bench.mesh_runs import QUICK, MeshRuns
from tests.integration.signed import registration
from tests.make_signing_vectors import private_keys

_MERCHANT = "bench-shop"
_PAYMENTS = 6000
_ROUNDS = 3
# The registry's watch, of every process of the cell.
_HEARD_S = 2.0


async def _measure(data: Path, figures: Figures) -> None:
    runs = MeshRuns(data, figures, QUICK)
    state = load_state(data)
    assert state is not None
    addresses = [state.address("cell-a")]
    tls = asdict(runs.session.tls("edge"))
    ways: dict[str, dict[str, Any]] = {"unsigned": {"tls": tls}}
    async with runs.session.mesh(CallPolicy(timeout_s=60)) as mesh:
        users = await runs.people(mesh)
        for algorithm, private in private_keys().items():
            signer = Signer("none-yet", algorithm, private)
            key = await mesh.keys.RegisterKey(registration(signer, _MERCHANT))
            sign = {"key_id": key.key_id, "algorithm": algorithm, "private": private.decode()}
            ways[str(algorithm)] = {"tls": tls, "sign": sign}
    await asyncio.sleep(_HEARD_S)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(_ROUNDS + 1):
        for name, way in ways.items():
            orders = runs.orders(addresses, users["a"], _PAYMENTS)
            paid = await asyncio.to_thread(runs.load, "pay", addresses, orders, **way)
            if number:
                # The first round is everybody's warm-up.
                found[name].append(paid["succeeded"] / paid["seconds"])
    for name, samples in found.items():
        figures.add(f"pay_per_s_{name}", "payments/s", samples)
    for algorithm in Algorithm:
        costs = [
            100 * (1 - signed / unsigned)
            for signed, unsigned in zip(found[algorithm], found["unsigned"], strict=True)
        ]
        figures.add(f"cost_percent_{algorithm}", "%", costs)


def main() -> None:
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="cellpay-bench-") as folder:
        data = Path(folder)
        options = MeshOptions(
            only=("base", "schema", "controller", "cells"),
            cell_overrides={"settlement": {"interval_s": 3600.0}},
        )
        try:
            with launcher.running(data, 3, options):
                asyncio.run(_measure(data, figures))
        finally:
            launcher.remove(data)
    figures.write(RESULTS / "sign.json")


if __name__ == "__main__":
    main()
