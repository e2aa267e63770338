"""A push of the slot map to thousands of subscribers: the product's xDS server, simulated clients.

    python -m tests.bench.xds_push [--cells 100] [--clients 10000]

Each simulated client is an ADS stream that asks for listeners, routes, clusters and endpoints and
acknowledges what comes, as gRPC's own client does; many share a connection, which real ones do not.
Times are between processes of one machine, by its monotonic clock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from typing import Any

import grpc
import uvloop
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from control.xds.server import XdsServer
from control.xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE
from control.xds.translate import Topology
from router.slotmap import Move, SlotMap
from tests.bench.figures import RESULTS, ROOT, Figures

_STREAMS_A_CONNECTION = 100
_CLIENT_PROCESSES = 4
_PUSHES = 5
_SETTLE_S = 600.0


def _topology(slot_map: SlotMap, cells: int) -> Topology:
    return Topology(slot_map, {f"c{n:03}": (f"10.0.{n}.1:443",) for n in range(cells)})


async def _server(cells: int) -> None:
    """Serves; each line of its input moves a slot ("slot") or all slots of a cell ("cell")."""
    xds = XdsServer()
    server = grpc.aio.server(options=[("grpc.max_concurrent_streams", 10_000)])
    xds.add_to_server(server)
    port = server.add_insecure_port("127.0.0.1:0")
    slot_map = SlotMap.even([f"c{n:03}" for n in range(cells)])
    xds.publish(_topology(slot_map, cells))
    await server.start()
    print(port, flush=True)
    number = 0
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        if line == "count":
            print(len(xds.subscribers()), flush=True)
            continue
        if line == "cpu":
            print(time.process_time(), flush=True)
            continue
        piece = slot_map.ranges[number * 7 % len(slot_map.ranges)]
        last = piece.first if line == "slot" else piece.last
        target = next(item.cell for item in slot_map.ranges if item.cell != piece.cell)
        move = Move(piece.first, last, piece.cell, target, piece.epoch + 1)
        slot_map = slot_map.apply([move])
        number += 1
        begin = time.monotonic()
        xds.publish(_topology(slot_map, cells))
        print(json.dumps({"begin": begin, "publish_s": time.monotonic() - begin}), flush=True)


class _Client:
    """One subscriber: what it was sent of routes, and when."""

    def __init__(self, stub: Any, number: int) -> None:
        self._stub = stub
        self._number = number
        self.routes_at: list[float] = []
        self.received_bytes = 0

    async def run(self) -> None:
        call = self._stub.StreamAggregatedResources()
        first = discovery_pb2.DiscoveryRequest(type_url=LISTENER, resource_names=["cellpay"])
        first.node.id = f"client-{self._number}"
        await call.write(first)
        await call.write(discovery_pb2.DiscoveryRequest(type_url=ROUTE, resource_names=["cellpay"]))
        await call.write(discovery_pb2.DiscoveryRequest(type_url=CLUSTER))
        names: list[str] = []
        while True:
            response = await call.read()
            self.received_bytes += response.ByteSize()
            if response.type_url == ROUTE:
                self.routes_at.append(time.monotonic())
            if response.type_url == CLUSTER and not names:
                names = [item.value[2 : 2 + item.value[1]].decode() for item in response.resources]
                ask = discovery_pb2.DiscoveryRequest(type_url=ENDPOINT, resource_names=names)
                await call.write(ask)
            known = {LISTENER: ["cellpay"], ROUTE: ["cellpay"], ENDPOINT: names}
            await call.write(
                discovery_pb2.DiscoveryRequest(
                    type_url=response.type_url,
                    version_info=response.version_info,
                    response_nonce=response.nonce,
                    resource_names=known.get(response.type_url, []),
                )
            )


async def _clients(port: int, count: int) -> None:
    """Subscribes; each line of its input asks for what has come since the last."""
    clients: list[_Client] = []
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            if number % _STREAMS_A_CONNECTION == 0:
                # Each its own connection.
                options = [("grpc.use_local_subchannel_pool", 1)]
                channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
                stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
            client = _Client(stub, number)
            clients.append(client)
            group.create_task(client.run())
        while await asyncio.to_thread(sys.stdin.readline):
            times = [moment for client in clients for moment in client.routes_at]
            received = sum(client.received_bytes for client in clients)
            for client in clients:
                client.routes_at.clear()
                client.received_bytes = 0
            print(json.dumps({"times": times, "bytes": received}), flush=True)


class _Process:
    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.xds_push", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def ask(self, line: str) -> str:
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self.line()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def _memory_mib(pid: int) -> float:
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def _measure(figures: Figures, cells: int, count: int) -> None:
    server = _Process("--serve", "--cells", str(cells))
    port = server.line()
    alone_mib = _memory_mib(server.pid)
    each = count // _CLIENT_PROCESSES
    clients = [
        _Process("--subscribe", port, "--clients", str(each)) for _ in range(_CLIENT_PROCESSES)
    ]
    try:
        _until_came(clients, each * _CLIENT_PROCESSES)
        mib = _memory_mib(server.pid) - alone_mib
        figures.add(f"subscriber_kib_{count}", "KiB", [mib * 1024 / count])
        for what in ("slot", "cell"):
            medians, lasts, processor, sizes = [], [], [], []
            for _ in range(_PUSHES):
                before = float(server.ask("cpu"))
                pushed = json.loads(server.ask(what))
                times, received = _until_came(clients, each * _CLIENT_PROCESSES)
                ordered = sorted(moment - pushed["begin"] for moment in times)
                medians.append(ordered[len(ordered) // 2] * 1000)
                lasts.append(ordered[-1] * 1000)
                processor.append(float(server.ask("cpu")) - before)
                sizes.append(received / len(ordered))
            figures.add(f"push_{what}_median_ms_{count}", "ms", medians)
            figures.add(f"push_{what}_last_ms_{count}", "ms", lasts)
            figures.add(f"push_{what}_server_us_each_{count}", "us",
                        [item / count * 1e6 for item in processor])  # fmt: skip
            figures.add(f"push_{what}_bytes_each_{count}", "bytes", sizes)
    finally:
        for process in (*clients, server):
            process.end()


def _until_came(clients: list[_Process], count: int) -> tuple[list[float], int]:
    """Until every subscriber has its routes."""
    times: list[float] = []
    received = 0
    until = time.monotonic() + _SETTLE_S
    while len(times) < count:
        if time.monotonic() > until:
            raise SystemExit(f"only {len(times)} of {count} subscribers were reached")
        time.sleep(0.2)
        for client in clients:
            answer = json.loads(client.ask("?"))
            times += answer["times"]
            received += answer["bytes"]
    return times, received


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.xds_push")
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--subscribe", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        uvloop.run(_server(given.cells))
    elif given.subscribe:
        uvloop.run(_clients(given.subscribe, given.clients))
    else:
        figures = Figures()
        for count in sorted({1000, given.clients}):
            print(f"{given.cells} cells, {count} subscribers", flush=True)
            _measure(figures, given.cells, count)
        figures.write(RESULTS / "xds_push.json")


if __name__ == "__main__":
    main()
