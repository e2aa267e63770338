"""The load generator's process: one JSON job on standard input, one JSON result on standard output.

Jobs: make orders, pay them (one a call, or many), or transfer. A fixed number of calls is in flight
over some connections; with `per_s` calls begin when they are due.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections import Counter
from typing import Any

from cellpay.money.v1.money_pb2 import Money
from cellpay.orders.v1 import orders_pb2
from cellpay.payments.v1 import payments_pb2
from cellpay.transfers.v1 import transfers_pb2

from router.client import TlsFiles
from router.errors import Refusal
from router.identity import CERTIFICATE_HEADER
from router.ids import slot_of_id
from router.signing.keys import Signer
from router.signing.model import Algorithm, SignedMessage
from router.signing.rules import header
from router.slots import slot_of_user
from tests.bench import lean
from tests.bench.lean import Connection, Result, Signed

_PATHS = {
    "orders": "/cellpay.orders.v1.OrdersService/CreateOrder",
    "pay": "/cellpay.payments.v1.PaymentsService/Pay",
    "batch": "/cellpay.payments.v1.PaymentsService/BatchPay",
    "transfer": "/cellpay.transfers.v1.TransfersService/CreateTransfer",
}
# What Envoy tells of a signed request.
_SIGNED = (
    ("x-cellpay-signed-host", "localhost"),
    ("x-cellpay-signed-type", "application/grpc"),
)
_BATCH = 256
# Calls under way never share a slot: each carries the slots of one remainder.
_REMAINDERS = 16


def _pay(order_id: str) -> payments_pb2.PayRequest:
    return payments_pb2.PayRequest(order_id=order_id, idempotency_key=secrets.token_hex(8))


def _body(job: str, item: Any) -> bytes:
    if job == "pay":
        return _pay(item).SerializeToString()
    if job == "batch":
        return payments_pb2.BatchPayRequest(payments=map(_pay, item)).SerializeToString()
    key = secrets.token_hex(8)
    cent = Money(currency="USD", minor_units=1)
    payer, other = item
    if job == "orders":
        return orders_pb2.CreateOrderRequest(
            payer_id=payer, merchant_id=other, idempotency_key=key, amount=cent
        ).SerializeToString()
    return transfers_pb2.CreateTransferRequest(
        payer_id=payer, payee_id=other, idempotency_key=key, amount=cent
    ).SerializeToString()


def _signer(sign: dict[str, str] | None) -> Signer | None:
    if sign is None:
        return None
    return Signer(sign["key_id"], Algorithm(sign["algorithm"]), sign["private"].encode())


def _signed(signer: Signer | None, path: str, body: bytes) -> bytes | Signed:
    if signer is None:
        return body
    message = SignedMessage("POST", path, "localhost", "application/grpc", "", body)
    claims = signer.sign(message, int(time.time()), secrets.token_hex(12))
    return Signed(body, header(claims))


def _slot(job: str, item: Any) -> int:
    return slot_of_id(item) if job in {"pay", "batch"} else slot_of_user(item[0])


def _batches(order_ids: list[str]) -> list[list[str]]:
    remainders: dict[int, list[str]] = {}
    for order_id in order_ids:
        remainders.setdefault(slot_of_id(order_id) % _REMAINDERS, []).append(order_id)
    return [
        mine[first : first + _BATCH]
        for mine in remainders.values()
        for first in range(0, len(mine), _BATCH)
    ]


def _headers(job: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Of every call. `shown`: whose certificate an edge, whose we have, says that it was shown."""
    shown = job.get("shown")
    by = ((CERTIFICATE_HEADER, f"URI={shown}"),) if shown else ()
    return (*by, *(_SIGNED if job.get("sign") else ()))


def _work(job: dict[str, Any]) -> tuple[list[list[Any]], list[Connection]]:
    """What each connection carries: the slots of one process of the cell."""
    tls = TlsFiles(**job["tls"])
    addresses = job["addresses"]
    shares, connections = [], []
    each = max(1, job["connections"] // len(addresses))
    for place, address in enumerate(addresses):
        items = [item for item in job["items"] if _slot(job["job"], item) % len(addresses) == place]
        if job["job"] == "batch":
            items = _batches(items)
        for number in range(each):
            shares.append(items[number::each])
            connections.append(Connection(address, tls, _headers(job)))
    return shares, connections


def run(job: dict[str, Any]) -> dict[str, Any]:
    shares, connections = _work(job)
    # Made beforehand: their cost is the caller's, and not what is measured.
    signer = _signer(job.get("sign"))
    path = _PATHS[job["job"]]
    bodies = [
        iter([_signed(signer, path, _body(job["job"], item)) for item in share]) for share in shares
    ]
    per_s = job.get("per_s")
    begin = time.perf_counter()
    results = lean.run(
        connections,
        path,
        bodies,
        in_flight=max(1, job["in_flight"] // len(connections)) if per_s is None else 10_000,
        per_s=per_s / len(connections) if per_s is not None else None,
        keep_bodies=job["job"] in {"orders", "batch"},
    )
    seconds = time.perf_counter() - begin
    for connection in connections:
        connection.close()
    return _summary(job["job"], results, seconds)


def _summary(job: str, results: list[Result], seconds: float) -> dict[str, Any]:
    latencies = sorted(value for result in results for value in result.latencies)
    answers = [body for result in results for body in result.bodies]
    succeeded, failed = len(latencies), sum(result.failed for result in results)
    orders = []
    reasons: Counter[str] = Counter()
    if job == "orders":
        orders = [orders_pb2.Order.FromString(body).order_id for body in answers]
    if job == "batch":
        outcomes = [
            outcome
            for body in answers
            for outcome in payments_pb2.BatchPayResponse.FromString(body).results
        ]
        refusals = [outcome.error_status for outcome in outcomes if outcome.error_status]
        succeeded, failed = len(outcomes) - len(refusals), failed + len(refusals)
        reasons = Counter(Refusal.from_status(status).reason for status in refusals)
    return {
        "succeeded": succeeded,
        "failed": failed,
        "reasons": dict(reasons),
        "seconds": seconds,
        "p50_ms": latencies[len(latencies) // 2] * 1000 if latencies else None,
        "p99_ms": latencies[int(len(latencies) * 0.99)] * 1000 if latencies else None,
        "orders": orders,
    }


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
