"""The proxy that stands for the network in drills: who is cut off gets no answer, others do."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest

from control.drills.detour import Passage, Weather, detour
from router.store.memory import MemoryStore
from router.store.model import DETOURS_PREFIX

# gRPC as cells use it: its sockets are of IPv6, whatever the address.
_CALLER = """
import sys, grpc
channel = grpc.insecure_channel(sys.stdin.readline().strip())
try:
    grpc.channel_ready_future(channel).result(timeout=float(sys.argv[1]))
except grpc.FutureTimeoutError:
    sys.exit(7)
"""


@pytest.fixture
async def cell() -> AsyncIterator[str]:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture
def caller() -> Iterator[subprocess.Popen[str]]:
    """Connects to the address that it is given on its standard input; ends with 7 when it waits in
    vain."""
    command = [sys.executable, "-c", _CALLER, "5"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process:
        yield process


@pytest.mark.parametrize("is_cut", [True, False])
async def test_a_partition_cuts_by_who_connects(
    cell: str, caller: subprocess.Popen[str], is_cut: bool
) -> None:
    store, passage = MemoryStore(), Passage()
    weather = Weather(cut_off=lambda: [caller.pid if is_cut else 1])
    async with (
        asyncio.TaskGroup() as group,
        detour(store, group, "a", [cell], weather, passage),
    ):
        item = await store.get(DETOURS_PREFIX + "a")
        assert item is not None
        (address,) = json.loads(item.value)
        await asyncio.to_thread(caller.communicate, f"{address}\n", 60)
    assert passage.connections > 0
    assert bool(passage.cut) == is_cut
    assert caller.returncode == (7 if is_cut else 0)
    assert await store.get(DETOURS_PREFIX + "a") is None
