"""One mesh of real components for all tests that need one, started when the first asks for it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from cells.verification.model import lines
from control.cellctl.session import Session
from control.cellctl.verify import verify_mesh
from control.mesh import launcher
from control.mesh.options import MeshOptions
from router.client import CallPolicy, Mesh, connect_direct
from router.tracing.model import TracingSettings
from tests.chaos.outside import banks
from tests.integration.collector import Collector, collecting
from tests.integration.visiting import Visitor, add_accounts, serving

# Short waits, so that what happens in minutes in production happens within a test.
OVERRIDES = {
    # Each cell of two processes: whatever holds must hold between them too.
    "workers": 2,
    "settlement": {"interval_s": 2.0},
    # A busy machine is no risk engine that is away.
    "risk": {"screening_timeout_ms": 10_000},
    "transfers": {"recovery_age_s": 2.0, "recovery_interval_s": 0.5, "try_timeout_s": 5.0},
    "vault": {"look_interval_s": 1.0, "pause_s": 0.01},
    "banking": {
        "answer_timeout_s": 1.5,
        "send_window_s": 1.0,
        "wait_max_s": 2.0,
        "reverse_after_s": 1.5,
        "backoff_base_s": 0.3,
        "backoff_cap_s": 1.0,
        "held_retry_s": 0.5,
        "recovery_interval_s": 0.3,
    },
    "webhooks": {"backoff_base_s": 0.1, "backoff_cap_s": 0.5, "attempts_max": 4, "timeout_s": 1.0},
}
# Longer than the default: a test machine that is busy elsewhere must not look like a death.
LEASE_TTL_S = 5
# Nobody's but tests/attacks': every address of 127.0.0.0/8 is this machine.
DENIED_RANGE = "127.66.0.0/16"
# Where the console's links to traces lead.
TRACE_URL = "https://traces.example/t/{trace_id}?x=1"
PATIENT = CallPolicy(timeout_s=60.0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Cheap tests first, chaos last: the quickest failure is the most useful one."""
    order = ("unit", "property", "conformance", "integration", "attacks", "chaos")

    def rank(item: pytest.Item) -> int:
        folder = Path(str(item.fspath)).parent.name
        return order.index(folder) if folder in order else len(order)

    items.sort(key=rank)


@pytest.fixture(scope="session")
def outside(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[list[dict[str, Any]], dict[str, Mapping[str, int]]]]:
    """Simulated banks: the settings of channels to them, and their ports."""
    with banks(tmp_path_factory.mktemp("banks")) as started:
        yield started


@pytest.fixture(scope="session")
def bank_ports(outside: tuple[Any, dict[str, Mapping[str, int]]]) -> dict[str, Mapping[str, int]]:
    return outside[1]


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Who takes the traces of `session`'s mesh."""
    with collecting() as started:
        yield started


@pytest.fixture(scope="session")
def session(
    tmp_path_factory: pytest.TempPathFactory,
    outside: tuple[list[dict[str, Any]], Any],
    collector: Collector,
) -> Iterator[Session]:
    data = tmp_path_factory.mktemp("mesh")
    os.environ.pop("GRPC_XDS_BOOTSTRAP", None)
    overrides = {**OVERRIDES, "channels": outside[0]}
    try:
        options = MeshOptions(
            cell_overrides=overrides,
            lease_ttl_s=LEASE_TTL_S,
            edge_denied=(DENIED_RANGE,),
            # All of them, but for those whose callers say that they are in no sample.
            tracing=TracingSettings(endpoint=collector.url, sample_ratio=1.0),
        )
        with launcher.running(data, 3, options):
            yield Session.open(data)
            # Whatever all the tests did together.
            audited = asyncio.run(verify_mesh(data))
            assert audited.ok, "\n".join(lines(audited))
    finally:
        launcher.remove(data)


@pytest_asyncio.fixture(scope="session")
async def mesh(session: Session) -> AsyncIterator[Mesh]:
    """The SDK, by xDS."""
    async with session.mesh(PATIENT) as mesh:
        yield mesh


@pytest_asyncio.fixture(scope="session")
async def edge(session: Session) -> AsyncIterator[Mesh]:
    """The same stubs through Envoy."""
    async with connect_direct(session.edge_address, session.tls("client"), policy=PATIENT) as mesh:
        yield mesh


@pytest.fixture(scope="session")
def console(session: Session) -> Iterator[str]:
    """Of all tests that visit one: it takes seconds to start where others run too."""
    add_accounts(session)
    with serving(session, "--listen", "127.0.0.1:0", "--trace-url", TRACE_URL) as base:
        yield base


@pytest_asyncio.fixture
async def browser(console: str) -> AsyncIterator[Visitor]:
    # The console's address is an IP address, whose cookies aiohttp keeps only when told to.
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as client:
        yield Visitor(client, console)


@pytest_asyncio.fixture
async def second_person(console: str) -> AsyncIterator[Visitor]:
    """bob, who approves."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as client:
        visitor = Visitor(client, console)
        assert await visitor.sign_in("bob") == 200
        yield visitor
