"""What features cost: reading 30 of them, counting → bench/results/risk_features.json.

    python -m tests.bench.risk_features [--decisions 40000] [--rounds 2000]

A real Redis and NATS on this machine, beside everything else that runs there. `cpu` is processor
time of the reading process alone; wall time has Redis's part, and on a busy machine the others'.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import random
import tempfile
import time
from pathlib import Path

import structlog
import uvloop
from redis.asyncio import Redis

from cells.breakers.board import Breaker
from cells.risk.consumer import Consumer
from cells.risk.features import RedisFeatures
from cells.risk.stream import Publisher
from control.mesh import launcher
from control.mesh.options import MeshOptions
from control.mesh.state import MeshState
from router.policies.model import Dependency
from router.risk.features import Aggregate, Entity, Feature, FeatureSet, Observation
from router.risk.model import Action
from router.risk.record import Record
from tests.bench.figures import RESULTS, Figures

_HOUR, _DAY = 3600, 86_400
_USERS = 5000
_OTHERS = {Entity.USER: Entity.DEVICE, Entity.DEVICE: Entity.USER, Entity.IP: Entity.USER,
           Entity.CARD: Entity.USER, Entity.PAYEE: Entity.USER}  # fmt: skip


def document() -> FeatureSet:
    """Six of each entity: four counts and sums, two distinct counts."""
    found: list[Feature] = []
    for entity, other in _OTHERS.items():
        for window_s in (_HOUR, 7 * _DAY):
            tail = f"{entity}_{window_s}"
            found += [
                Feature(f"count_{tail}", entity, Aggregate.COUNT, window_s),
                Feature(f"sum_{tail}", entity, Aggregate.SUM, window_s),
                Feature(f"distinct_{tail}", entity, Aggregate.DISTINCT, window_s, of=other),
            ]
    assert len(found) == 30
    return FeatureSet(tuple(found))


def observation(chance: random.Random, at_ms: int) -> Observation:
    user = int(_USERS * chance.random() ** 2)
    return Observation(
        at_ms, "pay", Action.ALLOW.value, f"user-{user}", f"merchant-{chance.randrange(200)}",
        f"device-{user}-{chance.randrange(2)}", f"10.1.{user % 256}.{chance.randrange(4)}",
        f"card-{user}-{chance.randrange(2)}", chance.randrange(100, 100_000), "USD",
    )  # fmt: skip


def _record(seen: Observation) -> Record:
    facts = {f"f.fact_{number}": number for number in range(50)}
    return Record("pay_0123456789abcdef", seen, facts, seen.action, ("R",), ("r",), (), 7, "m", ())


async def _fill(state: MeshState, features: FeatureSet, count: int, figures: Figures) -> None:
    """A week of decisions through the stream, then counted from its first message."""
    chance = random.Random(1)
    now = time.time_ns() // 1_000_000
    publisher = Publisher(state.nats_url, "a")
    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(publisher.run())
        for number in range(count):
            age_ms = chance.randrange(7 * _DAY * 1000) if number % 2 else chance.randrange(_HOUR)
            publisher.put(_record(observation(chance, now - age_ms)))
            if publisher.waiting >= 4096:
                while publisher.waiting > 1024:
                    await asyncio.sleep(0.002)
        assert await publisher.drain(60)
        running.cancel()
    figures.add("publish_records_per_s", "1/s", [count / (time.perf_counter() - begun)])
    consumer = Consumer(state.nats_url, state.redis_url("a"), "a", lambda: features)
    begun, used = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(consumer.run())
        while consumer.applied < count:
            await asyncio.sleep(0.01)
        running.cancel()
    figures.add("count_records_per_s", "1/s", [count / (time.perf_counter() - begun)])
    figures.add("count_us_per_record_cpu", "µs", [1e6 * (time.process_time() - used) / count])


async def _read(
    state: MeshState, features: FeatureSet, size: int, rounds: int, figures: Figures
) -> None:
    chance = random.Random(2)
    reading = RedisFeatures(
        state.redis_url("a"), Breaker(Dependency.REDIS), wait_s=5.0, stale_s=1e6
    )
    wall: list[float] = []
    processor: list[float] = []
    redis: list[float] = []
    for number in range(rounds + 50):
        if number == 50:
            redis.append(await _redis_cpu_s(state))
        now = time.time_ns() // 1_000_000
        asked = [observation(chance, now) for _ in range(size)]
        begun, used = time.perf_counter_ns(), time.process_time_ns()
        await reading.read(features, asked)
        if number >= 50:
            wall.append((time.perf_counter_ns() - begun) / 1000)
            processor.append((time.process_time_ns() - used) / 1000)
    redis.append(await _redis_cpu_s(state))
    await reading.close()
    redis_us = 1e6 * (redis[1] - redis[0]) / rounds
    figures.add(f"read_30_features_of_{size}_redis_cpu_us", "µs", [redis_us])
    for percent, part in (("p50", 0.5), ("p99", 0.99)):
        value = sorted(wall)[int(part * len(wall))]
        figures.add(f"read_30_features_of_{size}_{percent}_us", "µs", [value])
    figures.add(f"read_30_features_of_{size}_cpu_us", "µs", [sum(processor) / len(processor)])


async def _redis_cpu_s(state: MeshState) -> float:
    async with Redis.from_url(state.redis_url("a")) as redis:
        used = await redis.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


async def _delay(state: MeshState, features: FeatureSet, rounds: int, figures: Figures) -> None:
    """From put to a value that has it."""
    publisher = Publisher(state.nats_url, "a")
    consumer = Consumer(state.nats_url, state.redis_url("a"), "a", lambda: features)
    reading = RedisFeatures(
        state.redis_url("a"), Breaker(Dependency.REDIS), wait_s=5.0, stale_s=1e6
    )
    chance = random.Random(3)
    found: list[float] = []
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(item.run()) for item in (publisher, consumer)]
        for number in range(rounds):
            seen = observation(chance, time.time_ns() // 1_000_000)._replace(user=f"new-{number}")
            begun = time.perf_counter()
            publisher.put(_record(seen))
            while not (await reading.read(features, [seen]))[0][f"count_user_{_HOUR}"]:
                await asyncio.sleep(0.001)
            found.append(1000 * (time.perf_counter() - begun))
            await asyncio.sleep(chance.random() * 0.05)
        for task in tasks:
            task.cancel()
    await reading.close()
    figures.add("seen_everywhere_p50_ms", "ms", found)
    figures.add("seen_everywhere_p99_ms", "ms", [sorted(found)[int(0.99 * len(found))]])


async def _memory(state: MeshState, figures: Figures) -> None:
    async with Redis.from_url(state.redis_url("a")) as redis:
        used = (await redis.info("memory"))["used_memory"]
        keys = await redis.dbsize()
        seconds = (await redis.info("commandstats"))["cmdstat_evalsha"]["usec_per_call"]
    figures.add("redis_bytes_per_key", "bytes", [used / keys])
    figures.notes["redis"] = {"keys": keys, "bytes": used, "evalsha_us": seconds}


async def run(decisions: int, rounds: int) -> None:
    figures = Figures()
    figures.notes.update({"decisions": decisions, "features": 30, "users": _USERS})
    figures.notes["load_average"] = os.getloadavg()[0]
    features = document()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mesh"
        with launcher.running(path, 1, MeshOptions(only=("redis", "nats"))) as state:
            await _fill(state, features, decisions, figures)
            await _memory(state, figures)
            await _read(state, features, 1, rounds, figures)
            await _read(state, features, 100, rounds // 10, figures)
            await _delay(state, features, rounds // 10, figures)
    figures.write(RESULTS / "risk_features.json")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.risk_features")
    parser.add_argument("--decisions", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=2000)
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    uvloop.run(run(given.decisions, given.rounds))


if __name__ == "__main__":
    main()
