"""A cell's processes come and go by its load, and cells by an operator's wish: no call fails.

A mesh of its own, since these tests end cells. Nothing here asserts how long a thing took.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import grpc
import pytest
from cellpay.control.v1 import policies_pb2
from cellpay.payments.v1 import payments_pb2
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from control.cellctl.session import Session
from control.cellctl.verify import verify_mesh
from control.mesh import launcher
from control.mesh.options import MeshOptions
from control.slotmap import read_slot_map
from router.client import CallPolicy, Mesh, connect_direct
from router.errors import details_of
from router.ids import Kind
from router.minting import mint_now
from router.slots import slot_of_user
from router.store.model import AWAY_CELLS_PREFIX, JOINED_CELLS_PREFIX, LIVE_CELLS_PREFIX
from tests.chaos.payer import Payer
from tests.conftest import LEASE_TTL_S
from tests.integration.behind import eventually
from tests.integration.test_api import opened, ordered
from tests.integration.test_metrics import _page

pytestmark = pytest.mark.mesh

OVERRIDES = {
    "workers": 1,
    "elasticity": {
        "workers_max": 2,
        # An idle process is far below it, one with a few clients above, on any machine.
        "cpu_percent": 15,
        "look_interval_s": 0.2,
        "raise_after_s": 0.2,
        "lower_after_s": 1.0,
        "quiet_s": 0.3,
    },
    "leaving": {"grace_s": 60.0},
    # A read may be held up for as long as a test wants.
    "database": {"statement_timeout_ms": 120_000, "read_pool_size": 20},
}
FLOODING = 12
NOWHERE = 40


@pytest.fixture(scope="module")
def elastic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    data = tmp_path_factory.mktemp("elastic")
    only = ("base", "schema", "controller", "cells", "edge")
    options = MeshOptions(only=only, cell_overrides=OVERRIDES, lease_ttl_s=LEASE_TTL_S)
    try:
        with launcher.running(data, 2, options):
            yield Session.open(data)
    finally:
        launcher.remove(data)


@pytest.fixture(scope="module")
async def client(elastic: Session) -> AsyncIterator[Mesh]:
    """By Envoy: this process may be in another mesh by xDS, of other tests."""
    # One attempt, which waits for its answer where it was begun.
    policy = CallPolicy(timeout_s=200.0, attempt_timeout_s=200.0)
    async with connect_direct(elastic.edge_address, elastic.tls("client"), policy=policy) as mesh:
        yield mesh


async def processes_of(session: Session, cell: str) -> int:
    """As the mesh has heard."""
    async with session.store() as store:
        item = await store.get(LIVE_CELLS_PREFIX + cell)
    return len(json.loads(item.value)["addresses"]) if item else 0


async def under_way(session: Session, cell: str) -> dict[str, float]:
    """By process, also of one that the mesh has forgotten: requests without an answer yet."""
    page = await _page(session.state.probes_of(f"cell-{cell}"))
    return {
        sample.labels["process"]: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "cellpay_requests_under_way"
    }


async def slots_of(session: Session, cell: str) -> int:
    async with session.store() as store:
        read = await read_slot_map(store)
    assert read is not None
    return len(read[0].slots_of(cell))


@contextlib.asynccontextmanager
async def flooded(mesh: Mesh) -> AsyncIterator[None]:
    """Clients of cell a that pay without a pause; none may fail."""
    payer, shop = await opened_at_a(mesh), await opened(mesh, kind=2)

    async def client() -> None:
        while not stop.is_set():
            order = await ordered(mesh, payer, shop, 1)
            request = payments_pb2.PayRequest(
                order_id=order.order_id, idempotency_key=order.order_id
            )
            await mesh.payments.Pay(request)

    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(FLOODING):
            group.create_task(client())
        yield
        stop.set()


async def opened_at_a(mesh: Mesh) -> str:
    while True:
        user = await opened(mesh, 1_000_000)
        if slot_of_user(user) < 512:
            return user


async def test_load_brings_processes_and_they_leave_with_calls_under_way(
    elastic: Session, client: Mesh
) -> None:
    async with flooded(client):
        await eventually(lambda: _has(elastic, 2))
    async with elastic.database() as engine, engine.connect() as connection:
        # Reads of payments wait for the end of this transaction, in whichever process.
        await connection.execute(text("LOCK TABLE payments IN ACCESS EXCLUSIVE MODE"))
        async with asyncio.TaskGroup() as group:
            calls = []
            for slot in range(NOWHERE):
                request = payments_pb2.GetPaymentRequest(payment_id=mint_now(Kind.PAYMENT, slot))
                calls.append(group.create_task(_outcome(client, request)))
                await eventually(partial(_waiting, elastic, slot + 1))
                if (await under_way(elastic, "a")).get("1"):
                    break
            else:
                raise AssertionError("no slot is at home in the last process")
            await eventually(lambda: _has(elastic, 1))
            # The mesh has forgotten it, and it still works for who came before.
            assert (await under_way(elastic, "a"))["1"] >= 1
            assert not any(call.done() for call in calls)
            await connection.rollback()
        assert {call.result() for call in calls} == {"PAYMENT_NOT_FOUND"}
    await eventually(lambda: _alone(elastic))


async def _has(session: Session, count: int) -> bool:
    return await processes_of(session, "a") == count


async def _waiting(session: Session, count: int) -> bool:
    return sum((await under_way(session, "a")).values()) >= count


async def _alone(session: Session) -> bool:
    return set(await under_way(session, "a")) == {"0"}


async def _outcome(mesh: Mesh, request: payments_pb2.GetPaymentRequest) -> str:
    try:
        await mesh.payments.GetPayment(request, timeout=200)
    except grpc.aio.AioRpcError as error:
        return details_of(error).reason
    return "found"


async def test_what_is_expected_is_there_before_its_load(elastic: Session, client: Mesh) -> None:
    begin = datetime.now(UTC) + timedelta(minutes=10)
    document = {
        "cells": ["a"],
        "warm_s": 3600,
        "times": [
            {"begin": str(begin), "end": str(begin + timedelta(hours=1)), "workers": 2},
        ],
    }
    async with elastic.policies() as policies:
        await policies.SetPolicy(
            policies_pb2.SetPolicyRequest(
                kind="forecast", name="double-11", document=json.dumps(document), reason="a test"
            )
        )
        await eventually(lambda: _has(elastic, 2))
        assert await processes_of(elastic, "b") == 1
        await policies.DeletePolicy(
            policies_pb2.DeletePolicyRequest(kind="forecast", name="double-11", reason="a test")
        )
    await eventually(lambda: _has(elastic, 1))


@contextlib.contextmanager
def joined(session: Session, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that joins cell a, as a pod of its own would: other addresses, same settings."""
    settings = json.loads((session.data / "cells" / "a" / "settings.json").read_text())
    settings |= {"listen": "127.0.0.1:0", "probe_listen": "127.0.0.1:0"}
    path = folder / "joined.json"
    path.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "cells.serve", str(path), "--join"]
    with (folder / "joined.log").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


