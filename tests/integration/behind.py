"""Real PostgreSQL, NATS and Redis for what happens behind messages: outbox, stream, webhooks.

One base of servers a module; a database of its own, and an empty stream, a test.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nats.js.errors import NotFoundError
from sqlalchemy import insert, select
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

import cells.notifications.tables  # noqa: F401
from cells.database import make_engine
from cells.fencing.tables import metadata, slots
from cells.ledger.book import Book
from cells.ledger.model import Accepted, Key, Outcome
from cells.ledger.store import commit_group
from cells.ledger.tables import OUTBOX, outbox
from cells.outbox.stream import STREAM, connect_stream
from cells.settings import DatabaseSettings
from control.mesh import launcher
from control.mesh.options import MeshOptions
from control.mesh.state import MeshState
from router.ids import Kind, slot_of_id
from router.minting import mint_now
from router.slots import SLOT_COUNT
from tests.integration.books import new_database

CELL = "a"
SERVERS = ("postgres", "nats", "redis")
# Nothing here measures time: this only ends a test that hangs.
PATIENCE_S = 60.0


@contextmanager
def servers(directory: Path) -> Iterator[MeshState]:
    """They die with this process, whatever becomes of it."""
    with launcher.running(directory, 1, MeshOptions(only=SERVERS)) as state:
        yield state
    launcher.remove(directory)


async def kill(state: MeshState, name: str) -> None:
    await asyncio.to_thread(launcher.kill, state.path, name)


async def start(state: MeshState, name: str) -> None:
    await asyncio.to_thread(launcher.start, state.path, name)


@asynccontextmanager
async def database(state: MeshState) -> AsyncIterator[AsyncEngine]:
    """A new database whose slots all belong to CELL, and a stream that does not exist yet."""
    async with new_database(make_url(state.database_url)) as admin:
        async with admin.begin() as connection:
            await connection.run_sync(metadata.create_all)
            rows = [{"slot": slot, "owner": CELL, "epoch": 1} for slot in range(SLOT_COUNT)]
            await connection.execute(insert(slots), rows)
        url = admin.url.render_as_string(hide_password=False)
        engine = make_engine(url, "test", DatabaseSettings(), pool_size=4)
        await _forget_stream(state)
        try:
            yield engine
        finally:
            await engine.dispose()


async def _forget_stream(state: MeshState) -> None:
    async with connect_stream(state.nats_url, "test") as stream:
        await stream.delete_stream(STREAM)


async def give_away(engine: AsyncEngine, cell: str, slot: int | None = None) -> None:
    """The slot, or every slot, is at home in `cell` from now on."""
    statement = slots.update().values(owner=cell, epoch=slots.c.epoch + 1)
    if slot is not None:
        statement = statement.where(slots.c.slot == slot)
    async with engine.begin() as connection:
        await connection.execute(statement)


@dataclass(frozen=True, slots=True)
class Tell:
    """A command that does nothing but tell of it."""

    slot: int
    event_id: str
    merchant_id: str
    idempotency = None
    resource_type = OUTBOX

    def other_slots(self) -> Sequence[int]:
        return ()

    def reads(self) -> Sequence[Key]:
        return ()

    def accounts(self, book: Book) -> Sequence[Key]:
        return ()

    def decide(self, book: Book) -> Outcome:
        book.tell(self.slot, self.event_id, "test.happened", self.merchant_id, '{"n":1}')
        return Accepted(None)


_spread = itertools.count(1)


async def tell(
    engine: AsyncEngine, count: int, *, slot: int | None = None, merchant_id: str = ""
) -> set[str]:
    """Events in the outbox, by the ledger itself, in one commit; returns their IDs."""
    events = [
        mint_now(Kind.EVENT, slot if slot is not None else next(_spread) * 37 % SLOT_COUNT)
        for _ in range(count)
    ]
    await commit_group(
        engine, CELL, [Tell(slot_of_id(event), event, merchant_id) for event in events]
    )
    return set(events)


async def tell_apart(
    engine: AsyncEngine, count: int, *, slot: int | None = None, merchant_id: str = ""
) -> set[str]:
    """The same, a commit and so a batch for each."""
    events: set[str] = set()
    for _ in range(count):
        events |= await tell(engine, 1, slot=slot, merchant_id=merchant_id)
    return events


async def marked(engine: AsyncEngine) -> set[str]:
    """IDs of the events that are marked as sent."""
    async with engine.connect() as connection:
        batches = await connection.execute(select(outbox.c.lines).where(outbox.c.sent))
        return {event for lines in batches.scalars() for event in _ids(lines)}


def _ids(lines: str) -> list[str]:
    return [str(json.loads(line)["id"]) for line in lines.split("\n")]


async def streamed(state: MeshState) -> list[str]:
    """IDs of the events in the stream, in its order."""
    async with connect_stream(state.nats_url, "test") as stream:
        found = []
        number = 0
        try:
            while True:
                message = await stream.get_msg(STREAM, seq=number + 1, next=True, subject=">")
                found += _ids(message.data.decode())
                number = int(message.seq)
        except NotFoundError:
            return found


async def eventually(what: Callable[[], Awaitable[Any]]) -> Any:
    """Its first true answer."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if answer := await what():
                return answer
            await asyncio.sleep(0.02)


@asynccontextmanager
async def going_on(*runs: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Runs them beside the block, which must not outlive any of them."""

    async def run(one: Callable[[], Awaitable[None]]) -> None:
        await one()
        raise AssertionError(f"{one} has ended")

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(one)) for one in runs]
        yield
        for task in tasks:
            task.cancel()
