"""Double 11 in miniature: a step of twenty times, with and without a forecast of it.

    python -m tests.bench.double11

One cell of the local mesh, sized by load. Payments are due at a rate that follows a curve: quiet, a
step of twenty times, a long tail, quiet again; each is an order and its payment by the SDK, over
xDS, and its latency counts from when it was due. Twice: `load` knows nothing of the step,
`forecast` has a policy that names it. Targets are set low, so that two cores have room for what is
measured, for what it runs on and for the generator: what is shown is that the number of processes
follows and no call fails for it, not how much a machine can do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cellpay.accounts.v1 import accounts_pb2
from cellpay.control.v1 import policies_pb2 as pb
from cellpay.money.v1.money_pb2 import Money
from cellpay.orders.v1 import orders_pb2
from cellpay.payments.v1 import payments_pb2

from control.cellctl.session import Session
from control.cellctl.verify import verify_mesh
from control.mesh import launcher
from control.mesh.options import MeshOptions
from router.client import CallPolicy, Mesh
from router.errors import details_of
from router.store.model import LIVE_CELLS_PREFIX
from tests.bench import double11_plot
from tests.bench.figures import RESULTS, Figures

_OVERRIDES: dict[str, Any] = {
    "workers": 1,
    "settlement": {"interval_s": 3600.0},
    "elasticity": {
        "workers_max": 3,
        "cpu_percent": 25,
        "queue_delay_ms": 50,
        "look_interval_s": 0.5,
        "raise_after_s": 1.0,
        "lower_after_s": 8.0,
        "quiet_s": 0.5,
    },
}
_WORKERS_FORECAST = 2
_STEP = 20
_USERS = 200
_SHOP = "double11-shop"
_LOOK_S = 0.5
# Refused for load, before anything was executed.
_SHED = frozenset({"OVERLOADED", "LANE_FULL", "RATE_LIMITED"})


@dataclass(frozen=True, slots=True)
class Curve:
    """Payments a second, by seconds since the beginning."""

    quiet_per_s: float
    quiet_s: float
    peak_s: float
    tail_s: float

    @property
    def length_s(self) -> float:
        return 2 * self.quiet_s + self.peak_s + self.tail_s

    def per_s(self, at_s: float) -> float:
        after = at_s - self.quiet_s
        if after < 0 or after >= self.peak_s + self.tail_s:
            return self.quiet_per_s
        return self.quiet_per_s * (_STEP if after < self.peak_s else _STEP / 4)

    def due(self) -> Iterator[float]:
        at_s = 0.0
        while at_s < self.length_s:
            yield at_s
            at_s += 1 / self.per_s(at_s)


@dataclass
class Seen:
    """What a run saw: ends of payments (due, latency, outcome), and looks at the cell's size."""

    payments: list[tuple[float, float, str]] = field(default_factory=list)
    sizes: list[tuple[float, int]] = field(default_factory=list)

    def outcomes(self) -> Counter[str]:
        return Counter(outcome for _, _, outcome in self.payments)

    def p99_ms(self, begin_s: float, end_s: float) -> float:
        found = sorted(latency for due, latency, outcome in self.payments
                       if outcome == "paid" and begin_s <= due < end_s)  # fmt: skip
        return 1000 * found[int(len(found) * 0.99)] if found else 0.0


class Run:
    def __init__(self, session: Session, mesh: Mesh, curve: Curve) -> None:
        self._session = session
        self._mesh = mesh
        self._curve = curve
        self._begin = 0.0

    async def run(self, *, forecast: bool) -> Seen:
        seen = Seen()
        warm_s = self._curve.quiet_s / 2
        # What the preparations asked for has left.
        await self._until_small()
        if forecast:
            await self._foretell(warm_s)
        self._begin = time.monotonic()
        async with asyncio.TaskGroup() as group:
            looking = group.create_task(self._look(seen))
            async with asyncio.TaskGroup() as paying:
                for number, due_s in enumerate(self._curve.due()):
                    await asyncio.sleep(max(0.0, self._begin + due_s - time.monotonic()))
                    paying.create_task(self._pay(seen, number, due_s))
            await self._until_small()
            looking.cancel()
        if forecast:
            async with self._session.policies() as policies:
                await policies.DeletePolicy(
                    pb.DeletePolicyRequest(kind="forecast", name="double11", reason="benchmark")
                )
        return seen

    async def _foretell(self, warm_s: float) -> None:
        begin = datetime.now(UTC) + timedelta(seconds=self._curve.quiet_s)
        end = begin + timedelta(seconds=self._curve.peak_s)
        time_ = {"begin": str(begin), "end": str(end), "workers": _WORKERS_FORECAST}
        document = json.dumps({"warm_s": warm_s, "times": [time_]})
        async with self._session.policies() as policies:
            await policies.SetPolicy(
                pb.SetPolicyRequest(
                    kind="forecast", name="double11", document=document, reason="benchmark"
                )
            )

    async def _pay(self, seen: Seen, number: int, due_s: float) -> None:
        outcome = "paid"
        try:
            order = await self._mesh.orders.CreateOrder(
                orders_pb2.CreateOrderRequest(
                    payer_id=_user(number), merchant_id=_SHOP,
                    amount=Money(currency="USD", minor_units=1),
                    idempotency_key=str(uuid.uuid4()),
                )
            )  # fmt: skip
            await self._mesh.payments.Pay(
                payments_pb2.PayRequest(order_id=order.order_id, idempotency_key=str(uuid.uuid4()))
            )
        except grpc.aio.AioRpcError as error:
            outcome = outcome_of(error)
        latency_s = time.monotonic() - self._begin - due_s
        seen.payments.append((round(due_s, 3), round(latency_s, 4), outcome))

    async def _look(self, seen: Seen) -> None:
        while True:
            size = await self._processes()
            seen.sizes.append((round(time.monotonic() - self._begin, 2), size))
            await asyncio.sleep(_LOOK_S)

    async def _processes(self) -> int:
        """As the mesh has heard."""
        async with self._session.store() as store:
            item = await store.get(f"{LIVE_CELLS_PREFIX}a")
        return len(json.loads(item.value)["addresses"]) if item else 0

    async def _until_small(self) -> None:
        async with asyncio.timeout(120):
            while await self._processes() != 1:
                await asyncio.sleep(_LOOK_S)


