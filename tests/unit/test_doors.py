"""A cell where nothing listens is gone before its lease is; silence proves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from control.doors import Doors
from control.view import LiveCell, View
from router.slotmap import SlotMap
from router.store.memory import MemoryStore

FIRST = SlotMap.even(["a", "b"])


async def listener(port: int = 0) -> tuple[asyncio.Server, int]:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", port)
    return server, server.sockets[0].getsockname()[1]


@pytest.fixture
async def view() -> AsyncIterator[View]:
    made = View(MemoryStore())
    made.slot_map = made.preferred = FIRST
    made.knows_live = True
    task = asyncio.get_running_loop().create_task(Doors(made).run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not what():
            await asyncio.sleep(0.01)


def lives(view: View, **ports: int) -> None:
    view.live = {cell: LiveCell("x", [f"127.0.0.1:{port}"], "x") for cell, port in ports.items()}
    view._tell()


async def test_a_door_that_closes_is_a_cell_that_has_gone_until_it_opens_again(
    view: View,
) -> None:
    server, port = await listener()
    lives(view, a=port)
    await asyncio.sleep(0.1)
    assert not view.gone
    server.close()
    lives(view, a=1, b=port)
    await until(lambda: view.gone == {"a", "b"})
    known = view.known()
    assert known is not None
    assert not known.live, "neither a source nor a target that could be reckoned with"
    server, _ = await listener(port)
    await until(lambda: view.gone == {"a"})
    lives(view, b=port)
    await until(lambda: not view.gone)
    server.close()
