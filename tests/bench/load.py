"""The load generator's process: one JSON job on standard input, one JSON result on standard output.

Jobs: make orders, or call one method with prepared bodies, at a fixed number in flight over some
connections, one thread a connection.
"""

from __future__ import annotations

import json
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from cellpay.money.v1.money_pb2 import Money
from cellpay.orders.v1 import orders_pb2
from cellpay.payments.v1 import payments_pb2
from cellpay.transfers.v1 import transfers_pb2

from router.client import TlsFiles
from router.ids import slot_of_id
from router.slots import slot_of_user
from tests.bench.lean import Connection, Result

_PATHS = {
    "orders": "/cellpay.orders.v1.OrdersService/CreateOrder",
    "pay": "/cellpay.payments.v1.PaymentsService/Pay",
    "transfer": "/cellpay.transfers.v1.TransfersService/CreateTransfer",
}


def _body(job: str, item: Any) -> bytes:
    key = secrets.token_hex(8)
    if job == "orders":
        payer, merchant = item
        return orders_pb2.CreateOrderRequest(
            payer_id=payer, merchant_id=merchant, idempotency_key=key,
            amount=Money(currency="USD", minor_units=1),
        ).SerializeToString()  # fmt: skip
    if job == "pay":
        return payments_pb2.PayRequest(order_id=item, idempotency_key=key).SerializeToString()
    payer, payee = item
    return transfers_pb2.CreateTransferRequest(
        payer_id=payer, payee_id=payee, idempotency_key=key,
        amount=Money(currency="USD", minor_units=1),
    ).SerializeToString()  # fmt: skip


def _slot(job: str, item: Any) -> int:
    return slot_of_id(item) if job == "pay" else slot_of_user(item[0])


def run(job: dict[str, Any]) -> dict[str, Any]:
    tls = TlsFiles(**job["tls"])
    addresses = job["addresses"]
    shares, connections = [], []
    # A connection is to one process of the cell and carries the slots of that process.
    each = max(1, job["connections"] // len(addresses))
    for place, address in enumerate(addresses):
        items = [item for item in job["items"] if _slot(job["job"], item) % len(addresses) == place]
        for number in range(each):
            shares.append(items[number::each])
            connections.append(Connection(address, tls))
    results: list[Result] = [Result() for _ in connections]
    keep = job["job"] == "orders"

    def bodies(share: list[Any]) -> Iterator[bytes]:
        for item in share:
            yield _body(job["job"], item)

    def one(number: int) -> None:
        results[number] = connections[number].run(
            _PATHS[job["job"]],
            bodies(shares[number]),
            in_flight=max(1, job["in_flight"] // len(connections)),
            keep_bodies=keep,
        )

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(connections))]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    for connection in connections:
        connection.close()
    latencies = sorted(value for result in results for value in result.latencies)
    orders = [
        orders_pb2.Order.FromString(body).order_id for result in results for body in result.bodies
    ]
    return {
        "succeeded": len(latencies),
        "failed": sum(result.failed for result in results),
        "seconds": seconds,
        "p50_ms": latencies[len(latencies) // 2] * 1000 if latencies else None,
        "p99_ms": latencies[int(len(latencies) * 0.99)] * 1000 if latencies else None,
        "orders": orders,
    }


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
