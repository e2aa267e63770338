"""What risk costs: a decision by itself, and on unary Pay → bench/results/risk.json.

    python -m tests.bench.risk [--quick]

The decision: a real PostgreSQL, Redis and NATS; payments of orders that are there, at 1,000 a
second (an open loop, times from when a call was due), judged by 2,000 rules, 30 features and the
example model; all reads included. `processor` is the judging process's own time, on one core.

On Pay: a mesh, segments with documents and without in turn, the same load on the same users. What
payments a second say depends on what else the machine does; so beside them stands the processor's
time a payment, of all that works on it: the cell's processes (the consumer that counts among them),
its relay, PostgreSQL, Redis and NATS, also after the last answer. The signature's cost is that of
sign.json (`make sign-bench`), per call, set against the same payment.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import random
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import structlog
import uvloop
from cellpay.control.v1 import policies_pb2 as pb

from cells.accounts.rules import OpenAccount
from cells.breakers.board import Breaker
from cells.database import make_engine
from cells.ledger.model import Accepted, AccountKind, Idempotency
from cells.ledger.worker import Lanes
from cells.orders.rules import CreateOrder
from cells.risk.asking import Asked, Whence
from cells.risk.cases.model import Conclusion, Operation
from cells.risk.consumer import Consumer
from cells.risk.features import RedisFeatures
from cells.risk.hits import Hits
from cells.risk.knowledge import Knowledge, knowledge_of
from cells.risk.lookups import RiskReader
from cells.risk.scorers import Scorers
from cells.risk.screening import Screening, Sources
from cells.risk.stream import Publisher
from cells.settings import DatabaseSettings, LaneSettings, RiskSettings
from control.cellctl.risk.hits import _page
from control.cellctl.verify import verify_mesh
from control.mesh import launcher
from control.mesh.options import MeshOptions
from control.mesh.state import MeshState
from control.risk.files import read_files
from router.guard import SlotsHere
from router.ids import Kind, slot_of_id
from router.minting import mint_now
from router.policies.model import Dependency, PolicyKind
from router.policies.risk import Rulebook
from router.policies.rules import parse
from router.risk.compiling import Compiling
from router.risk.features import Observation
from router.risk.model import Action, Rule, RuleSet
from router.risk.record import Record
from router.signing.model import Algorithm
from router.slotmap import Owned, SlotMap
from router.slots import slot_of_user
from tests.bench import mesh_runs
from tests.bench.figures import POSTGRES, RESULTS, ROOT, Figures
from tests.bench.mesh_runs import MeshRuns, Scale
from tests.bench.processor import spent_s
from tests.integration.behind import CELL, database, going_on

_EXAMPLES = ROOT / "examples" / "risk"
_RULES, _SHOP = 2000, "bench-shop"
_USERS, _PER_S = 400, 1000.0
_PAY = Scale(users=900, payments=3000, transfers=0, rounds=4, pgbench_s=0, moves=0, kills=0)
_QUICK = replace(_PAY, users=300, payments=1500, rounds=2)
# Rules of each case.
_CASES = {"none": 0, "rules_2000": _RULES}
_PARTS = ("cell-a", "relay-a", "postgres", "redis-a", "nats")
_IN_FLIGHT = 256
# What was decided last is counted.
_COUNTED_S = 1.0
# What is measured is what all of it costs, on a machine that others use too: there a request
# waits for longer than in production at times, and would be done without features, or refused.
_PATIENT = {"screening_timeout_ms": 20_000, "features_wait_ms": 2000}


class NoCall:
    """Of nobody, without deadline."""

    def time_remaining(self) -> None:
        return None

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}


def rules(count: int) -> RuleSet:
    """As people write them: an operation or a threshold first, then features; none matches."""
    chance = random.Random(1)
    features = ("f.user_count_10m", "f.user_sum_24h", "f.device_users_24h", "f.ip_count_10m",
                "f.payee_users_24h", "f.user_payees_24h", "f.card_count_24h")  # fmt: skip
    shapes = (
        'operation == "{op}" && amount > {far} && {f} > 3',
        "{f} > {far} || (amount > {far} && user.account_age_days < {age})",
        'ip.country in ["XA", "XB", "XC"] && {f} >= 2',
        'card.country != ip.country && card.country != "" && amount > {far}',
        "model.score > 1.5 && {f} > 0",
        'payee.id == "m-{age}-{far}" && !challenge.passed',
        "time.hour < 5 && {f} > {far}",
        'device.id.startsWith("bad-{age}") || {f} > {far}',
    )
    found = []
    for number in range(count):
        when = shapes[number % len(shapes)].format(
            op=chance.choice(("pay", "transfer", "withdraw")), f=chance.choice(features),
            far=chance.randrange(1_000_000, 9_000_000), age=chance.randrange(400),
        )  # fmt: skip
        found.append(Rule(f"bench-{number}", when, Action.DENY, "BENCH"))
    return RuleSet(tuple(found))


def _texts() -> dict[PolicyKind, str]:
    """The example documents, the model in force."""
    found = {file.kind: file.document for file in read_files([_EXAMPLES])}
    model = json.loads(found[PolicyKind.RISK_MODEL])
    return found | {PolicyKind.RISK_MODEL: json.dumps(model | {"mode": "live"})}


def book_of(count: int) -> Rulebook:
    documents = {kind: parse(kind, text) for kind, text in _texts().items()}
    models = {"bench": documents[PolicyKind.RISK_MODEL]}
    features: Any = documents[PolicyKind.RISK_FEATURES]
    return Rulebook({"bench": rules(count)}, {}, {"bench": features}, models, 1)  # type: ignore[arg-type]


class Nowhere:
    def put(self, record: Record) -> None:
        """As the publisher: takes it and goes on."""


@asynccontextmanager
async def judging(
    state: MeshState, url: str, knowledge: Knowledge
) -> AsyncIterator[tuple[Screening, Lanes]]:
    """A screening over real servers, with its features filled from the stream."""
    engine = make_engine(url, "bench-risk", DatabaseSettings(), pool_size=4, lanes=True)
    lanes = Lanes(engine, CELL, LaneSettings())
    here = SlotsHere(CELL)
    here.publish(SlotMap((Owned(0, 1023, CELL, 1),)))
    features = RedisFeatures(state.redis_url("a"), Breaker(Dependency.REDIS), wait_s=1.0)
    publisher = Publisher(state.nats_url, CELL)
    consumer = Consumer(state.nats_url, state.redis_url("a"), CELL, lambda: knowledge.features)
    scorers = Scorers()
    scorers.hear(knowledge)
    settings = RiskSettings(screening_timeout_ms=10_000)
    readers = [RiskReader(engine, here) for _ in range(settings.groups_max)]
    sources = Sources(lambda: knowledge, features, scorers, lambda: True, Hits())
    screening = Screening(lanes, readers, sources, Nowhere(), settings)
    try:
        async with going_on(*lanes.runners(), *screening.runners(), scorers.run):
            async with going_on(publisher.run, consumer.run):
                await _filled(publisher, consumer, features, knowledge)
            if knowledge.models and scorers.live is None:
                await scorers.changed.wait()
            yield screening, lanes
    finally:
        await screening.close()
        await features.close()
        await engine.dispose()


async def _filled(
    publisher: Publisher, consumer: Consumer, features: RedisFeatures, knowledge: Knowledge
) -> None:
    now = time.time_ns() // 1_000_000
    chance = random.Random(2)
    seen = Observation(now, "pay", "allow", "u", "m", "d", "10.0.0.1", "", 5, "USD")
    for number in range(4000):
        user = f"u{chance.randrange(_USERS)}"
        own = seen._replace(
            at_ms=now - chance.randrange(86_400_000), user=user, payee=_SHOP, device=f"d-{user}",
            ip=f"10.0.{number % 250}.1",
        )  # fmt: skip
        publisher.put(Record(mint_now(Kind.DECISION, 1), own, {}, "allow", (), (), (), 1, "", ()))
    while consumer.applied < 4000:
        await asyncio.sleep(0.05)
    while True:
        try:
            await features.read(knowledge.features, [seen])
        except Exception:
            await asyncio.sleep(0.1)
        else:
            return


async def _orders(lanes: Lanes, count: int) -> list[str]:
    key = Idempotency(_SHOP, "open", "OpenAccount", b"")
    slot = slot_of_user(_SHOP)
    await lanes.submit(OpenAccount(slot, _SHOP, "USD", AccountKind.MERCHANT, key))
    users = [f"u{number}" for number in range(_USERS)]
    opening = [
        OpenAccount(
            slot_of_user(user), user, "USD", AccountKind.PERSON,
            Idempotency(user, "open", "OpenAccount", b""),
        )
        for user in users
    ]  # fmt: skip
    await lanes.submit_many(opening, 60)
    made = []
    for start in range(0, count, 500):
        wanted = [users[number % _USERS] for number in range(start, min(start + 500, count))]
        outcomes = await lanes.submit_many(
            [
                CreateOrder(
                    slot_of_user(user), mint_now(Kind.ORDER, slot_of_user(user)), user, _SHOP, 5,
                    "USD", "", Idempotency(user, f"{start}-{n}", "CreateOrder", b""),
                )
                for n, user in enumerate(wanted)
            ],
            60,
        )  # fmt: skip
        made += [item.resource.order_id for item in outcomes if isinstance(item, Accepted)]
    return made


def _asked(order_id: str, number: int) -> Asked:
    whence = Whence(f"d-u{number % _USERS}", f"10.0.{number % 250}.1", "DE")
    return Asked(
        Operation.PAY, slot_of_id(order_id), order_id, f"k{number}", "", "", 0, "", order_id, whence
    )


# Timers of uvloop are whole milliseconds, which is all that a decision may take.
_PACER = """
import os, struct, sys, time
per_s, count = float(sys.argv[1]), int(sys.argv[2])
begin = time.perf_counter() + 0.1
for number in range(count):
    due = begin + number / per_s
    while (left := due - time.perf_counter()) > 0:
        time.sleep(left)
    os.write(1, struct.pack("d", due))
