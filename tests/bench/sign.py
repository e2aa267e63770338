"""`make sign-bench`: what a signature costs, beside what a payment does → bench/results/sign.json.

One cell of one process, called as Envoy calls it. A signed request is verified, its nonce is taken
in Redis, and the answer is signed. Nobody may sign Pay: a merchant takes no money out of another's
account (router/access.py). So the same merchant's orders are made, signed and not; what a signature
adds to one is set against what an unsigned Pay, by one of our services, takes in the same round.

Signing the requests is the merchants' own affair: they are signed before the clock starts. Ways
take turns, so that a busy machine is busy for all of them. Calls a second say what a machine does
that is shared with the load generator, PostgreSQL and whoever else is there. So the kernel's count
of processor time a call stands beside it: the cell's, all threads, and its Redis's. Relays are not
started: nothing else is done meanwhile.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from control.mesh import launcher
from control.mesh.options import MeshOptions
from control.mesh.state import MeshState
from control.mesh.state import load as load_state
from router.client import CallPolicy
from router.identity import spiffe_id
from router.signing.keys import Signer
from tests.bench.figures import RESULTS, Figures
from tests.bench.mesh_runs import QUICK, MeshRuns
from tests.integration.signed import registration
from tests.make_signing_vectors import private_keys

_MERCHANT = "bench-shop"
# Short turns, many of them: what else runs here is then the same for neighbours.
_CALLS = 1200
_ROUNDS = 3
_WARM_UP_ROUNDS = 1
# The registry's watch, of every process of the cell.
_HEARD_S = 2.0
_MEASURED = ("cell-a", "redis-a")


class _Rounds:
    """The ways of calling, in turn: what each took."""

    def __init__(self, runs: MeshRuns, state: MeshState, users: list[str]) -> None:
        self._runs = runs
        self._state = state
        self._pairs = [(users[number % len(users)], _MERCHANT) for number in range(_CALLS)]
        self._edge = asdict(runs.session.tls("edge"))
        self.per_s: dict[str, list[float]] = {}
        self.spent_us: dict[str, list[float]] = {}

    def run(self, keys: dict[str, dict[str, str]]) -> None:
        """`keys`: algorithm → the merchant's key, as the load generator wants it."""
        for number in range(_WARM_UP_ROUNDS + _ROUNDS):
            made = self._orders("unsigned", None)
            # To and fro: no way comes always after the same one.
            for algorithm in list(keys)[:: -1 if number % 2 else 1]:
                self._orders(algorithm, keys[algorithm])
            self._load("pay", "pay", made, spiffe_id("service", "bench"), None)
        for samples in (*self.per_s.values(), *self.spent_us.values()):
            del samples[:_WARM_UP_ROUNDS]

    def _orders(self, name: str, sign: dict[str, str] | None) -> list[str]:
        return self._load(name, "orders", self._pairs, spiffe_id("merchant", _MERCHANT), sign)

    def _load(
        self, name: str, job: str, items: list[Any], shown: str, sign: dict[str, str] | None
    ) -> list[str]:
        addresses = [self._state.address("cell-a")]
        before = _spent_s(self._state)
        more: dict[str, Any] = {"tls": self._edge, "shown": shown, "sign": sign}
        done = self._runs.load(job, addresses, items, **more)
        spent = _spent_s(self._state) - before
        self.per_s.setdefault(name, []).append(done["succeeded"] / done["seconds"])
        self.spent_us.setdefault(name, []).append(spent / len(items) * 1e6)
        orders: list[str] = done["orders"]
        return orders


async def _measure(data: Path, figures: Figures) -> None:
    runs = MeshRuns(data, figures, QUICK)
    state = load_state(data)
    assert state is not None
    keys: dict[str, dict[str, str]] = {}
    async with runs.session.mesh(CallPolicy(timeout_s=60)) as mesh:
        users = await runs.people(mesh)
        for algorithm, private in private_keys().items():
            signer = Signer("none-yet", algorithm, private)
            key = await mesh.keys.RegisterKey(registration(signer, _MERCHANT))
            keys[algorithm] = {
                "key_id": key.key_id, "algorithm": algorithm, "private": private.decode()
            }  # fmt: skip
    await asyncio.sleep(_HEARD_S)
    rounds = _Rounds(runs, state, users["a"])
    await asyncio.to_thread(rounds.run, keys)
    for name in ("pay", "unsigned", *keys):
        what = "pay" if name == "pay" else f"order_{name}"
        figures.add(f"{what}_per_s", "calls/s", rounds.per_s[name])
        figures.add(f"{what}_processor_us", "µs a call", rounds.spent_us[name])
    for name in keys:
        _add_costs(figures, rounds, name)


def _add_costs(figures: Figures, rounds: _Rounds, name: str) -> None:
    spent, per_s = rounds.spent_us, rounds.per_s
    added = [on - off for on, off in zip(spent[name], spent["unsigned"], strict=True)]
    figures.add(f"added_processor_us_{name}", "µs a call", added)
    # Of what a core does of Pay, were each call to carry a signature.
    costs = [100 * more / (pay + more) for more, pay in zip(added, spent["pay"], strict=True)]
    figures.add(f"pay_cost_percent_{name}", "%", costs)
    pairs = zip(per_s[name], per_s["unsigned"], strict=True)
    figures.add(f"order_cost_percent_{name}", "%", [100 * (1 - on / off) for on, off in pairs])


def _spent_s(state: MeshState) -> float:
    """Processor time of the cell and of its Redis since they began: all threads that live."""
    total = 0
    for name in _MEASURED:
        pid = state.processes[name].identity.pid
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


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
                # To stop a mesh takes long where others work: what was found is not to wait for it.
                figures.write(RESULTS / "sign.json")
        finally:
            launcher.remove(data)


if __name__ == "__main__":
    main()
