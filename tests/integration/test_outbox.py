"""The outbox's relay on a real database and a real stream: nothing is lost."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

import cells.outbox.stream
from cells.ledger.tables import outbox
from cells.outbox.stream import STREAM, connect_stream
from cells.outbox.worker import OutboxRelay, replay
from cells.settings import OutboxSettings
from control.mesh import ca
from control.mesh.state import MeshState
from router.client.bootstrap import xds_bootstrap
from router.identity import spiffe_id
from router.ids import Kind, mint
from tests.integration import behind
from tests.integration.behind import (
    CELL,
    eventually,
    give_away,
    going_on,
    marked,
    streamed,
    tell,
    tell_apart,
)

pytestmark = pytest.mark.mesh
SETTINGS = OutboxSettings(rows_max=20, poll_interval_s=0.02)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshState]:
    with behind.servers(tmp_path_factory.mktemp("outbox") / "mesh") as state:
        yield state


@pytest.fixture
async def engine(state: MeshState) -> AsyncIterator[AsyncEngine]:
    async with behind.database(state) as engine:
        yield engine


def line(event_id: str) -> str:
    return json.dumps({"id": event_id})


def _relay(state: MeshState, engine: AsyncEngine, cell: str = CELL) -> OutboxRelay:
    return OutboxRelay(engine, cell, state.nats_url, SETTINGS)


async def _is_marked(engine: AsyncEngine, events: set[str]) -> bool:
    return events <= await marked(engine)


class Meddling:
    """A stream where something happens before the first event of a batch is published."""

    def __init__(self, stream: Any, meddle: Any) -> None:
        self._stream = stream
        self._meddle = meddle

    async def publish_async(self, *arguments: Any, **named: Any) -> Any:
        if self._meddle is not None:
            meddle, self._meddle = self._meddle, None
            await meddle()
        return await self._stream.publish_async(*arguments, **named)


async def test_every_event_arrives_though_nats_is_killed_in_the_middle(
    state: MeshState, engine: AsyncEngine
) -> None:
    events = await tell_apart(engine, 200) | await tell(engine, 400)
    async with going_on(_relay(state, engine).run):
        await eventually(lambda: marked(engine))
        await behind.kill(state, "nats")
        events |= await tell_apart(engine, 50)
        await behind.start(state, "nats")
        await eventually(lambda: _is_marked(engine, events))
    assert set(await streamed(state)) == events


async def test_a_relay_that_starts_without_nats_waits_for_it(
    state: MeshState, engine: AsyncEngine
) -> None:
    events = await tell(engine, 30)
    await behind.kill(state, "nats")
    async with going_on(_relay(state, engine).run):
        await behind.start(state, "nats")
        await eventually(lambda: _is_marked(engine, events))
    assert set(await streamed(state)) == events


async def test_what_has_no_acknowledgement_is_not_marked(
    state: MeshState, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells.outbox.stream, "_ACK_WAIT_S", 1.0)
    events = await tell(engine, 5)
    relay = _relay(state, engine)
    async with connect_stream(state.nats_url, "test") as stream:
        await behind.kill(state, "nats")
        try:
            with pytest.raises(TimeoutError):
                await relay.relay_rows(stream)
            assert await marked(engine) == set()
        finally:
            await behind.start(state, "nats")
    async with going_on(relay.run):
        await eventually(lambda: _is_marked(engine, events))
    assert set(await streamed(state)) == events


async def test_an_event_that_commits_late_is_not_skipped(
    state: MeshState, engine: AsyncEngine
) -> None:
    late = mint(Kind.EVENT, 5, unix_ms=1, random_80=1)
    async with going_on(_relay(state, engine).run), engine.connect() as slow:
        # It may be as late as a busy machine makes it.
        for limit in ("idle_in_transaction_session_timeout", "transaction_timeout"):
            await slow.execute(text(f"SET LOCAL {limit} = 0"))
        row = {"slot": 5, "batch_id": late, "type": "test.late", "events": 1, "lines": line(late)}
        await slow.execute(insert(outbox), row)
        # Later events of the same slot and of others, also behind the batch's end.
        events = await tell_apart(engine, 30, slot=5) | await tell_apart(engine, 30)
        await eventually(lambda: _is_marked(engine, events))
        assert late not in await marked(engine)
        await slow.commit()
        await eventually(lambda: _is_marked(engine, {late}))
    assert set(await streamed(state)) == events | {late}


async def test_the_relay_of_a_deposed_cell_marks_nothing(
    state: MeshState, engine: AsyncEngine
) -> None:
    events = await tell_apart(engine, 10)
    async with connect_stream(state.nats_url, "test") as stream:
        # It has read them when it is deposed.
        deposed = Meddling(stream, lambda: give_away(engine, "b"))
        await _relay(state, engine).relay_rows(deposed)
        assert await marked(engine) == set()
        # Afterwards it reads nothing any more.
        await _relay(state, engine).relay_rows(stream)
        assert await marked(engine) == set()
        await _relay(state, engine, "b").relay_rows(stream)
    assert await marked(engine) == events
    # The stream dropped the repeats by their IDs.
    assert sorted(await streamed(state)) == sorted(events)


async def test_a_relay_marks_what_is_still_its_own(state: MeshState, engine: AsyncEngine) -> None:
    kept, lost = await tell_apart(engine, 5, slot=7), await tell_apart(engine, 5, slot=8)
    async with connect_stream(state.nats_url, "test") as stream:
        meddling = Meddling(stream, lambda: give_away(engine, "b", 8))
        await _relay(state, engine).relay_rows(meddling)
    assert await marked(engine) == kept
    assert set(await streamed(state)) == kept | lost


async def test_an_event_that_cannot_be_sent_does_not_hold_up_the_others(
    state: MeshState, engine: AsyncEngine
) -> None:
    async with engine.begin() as connection:
        poison = {
            "slot": 0,
            "batch_id": mint(Kind.EVENT, 0, unix_ms=1, random_80=1),
            "type": "test.poison",
            "events": 1,
            # NATS takes no message of more than 1 MiB.
            "lines": "x" * (1024 * 1024 + 1),
        }
        await connection.execute(insert(outbox), poison)
    events = await tell_apart(engine, 5, slot=0) | await tell_apart(engine, 50)
    async with going_on(_relay(state, engine).run):
        await eventually(lambda: _is_marked(engine, events))
    assert await marked(engine) == events


async def test_a_lost_stream_is_made_anew_and_filled_by_replay(
    state: MeshState, engine: AsyncEngine
) -> None:
    old = await tell_apart(engine, 40)
    relay = _relay(state, engine)
    async with going_on(relay.run):
        await eventually(lambda: _is_marked(engine, old))
        async with connect_stream(state.nats_url, "test") as stream:
            await stream.delete_stream(STREAM)
        new = await tell_apart(engine, 5)
        await eventually(lambda: _is_marked(engine, new))
        assert await replay(engine, CELL, datetime.now(UTC) + timedelta(hours=1)) == 0
        since = datetime.now(UTC) - timedelta(hours=1)
        assert await replay(engine, CELL, since, rows_max=7) == 45
        await eventually(lambda: _is_marked(engine, old | new))
    assert set(await streamed(state)) == old | new


async def test_only_sent_events_older_than_the_retention_are_purged(
    state: MeshState, engine: AsyncEngine
) -> None:
    old = datetime.now(UTC) - timedelta(days=8)
    unix_ms = int(old.timestamp() * 1000)
    ids = [mint(Kind.EVENT, 9, unix_ms=unix_ms, random_80=number) for number in range(3)]
    common = {"slot": 9, "type": "t", "events": 1, "lines": "{}", "created_at": old}
    rows = [
        {**common, "batch_id": ids[0], "sent": True},
        {**common, "batch_id": ids[1], "sent": False},
        # The database's time counts, not the ID's.
        {**common, "batch_id": ids[2], "sent": True, "created_at": datetime.now(UTC)},
    ]
    async with engine.begin() as connection:
        await connection.execute(insert(outbox), rows)
    young = await tell_apart(engine, 3, slot=9)
    async with engine.begin() as connection:
        await connection.execute(
            update(outbox).where(outbox.c.batch_id.in_(young)).values(sent=True)
        )
    # A slot has its turn with its owner.
    await give_away(engine, "b")
    assert await _relay(state, engine).purge_sent() == 0
    await give_away(engine, CELL, 9)
    assert await _relay(state, engine).purge_sent() == 1
    async with engine.connect() as connection:
        left = set((await connection.execute(select(outbox.c.batch_id))).scalars())
    assert left == {ids[1], ids[2]} | young


async def test_what_committed_together_travels_together(
    state: MeshState, engine: AsyncEngine
) -> None:
    events = await tell(engine, 300)
    async with connect_stream(state.nats_url, "test") as stream:
        await _relay(state, engine).relay_rows(stream)
        info = await stream.stream_info(STREAM)
    assert await marked(engine) == events
    assert sorted(await streamed(state)) == sorted(events)
    # At most 128 a message.
    assert info.state.messages == 3


async def test_small_groups_share_a_message(state: MeshState, engine: AsyncEngine) -> None:
    events = await tell_apart(engine, 15)
    async with connect_stream(state.nats_url, "test") as stream:
        await _relay(state, engine).relay_rows(stream)
        info = await stream.stream_info(STREAM)
    assert await marked(engine) == events
    assert sorted(await streamed(state)) == sorted(events)
    assert info.state.messages == 1


async def test_the_envelope_says_what_happened(state: MeshState, engine: AsyncEngine) -> None:
    (event_id,) = await tell(engine, 1, slot=11, merchant_id="shop")
    async with connect_stream(state.nats_url, "test") as stream:
        await _relay(state, engine).relay_rows(stream)
        message = await stream.get_last_msg(STREAM, "cellpay.events.test.happened")
        assert message.headers["Nats-Msg-Id"] == event_id
        info = await stream.stream_info(STREAM)
    document = json.loads(message.data)
    moment = datetime.fromisoformat(document.pop("time"))
    assert abs(datetime.now(UTC) - moment) < timedelta(minutes=5)
    assert document == {
        "id": event_id,
        "type": "test.happened",
        "slot": 11,
        "merchant_id": "shop",
        "data": {"n": 1},
    }
    assert info.config.duplicate_window == 120


def _settings_file(state: MeshState, engine: AsyncEngine, directory: Path) -> Path:
    tls = ca.issue(directory / "tls", "cell-a", spiffe_id("cell", CELL))
    bootstrap = directory / "xds.json"
    # Nobody answers there: the relay must live without the control plane, too.
    bootstrap.write_text(json.dumps(xds_bootstrap("127.0.0.1:1", tls, "cell-a")))
    path = directory / "settings.json"
    document = {
        "cell": CELL,
        "region": "test",
        "listen": "127.0.0.1:1",
        "database_url": engine.url.render_as_string(hide_password=False),
        "etcd": "127.0.0.1:1",
        "nats_url": state.nats_url,
        "redis_url": state.redis_url(CELL),
        "tls": asdict(tls),
        "xds_bootstrap": str(bootstrap),
        "development": True,
        "outbox": asdict(SETTINGS),
    }
    path.write_text(json.dumps(document))
    return path


async def test_the_process_survives_kills_and_outages_and_stops_when_told(
    state: MeshState, engine: AsyncEngine, tmp_path: Path
) -> None:
    settings = _settings_file(state, engine, tmp_path)
    log = tmp_path / "relay.log"

    async def ready(times: int) -> bool:
        return log.read_text().count("relay ready") == times

    with log.open("ab") as output:
        process = await _start_relay(settings, output)
        try:
            await eventually(lambda: ready(1))
            assert os.getpriority(os.PRIO_PROCESS, process.pid) > 0
            events = await tell(engine, 100)
            await eventually(lambda: marked(engine))
            process.kill()
            await process.wait()
            process = await _start_relay(settings, output)
            await eventually(lambda: ready(2))
            await eventually(lambda: _is_marked(engine, events))
            for name in ("postgres", "nats", "redis-a"):
                await behind.kill(state, name)
            for name in ("redis-a", "nats", "postgres"):
                await behind.start(state, name)
            await engine.dispose()
            events |= await tell(engine, 20)
            await eventually(lambda: _is_marked(engine, events))
            assert process.returncode is None
            process.terminate()
            assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert set(await streamed(state)) == events, log.read_text()


async def _start_relay(settings: Path, output: IO[bytes]) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cells.relay", str(settings), stderr=output
    )