"""


async def _dues(count: int) -> AsyncIterator[float]:
    """When each of so many requests was due, at that moment: of perf_counter, which all processes
    of a machine share (Linux: CLOCK_MONOTONIC)."""
    pacer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PACER, str(_PER_S), str(count), stdout=asyncio.subprocess.PIPE
    )
    assert pacer.stdout is not None
    for _ in range(count):
        (due,) = struct.unpack("d", await pacer.stdout.readexactly(8))
        yield due
    await pacer.wait()


async def _decisions(screening: Screening, orders: Sequence[str], figures: Figures) -> None:
    """At a fixed rate: a decision that comes late counts from when it was due."""
    context = NoCall()
    taken: list[float] = []

    async def one(order_id: str, number: int, due: float) -> None:
        opinion = await screening.opinion(_asked(order_id, number), context)
        assert opinion.verdict.conclusion == Conclusion.ALLOW
        assert opinion.record is not None
        assert not opinion.record.without
        taken.append(time.perf_counter() - due)

    warm = orders[:300]
    await asyncio.gather(*(one(item, number, 0.0) for number, item in enumerate(warm)))
    taken.clear()
    gc.collect()
    gc.freeze()
    processor = time.process_time()
    async with asyncio.TaskGroup() as group:
        number = 0
        async for due in _dues(len(orders) - 300):
            group.create_task(one(orders[300 + number], number, due))
            number += 1
    processor = time.process_time() - processor
    taken.sort()
    figures.add("decision_p50_ms", "ms", [taken[len(taken) // 2] * 1000])
    figures.add("decision_p99_ms", "ms", [taken[int(len(taken) * 0.99)] * 1000])
    figures.add("decision_processor_us", "us", [processor / len(taken) * 1e6])


def _pure(knowledge: Knowledge, screening: Screening, figures: Figures) -> None:
    """What needs no read: a request's score, and the rules."""
    scorer = screening._sources.scoring.live
    facts = dict.fromkeys(knowledge.types, 0) | {
        name: "" for name, kind in knowledge.types.items() if kind == "string"
    }
    contains = knowledge.lists.contains
    for name, work in (
        ("rules_us", lambda: knowledge.rules.decide(facts, contains)),
        ("model_us", lambda: scorer.score([facts]) if scorer else None),
    ):
        rounds = []
        for _ in range(20):
            begin = time.thread_time()
            for _ in range(50):
                work()
            rounds.append((time.thread_time() - begin) / 50 * 1e6)
        figures.add(name, "us", rounds)


