"""The ledger's lane alone, without gRPC: a process that is one of a cell's, told by JSON lines.

It answers the line of its job with "ready" once its orders are there, begins when it is told to,
and then writes what it did. Groups, fence, keys, entries, outbox and fsync are the product's.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import uvloop

from cells.database import make_engine
from cells.ledger.model import Accepted, Command, Idempotency
from cells.ledger.worker import Lanes
from cells.orders.rules import CreateOrder
from cells.payments.rules import Pay
from cells.serve import collect_seldom
from cells.settings import DatabaseSettings, LaneSettings
from router.ids import Kind
from router.minting import mint_now
from router.slots import slot_of_user

CELL = "bench"


@dataclass(frozen=True, slots=True)
class Job:
    """What one process does. Users are `u0` … `u<accounts - 1>`, of whom it takes its slots."""

    database_url: str
    process: int
    processes: int
    accounts: int
    payments: int
    in_flight: int
    merchants: int = 100
    # The share of payments to the first merchant.
    hot_merchant: float = 0.0
    # The share of payments of one payer.
    hot_payer: float = 0.0
    lanes: dict[str, Any] = field(default_factory=dict)


def merchant(number: int) -> str:
    return f"shop-{number}"


def _key(scope: str) -> Idempotency:
    return Idempotency(scope, secrets.token_hex(8), "Pay", b"benchmark-hash-x")


def _payers(job: Job, draw: random.Random) -> Iterator[str]:
    """At random from the whole population, as far as their slots are this process's."""

    def mine(user: str) -> bool:
        return slot_of_user(user) % job.processes == job.process

    hot = next(user for user in (f"u{n}" for n in itertools.count()) if mine(user))
    while True:
        user = hot if draw.random() < job.hot_payer else f"u{draw.randrange(job.accounts)}"
        if mine(user):
            yield user


async def _in_flight(lanes: Lanes, commands: list[Command], in_flight: int) -> list[float]:
    """Each caller has one command under way; returns their latencies in seconds."""
    waiting = iter(commands)
    latencies: list[float] = []

    async def caller() -> None:
        for command in waiting:
            begin = time.perf_counter()
            outcome = await lanes.submit(command, 60)
            if not isinstance(outcome, Accepted):
                raise SystemExit(f"a command of the benchmark was refused: {outcome}")
            latencies.append(time.perf_counter() - begin)

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(caller())
    return latencies


async def _run(job: Job) -> dict[str, Any]:
    settings = LaneSettings(count=1, **job.lanes)
    database = DatabaseSettings()
    engine = make_engine(job.database_url, "bench-lane", database, pool_size=1, lanes=True)
    lanes = Lanes(engine, CELL, settings)
    draw = random.Random(job.process)
    runner = asyncio.get_running_loop().create_task(lanes.runners()[0]())
    payers = list(itertools.islice(_payers(job, draw), job.payments))
    orders: list[Command] = []
    for payer in payers:
        hot = draw.random() < job.hot_merchant
        shop = merchant(0 if hot else draw.randrange(job.merchants))
        slot = slot_of_user(payer)
        orders.append(
            CreateOrder(slot, mint_now(Kind.ORDER, slot), payer, shop, 1, "USD", "", _key(payer))
        )
    await _in_flight(lanes, orders, 512)
    pays: list[Command] = []
    for order in orders:
        assert isinstance(order, CreateOrder)
        slot, order_id = order.slot, order.order_id
        payment, event = mint_now(Kind.PAYMENT, slot), mint_now(Kind.EVENT, slot)
        pays.append(
            Pay(slot, payment, event, order_id, secrets.token_hex(8), "benchmark-hash-x" * 2)
        )
    collect_seldom()
    figures = lanes.lanes[0].figures
    groups = figures.groups
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    begin = time.perf_counter()
    processor = time.process_time()
    latencies = sorted(await _in_flight(lanes, pays, job.in_flight))
    seconds = time.perf_counter() - begin
    processor = time.process_time() - processor
    runner.cancel()
    await engine.dispose()
    return {
        "payments": len(latencies),
        "seconds": seconds,
        "processor_s": processor,
        "groups": figures.groups - groups,
        "p50_ms": latencies[len(latencies) // 2] * 1000,
        "p99_ms": latencies[int(len(latencies) * 0.99)] * 1000,
    }


if __name__ == "__main__":
    print(json.dumps(uvloop.run(_run(Job(**json.loads(sys.stdin.readline()))))))
