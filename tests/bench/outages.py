"""The control plane away, and what clients feel of it → bench/results/outages.json.

    python -m tests.bench.outages [--seconds 60]

Three members of etcd with TLS, two controllers, a fallback xDS server, two cells. A client process
pays by xDS and through Envoy all the while: before, during and after each outage.
"""

from __future__ import annotations

import argparse
import signal
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from control.cellctl.session import Session
from control.mesh import launcher
from control.mesh.options import MeshOptions
from control.mesh.state import ControlPlane
from tests.bench.figures import RESULTS, Figures
from tests.chaos.payer import Payer

PLANE = ControlPlane(etcd_members=3, controllers=2, fallback=True, etcd_tls=True)
_AFTER_S = 10.0
_SHORTER = 3


def _signalled(data: Path, names: tuple[str, ...], number: int) -> None:
    for name in names:
        launcher.kill(data, name, number)


def _outage(
    figures: Figures,
    session: Session,
    name: str,
    seconds: float,
    begin: Callable[[], None],
    end: Callable[[], None],
    during: Callable[[], dict[str, Any]] | None = None,
) -> None:
    print(f"{name}: {seconds:.0f} s", flush=True)
    payer = Payer(session.data, name.replace("_", "-"), session.edge_address)
    time.sleep(2)
    begin()
    began = time.monotonic()
    started = during() if during else None
    time.sleep(max(0.0, seconds - (time.monotonic() - began)))
    end()
    time.sleep(_AFTER_S)
    counted = payer.end()
    figures.add(f"{name}_failed", "payments", [float(sum(counted["failed"].values()))])
    figures.add(f"{name}_paid", "payments", [float(counted["paid"])])
    figures.add(f"{name}_longest_ms", "ms", [counted["longest_ms"]])
    if started is not None:
        figures.add(
            f"{name}_new_client_failed", "payments", [float(sum(started["failed"].values()))]
        )
        figures.add(f"{name}_new_client_paid", "payments", [float(started["paid"])])


def measure(figures: Figures, session: Session, seconds: float) -> None:
    data = session.data
    members, controllers = PLANE.etcd_names(), PLANE.controller_names()

    def new_client() -> dict[str, Any]:
        payer = Payer(data, "started-meanwhile", session.edge_address)
        time.sleep(3)
        return payer.end()

    def stop(names: tuple[str, ...]) -> None:
        for name in names:
            launcher.stop(data, name)

    def start(names: tuple[str, ...]) -> None:
        # Members wait for one another: the first is ready only when a majority runs.
        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(lambda name: launcher.start(data, name), names))

    _outage(
        figures, session, "etcd_down", seconds,
        lambda: stop(members),
        lambda: start(members), new_client,
    )  # fmt: skip
    _outage(
        figures, session, "etcd_hung", seconds / _SHORTER,
        lambda: _signalled(data, members, signal.SIGSTOP),
        lambda: _signalled(data, members, signal.SIGCONT), new_client,
    )  # fmt: skip
    _outage(
        figures, session, "controllers_dead", seconds / _SHORTER,
        lambda: _signalled(data, controllers, signal.SIGKILL),
        lambda: start(controllers), new_client,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.outages")
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    data = Path(tempfile.mkdtemp(prefix="cellpay-outages-"))
    figures = Figures(notes={"etcd_down_s": seconds, "the_others_s": seconds / _SHORTER})
    try:
        with launcher.running(data, 2, MeshOptions(plane=PLANE), print):
            measure(figures, Session.open(data), seconds)
    finally:
        launcher.remove(data)
    figures.write(RESULTS / "outages.json")


if __name__ == "__main__":
    main()