async def _alone(state: MeshState, figures: Figures, seconds: int) -> None:
    began = time.perf_counter()
    knowledge = knowledge_of(book_of(_RULES), datetime.now(UTC), Compiling())
    figures.notes["compiling_s"] = round(time.perf_counter() - began, 1)
    figures.notes["documents"] = (
        f"{len(knowledge.rules)} rules, {len(knowledge.features.features)} features,"
        f" {len(knowledge.models)} model"
    )
    async with database(state) as engine:
        url = engine.url.render_as_string(hide_password=False)
        async with judging(state, url, knowledge) as (screening, lanes):
            orders = await _orders(lanes, int(_PER_S * seconds) + 300)
            _pure(knowledge, screening, figures)
            await _decisions(screening, orders, figures)


class _Run(NamedTuple):
    per_s: float
    p50_ms: float
    # Processor time a payment, by part of the mesh.
    parts_us: dict[str, float]

    @property
    def spent_us(self) -> float:
        return sum(self.parts_us.values())


class PayRuns(MeshRuns):
    """The same payments with documents of risk and without, in turn."""

    async def compare(self, mesh: Any) -> None:
        payers = (await self.people(mesh))["a"]
        addresses = await self._addresses("a")
        runs: dict[str, list[_Run]] = {name: [] for name in _CASES}
        for number in range(self.scale.rounds + 1):
            # To and fro: neither always comes after the other.
            for name in list(_CASES)[:: -1 if number % 2 else 1]:
                await self._apply(_CASES[name])
                orders = self.orders(addresses, payers, self.scale.payments)
                await self.told()
                run = await self._pay(addresses, orders)
                if number:
                    # The first round is everybody's warm-up.
                    runs[name].append(run)
        await self._apply(0)
        self._tell(runs)

    async def _pay(self, addresses: list[str], orders: list[str]) -> _Run:
        before = spent_s(self.session.state)
        paid = await asyncio.to_thread(self.load, "pay", addresses, orders, in_flight=_IN_FLIGHT)
        await self.told()
        await asyncio.sleep(_COUNTED_S)
        after = spent_s(self.session.state)
        parts = {name: (after[name] - before[name]) / len(orders) * 1e6 for name in _PARTS}
        return _Run(paid["succeeded"] / paid["seconds"], paid["p50_ms"], parts)

    def _tell(self, runs: dict[str, list[_Run]]) -> None:
        add = self.figures.add
        for name, found in runs.items():
            add(f"pay_per_s_{name}", "payments/s", [run.per_s for run in found])
            add(f"pay_p50_ms_{name}", "ms", [run.p50_ms for run in found])
            add(f"pay_processor_us_{name}", "µs", [run.spent_us for run in found])
            for part in _PARTS:
                samples = [run.parts_us[part] for run in found]
                add(f"pay_processor_us_{name}_{part}", "µs", samples)
        on, off = runs["rules_2000"], runs["none"]
        costs = [100 * (1 - one.per_s / other.per_s) for one, other in zip(on, off, strict=True)]
        add("pay_cost_percent_rules_2000", "%", costs)
        spent = [
            100 * (1 - other.spent_us / one.spent_us) for one, other in zip(on, off, strict=True)
        ]
        add("pay_processor_cost_percent_rules_2000", "%", spent)
        path = RESULTS / "sign.json"
        signatures = json.loads(path.read_text())["figures"] if path.exists() else {}
        for algorithm in Algorithm:
            signed = signatures.get(f"added_processor_us_{algorithm}")
            if signed is not None:
                both = [
                    100 * (1 - other.spent_us / (one.spent_us + signed["value"]))
                    for one, other in zip(on, off, strict=True)
                ]
                add(f"risk_and_signature_processor_cost_percent_{algorithm}", "%", both)

    async def _apply(self, count: int) -> None:
        """The documents of so many rules, or none; in force in every process when it returns."""
        order = (PolicyKind.RISK_FEATURES, PolicyKind.RISK_RULES, PolicyKind.RISK_MODEL)
        texts = _texts()
        texts[PolicyKind.RISK_RULES] = json.dumps(
            {"rules": [_as_document(rule) for rule in rules(count).rules]}
        )
        async with self.session.policies() as stub:
            there = {
                item.kind
                for item in (await stub.ListPolicies(pb.ListPoliciesRequest())).policies
                if item.kind in set(order) and item.document != "{}"
            }
            if not count:
                for kind in reversed(order):
                    if kind in there:
                        request = pb.DeletePolicyRequest(kind=kind, name="bench", reason="bench")
                        await stub.DeletePolicy(request, timeout=120)
            else:
                for kind in order:
                    if kind in texts:
                        setting = pb.SetPolicyRequest(
                            kind=kind, name="bench", document=texts[kind], reason="bench"
                        )
                        await stub.SetPolicy(setting, timeout=120)
        await self._until_known(count)

    async def _until_known(self, count: int) -> None:
        address = self.session.state.probes_of("cell-a")
        while True:
            page = await _page(address)
            told = [
                float(line.split()[-1])
                for line in page.split("\n")
                if line.startswith(("cellpay_risk_rules{", "cellpay_risk_rules "))
            ]
            if len(told) >= mesh_runs.WORKERS and all(item == count for item in told):
                # Features are filled, the model made.
                await asyncio.sleep(3.0)
                return
            await asyncio.sleep(0.2)