async def test_a_process_elsewhere_joins_the_cell_and_leaves_it_and_no_call_fails(
    elastic: Session, tmp_path: Path
) -> None:
    payer = await asyncio.to_thread(Payer, elastic.data, "joined", elastic.edge_address)
    try:
        with joined(elastic, tmp_path) as process:
            await eventually(lambda: _listed(elastic, 1))
            process.terminate()
            assert await asyncio.to_thread(process.wait, 60) == 0, (
                tmp_path / "joined.log"
            ).read_text()
        assert not await _listed(elastic, 1)
    finally:
        counted = await asyncio.to_thread(payer.end)
    assert counted["failed"] == {}, counted


async def _listed(session: Session, count: int) -> bool:
    async with session.store() as store:
        listing = await store.list(f"{JOINED_CELLS_PREFIX}a/")
        item = await store.get(LIVE_CELLS_PREFIX + "a")
    assert item is not None
    known = json.loads(item.value)["addresses"]
    addresses = [json.loads(it.value)["address"] for it in listing.items.values()]
    return len([address for address in addresses if address in known]) == count


async def test_a_cell_that_is_told_to_end_and_comes_again_loses_no_call(
    elastic: Session, client: Mesh
) -> None:
    before = await slots_of(elastic, "b")
    payer = await asyncio.to_thread(Payer, elastic.data, "rolled", elastic.edge_address)
    try:
        await asyncio.to_thread(launcher.stop, elastic.data, "cell-b", 100.0)
        assert await slots_of(elastic, "b") == 0
        async with elastic.store() as store:
            assert await store.get(AWAY_CELLS_PREFIX + "b") is not None
        await asyncio.to_thread(launcher.start, elastic.data, "cell-b")
        await eventually(lambda: _given_back(elastic, before))
    finally:
        counted = await asyncio.to_thread(payer.end)
    assert counted["failed"] == {}, counted
    assert counted["paid"] > 0
    async with elastic.store() as store:
        assert await store.get(AWAY_CELLS_PREFIX + "b") is None
    report = await verify_mesh(elastic.data)
    assert report.ok, report


async def _given_back(session: Session, count: int) -> bool:
    return await slots_of(session, "b") == count


async def test_money_that_breaks_in_a_process_elsewhere_stops_the_cell(elastic: Session) -> None:
    """Its word alone: what breaks money is told in tests of the ledger."""
    async with elastic.store() as store:
        key = f"{JOINED_CELLS_PREFIX}a/test"
        await store.commit(expect={}, puts={key: json.dumps({"address": "broken"})})
        try:
            await eventually(lambda: _ended(elastic, "cell-a"))
        finally:
            await store.commit(expect={}, puts={}, deletes=[key])
    await asyncio.to_thread(launcher.start, elastic.data, "cell-a")


async def _ended(session: Session, name: str) -> bool:
    return any(item.name == name and not item.alive for item in launcher.status(session.data))