def outcome_of(error: grpc.aio.AioRpcError) -> str:
    reason = details_of(error).reason or error.code().name
    return "shed" if reason in _SHED else f"failed: {reason}"


def _user(number: int) -> str:
    return f"double11-{random.Random(number).randrange(_USERS)}"


async def _people(mesh: Mesh) -> None:
    async def one(user_id: str, kind: Any) -> None:
        await mesh.accounts.OpenAccount(
            accounts_pb2.OpenAccountRequest(
                user_id=user_id, currency="USD", kind=kind, idempotency_key="open"
            )
        )
        if kind == accounts_pb2.Account.KIND_PERSON:
            amount = Money(currency="USD", minor_units=10_000_000)
            await mesh.accounts.Deposit(
                accounts_pb2.DepositRequest(user_id=user_id, amount=amount, idempotency_key="d")
            )

    await one(_SHOP, accounts_pb2.Account.KIND_MERCHANT)
    for number in range(_USERS):
        await one(f"double11-{number}", accounts_pb2.Account.KIND_PERSON)


async def measure(data: Path, figures: Figures, curve: Curve) -> dict[str, Seen]:
    session = Session.open(data)
    found: dict[str, Seen] = {}
    async with session.mesh(CallPolicy(timeout_s=30.0)) as mesh:
        await _people(mesh)
        for name in ("load", "forecast"):
            print(f"{name}: {curve.length_s:.0f} s", flush=True)
            seen = found[name] = await Run(session, mesh, curve).run(forecast=name == "forecast")
            outcomes = seen.outcomes()
            failed = sum(n for outcome, n in outcomes.items() if outcome.startswith("failed"))
            step_s = curve.quiet_s
            figures.add(f"double11_paid_{name}", "calls", [outcomes["paid"]])
            figures.add(f"double11_failed_{name}", "calls", [failed])
            figures.add(f"double11_shed_{name}", "calls", [outcomes["shed"]])
            figures.add(f"double11_processes_max_{name}", "", [max(n for _, n in seen.sizes)])
            at_step = [n for at_s, n in seen.sizes if at_s <= step_s]
            figures.add(f"double11_processes_at_step_{name}", "", [at_step[-1]])
            for what, begin, end in (("quiet", 0, step_s), ("first_5s", step_s, step_s + 5),
                                     ("peak", step_s, step_s + curve.peak_s)):  # fmt: skip
                figures.add(f"double11_p99_ms_{what}_{name}", "ms", [seen.p99_ms(begin, end)])
    report = await verify_mesh(data)
    figures.notes["books_are_sound"] = report.ok
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.double11")
    parser.add_argument("--quiet-per-s", type=float, default=8.0, help="payments before the step")
    parser.add_argument("--peak-s", type=float, default=20.0)
    given = parser.parse_args()
    curve = Curve(given.quiet_per_s, quiet_s=16.0, peak_s=given.peak_s, tail_s=given.peak_s)
    figures = Figures()
    figures.notes["curve"] = asdict(curve)
    figures.notes["load_average_before"] = os.getloadavg()
    figures.notes["settings"] = _OVERRIDES["elasticity"]
    with tempfile.TemporaryDirectory(prefix="cellpay-bench-") as folder:
        data = Path(folder)
        only = ("base", "schema", "controller", "cells")
        try:
            with launcher.running(data, 1, MeshOptions(only=only, cell_overrides=_OVERRIDES)):
                found = asyncio.run(measure(data, figures, curve))
        finally:
            launcher.remove(data)
    figures.notes["load_average_after"] = os.getloadavg()
    figures.notes["sizes"] = {name: seen.sizes for name, seen in found.items()}
    figures.notes["outcomes"] = {name: dict(seen.outcomes()) for name, seen in found.items()}
    double11_plot.draw(found, curve)
    figures.write(RESULTS / "double11.json")


if __name__ == "__main__":
    main()