def _as_document(rule: Rule) -> dict[str, str]:
    return {
        "name": rule.name, "when": rule.when, "action": str(rule.action), "reason": rule.reason
    }  # fmt: skip


async def _on_pay(data: Path, figures: Figures, scale: Scale) -> None:
    runs = PayRuns(data, figures, scale)
    async with runs.session.mesh() as mesh:
        await runs.compare(mesh)
    report = await verify_mesh(data)
    figures.notes["books_are_sound"] = report.ok
    if not report.ok:
        raise SystemExit("the books are broken after the benchmark")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.risk")
    parser.add_argument("--quick", action="store_true", help="some of it, in a minute or two")
    parser.add_argument("--only", choices=["decision", "pay"], default="")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="cellpay-bench-") as folder:
        if given.only != "pay":
            only = MeshOptions(only=("postgres", "nats", "redis"), postgres=POSTGRES)
            data = Path(folder) / "alone"
            with launcher.running(data, 1, only) as state:
                uvloop.run(_alone(state, figures, 3 if given.quick else 15))
            launcher.remove(data)
        if given.only != "decision":
            data = Path(folder) / "mesh"
            overrides = {
                "settlement": {"interval_s": 3600.0},
                "workers": mesh_runs.WORKERS,
                "risk": _PATIENT,
            }
            options = MeshOptions(cell_overrides=overrides, postgres=POSTGRES)
            with launcher.running(data, 1, options):
                asyncio.run(_on_pay(data, figures, _QUICK if given.quick else _PAY))
            launcher.remove(data)
    figures.notes["load_average"] = [round(load, 1) for load in os.getloadavg()]
    figures.write(RESULTS / "risk.json")


if __name__ == "__main__":
    main()
