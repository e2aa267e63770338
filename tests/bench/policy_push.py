"""From a policy's commit in etcd to its effect: 1,000 xDS subscribers and 1,000 cells' processes.

    python -m tests.bench.policy_push [--subscribers 1000]

etcd, the following of policies, the translation and the xDS server are the product's. Subscribers
are those of xds_push; "cells" follow etcd as a cell's process does, and note when a policy has been
compiled into decisions. Times are between processes of one machine, by its monotonic clock, and
count from before the commit is sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import structlog
import uvloop

from control.mesh import launcher
from control.mesh.options import MeshOptions
from control.xds.server import XdsServer
from control.xds.traffic import traffic_of
from control.xds.translate import Topology
from router.admission.gate import Admission
from router.admission.rules import admitting_of
from router.policies.follow import Follower
from router.policies.rules import PolicySet, envelope, policy_key
from router.slotmap import SlotMap
from router.store.etcd import connect_etcd
from tests.bench.figures import RESULTS, ROOT, Figures

_CELLS = 12
_PUSHES = 9
_PROCESSES = 2
_SETTLE_S = 60.0


async def _serve(etcd: str) -> None:
    """A controller's part: follows the policies and serves them."""
    xds = XdsServer()
    names = [f"c{number:02}" for number in range(_CELLS)]
    slot_map = SlotMap.even(names)
    endpoints = {name: (f"10.0.{number}.1:443",) for number, name in enumerate(names)}

    def publish(policies: PolicySet) -> None:
        traffic = traffic_of(policies)
        xds.publish(Topology(slot_map, endpoints, traffic=traffic))

    publish(PolicySet())
    server = grpc.aio.server(options=[("grpc.max_concurrent_streams", 10_000)])
    xds.add_to_server(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await Follower(connect_etcd(etcd), publish).run()


async def _follow(etcd: str, count: int) -> None:
    """Processes of cells; each line of its input asks for when they applied what has come."""
    times: list[float] = []

    def applying() -> Any:
        admission = Admission()

        def apply(policies: PolicySet) -> None:
            admission.apply(admitting_of(policies, "c00", 0))
            times.append(time.monotonic())

        return apply

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(Follower(connect_etcd(etcd), applying()).run())
        print("ready", flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps({"times": times}), flush=True)
            times.clear()


class _Process:
    def __init__(self, module: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"tests.bench.{module}", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip

    def line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def times(self) -> list[float]:
        assert self._process.stdin
        self._process.stdin.write("?\n")
        self._process.stdin.flush()
        found: list[float] = json.loads(self.line())["times"]
        return found

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def _until_came(processes: list[_Process], count: int) -> list[float]:
    """Until each has what is new."""
    found: list[float] = []
    until = time.monotonic() + _SETTLE_S
    while len(found) < count:
        if time.monotonic() > until:
            raise SystemExit(f"only {len(found)} of {count} were reached")
        time.sleep(0.1)
        for process in processes:
            found += process.times()
    return found


def _document(number: int) -> str:
    methods = ["cellpay.payments.v1.PaymentsService/Pay"]
    return json.dumps({"methods": methods, "timeout_ms": 1000 + number})


async def _commit(etcd: str, number: int) -> float:
    """When it was sent."""
    store = connect_etcd(etcd)
    try:
        await store.get("/warm")
        value = envelope(_document(number), reason="benchmark", actor="bench", time_ms=0)
        began = time.monotonic()
        await store.commit(expect={}, puts={policy_key("traffic", "bench"): value})
        return began
    finally:
        await store.close()


def _measure(figures: Figures, etcd: str, count: int) -> None:
    server = _Process("policy_push", "--serve", etcd)
    port = server.line()
    each = count // _PROCESSES
    subscribers = [
        _Process("xds_push", "--subscribe", port, "--clients", str(each)) for _ in range(_PROCESSES)
    ]
    cells = [
        _Process("policy_push", "--follow", etcd, "--subscribers", str(each))
        for _ in range(_PROCESSES)
    ]
    groups = {"subscribers": subscribers, "cells": cells}
    try:
        _until_came(subscribers, each * _PROCESSES)
        for process in cells:
            process.line()
        medians: dict[str, list[float]] = {name: [] for name in groups}
        lasts: dict[str, list[float]] = {name: [] for name in groups}
        # A cell that has not opened its watch yet hears of the first push by its listing.
        for number in range(_PUSHES + 1):
            began = asyncio.run(_commit(etcd, number))
            for name, processes in groups.items():
                came = sorted(_until_came(processes, each * _PROCESSES))
                if number:
                    medians[name].append((came[len(came) // 2] - began) * 1000)
                    lasts[name].append((came[-1] - began) * 1000)
        for name in groups:
            figures.add(f"policy_{name}_median_ms_{count}", "ms", medians[name])
            figures.add(f"policy_{name}_last_ms_{count}", "ms", lasts[name])
            figures.add(f"policy_{name}_worst_ms_{count}", "ms", lasts[name], max(lasts[name]))
    finally:
        for process in (*subscribers, *cells, server):
            process.end()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.policy_push")
    parser.add_argument("--subscribers", type=int, default=1000)
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    parser.add_argument("--follow", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    # Standard output is for answers.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    if given.serve:
        uvloop.run(_serve(given.serve))
    elif given.follow:
        uvloop.run(_follow(given.follow, given.subscribers))
    else:
        figures = Figures()
        with tempfile.TemporaryDirectory(prefix="cellpay-bench-") as folder:
            data = Path(folder)
            with launcher.running(data, 1, MeshOptions(only=("etcd",))) as state:
                _measure(figures, state.address("etcd"), given.subscribers)
            launcher.remove(data)
        figures.write(RESULTS / "policy_push.json")


if __name__ == "__main__":
    main()
