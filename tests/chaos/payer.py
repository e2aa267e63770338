"""A client that pays without a pause, in a process of its own, until its input ends.

    python -m tests.chaos.payer BOOTSTRAP TLS_DIRECTORY NAME [EDGE]

gRPC reads the bootstrap once a process, so a client that starts anew is another process. It says
`ready` when it has paid once, and at the end, as JSON, how often it paid and what failed. A payment
counts as failed when the SDK gave it up, its own retries included.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
from cellpay.accounts.v1 import accounts_pb2
from cellpay.money.v1.money_pb2 import Money
from cellpay.orders.v1 import orders_pb2
from cellpay.payments.v1 import payments_pb2

from router.client import Mesh, TlsFiles, connect, connect_direct
from router.errors import details_of

ROOT = Path(__file__).resolve().parents[2]
_USERS = 8
_CLIENTS = 4
_PAUSE_S = 0.02


class Payer:
    """The process, from the outside."""

    def __init__(self, data: Path, name: str, edge: str = "") -> None:
        arguments = [str(data / "xds" / "client.json"), str(data / "tls"), name, edge]
        environment = {k: v for k, v in os.environ.items() if k != "GRPC_XDS_BOOTSTRAP"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.payer", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True, env=environment,
        )  # fmt: skip
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        assert said == "ready\n", f"the payer never paid: {said}"

    def end(self) -> dict[str, Any]:
        """Ends it; what it counted."""
        out, _ = self._process.communicate(timeout=60)
        counted: dict[str, Any] = json.loads(out)
        return counted


async def pay_until_told(meshes: list[Mesh], name: str) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    longest_s = 0.0
    stop = asyncio.Event()
    users = [f"{name}-{number}" for number in range(_USERS)]
    await _open(meshes[0], users, name)

    async def client(number: int) -> None:
        nonlocal longest_s
        choice = random.Random(number)
        while not stop.is_set():
            begun = time.monotonic()
            try:
                await _pay(choice.choice(meshes), choice.choice(users), f"{name}-shop")
                counts["paid"] += 1
            except grpc.aio.AioRpcError as error:
                counts[f"failed: {details_of(error).reason or error.code().name}"] += 1
            longest_s = max(longest_s, time.monotonic() - begun)
            await asyncio.sleep(_PAUSE_S)

    await _pay(meshes[-1], users[0], f"{name}-shop")
    print("ready", flush=True)
    async with asyncio.TaskGroup() as group:
        for number in range(_CLIENTS):
            group.create_task(client(number))
        await asyncio.to_thread(sys.stdin.read)
        stop.set()
    failed = {key: count for key, count in counts.items() if key != "paid"}
    return {"paid": counts["paid"], "failed": failed, "longest_ms": round(longest_s * 1000, 1)}


async def _open(mesh: Mesh, users: list[str], name: str) -> None:
    kinds = [(user, accounts_pb2.Account.KIND_PERSON) for user in users]
    kinds.append((f"{name}-shop", accounts_pb2.Account.KIND_MERCHANT))
    for user_id, kind in kinds:
        request = accounts_pb2.OpenAccountRequest(
            user_id=user_id, currency="USD", kind=kind, idempotency_key="open"
        )
        await mesh.accounts.OpenAccount(request)
    for user_id in users:
        deposit = accounts_pb2.DepositRequest(
            user_id=user_id,
            amount=Money(currency="USD", minor_units=100_000_000),
            idempotency_key="deposit",
        )
        await mesh.accounts.Deposit(deposit)


async def _pay(mesh: Mesh, user_id: str, merchant_id: str) -> None:
    order = await mesh.orders.CreateOrder(
        orders_pb2.CreateOrderRequest(
            payer_id=user_id,
            merchant_id=merchant_id,
            amount=Money(currency="USD", minor_units=1),
            idempotency_key=str(uuid.uuid4()),
        )
    )
    request = payments_pb2.PayRequest(order_id=order.order_id, idempotency_key=str(uuid.uuid4()))
    await mesh.payments.Pay(request)


async def main(bootstrap: str, tls_directory: str, name: str, edge: str) -> None:
    folder = Path(tls_directory)
    files = TlsFiles(*(str(folder / file) for file in ("ca.pem", "client.pem", "client.key")))
    async with connect(bootstrap, fallback=files) as mesh:
        if edge:
            async with connect_direct(edge, files) as through_edge:
                counted = await pay_until_told([mesh, through_edge], name)
        else:
            counted = await pay_until_told([mesh], name)
    print(json.dumps(counted), flush=True)


if __name__ == "__main__":
    bootstrap, tls_directory, name, edge = (*sys.argv[1:], "")[:4]
    asyncio.run(main(bootstrap, tls_directory, name, edge))
