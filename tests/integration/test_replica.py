"""Reads that may be old, on a real streaming replica of PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select
from sqlalchemy.engine import URL, make_url

from cells.database import make_engine
from cells.reading import ReadEngine, fetch
from cells.replica import Notes, Replica, staleness_of
from cells.settings import DatabaseSettings
from tests.integration.behind import eventually
from tests.integration.books import database_server

pytestmark = pytest.mark.mesh
ON_A_REPLICA: Any = select(func.pg_is_in_recovery())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def replica_server(primary: URL, binaries: Path) -> Iterator[tuple[URL, subprocess.Popen[bytes]]]:
    """A streaming replica of the primary, in a directory of its own."""
    directory = Path(tempfile.mkdtemp(prefix="cellpay-replica-", dir="/var/tmp"))
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:
        as_user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        shutil.chown(directory, "nobody", "nogroup")
    data, port = directory / "data", _free_port()
    place = ["-h", str(primary.host), "-p", str(primary.port), "-U", str(primary.username)]
    copied = [str(binaries / "pg_basebackup"), *place, "-D", str(data), "-R", "-c", "fast"]
    subprocess.run(copied, check=True, capture_output=True, cwd="/", **as_user)
    words = [str(binaries / "postgres"), "-D", str(data), "-p", str(port)]
    for setting in ("listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"):
        words += ["-c", setting]
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", **as_user
    )
    try:
        yield primary.set(port=port), process
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(30)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def primary() -> Iterator[URL]:
    if "DATABASE_URL" in os.environ:
        pytest.skip("CockroachDB and foreign servers have replicas of their own")
    with database_server() as url:
        yield url


@pytest.fixture
async def engines(
    primary: URL,
) -> AsyncIterator[tuple[ReadEngine, Replica, subprocess.Popen[bytes]]]:
    with replica_server(primary, binaries_of(primary)) as (url, process):
        made = [
            make_engine(
                make_url(place).render_as_string(hide_password=False), "test",
                DatabaseSettings(), pool_size=2,
            )
            for place in (primary, url)
        ]  # fmt: skip
        replica = Replica(made[1], made[0])
        reads = ReadEngine(made[0], replica)
        try:
            yield reads, replica, process
        finally:
            await reads.dispose()


def binaries_of(primary: URL) -> Path:
    """Of the server that runs: as root it is a copy that its user can reach."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"/postgres") and str(primary.port).encode() in words:
            return Path(words[0].decode()).parent
    raise AssertionError("the primary does not run")


async def _is_read_from_replica(reads: ReadEngine, staleness_max_s: float | None) -> bool:
    return bool((await fetch(reads, ON_A_REPLICA, staleness_max_s))[0][0])


async def test_a_replica_answers_only_who_may_be_told_old_news_and_only_with_proof(
    engines: tuple[ReadEngine, Replica, subprocess.Popen[bytes]],
) -> None:
    reads, replica, process = engines
    # Nothing is known of its age yet.
    assert not await _is_read_from_replica(reads, 3600)
    await replica.look()
    await eventually(lambda: _is_read_from_replica(reads, 3600))
    assert not await _is_read_from_replica(reads, None)
    process.kill()
    await asyncio.to_thread(process.wait)
    assert not await _is_read_from_replica(reads, 3600)


async def test_a_primary_that_is_taken_for_a_replica_proves_nothing(primary: URL) -> None:
    url = primary.render_as_string(hide_password=False)
    engine = make_engine(url, "test", DatabaseSettings(), pool_size=2)
    replica = Replica(engine, engine)
    await replica.look()
    async with engine.connect() as connection:
        assert not await replica.is_fresh(connection, 3600)
    await engine.dispose()


@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(0, 50)), max_size=8),
    st.integers(0, 400),
    st.floats(0, 200),
)
def test_what_notes_prove_is_so(
    gaps: list[tuple[float, int]], replayed: int, staleness_max_s: float
) -> None:
    """An independent look: some note of an allowed age has been replayed."""
    clock = {"now": 0.0}
    notes = Notes(lambda: clock["now"])
    position = 0
    taken = []
    for gap, growth in gaps:
        clock["now"] += gap
        position += growth
        notes.note(clock["now"], position)
        taken.append((clock["now"], position))
    allowed = [at for moment, at in taken if moment >= clock["now"] - staleness_max_s]
    assert notes.proves(replayed, staleness_max_s) == any(replayed >= at for at in allowed)


@pytest.mark.parametrize(
    ("value", "seconds"), [("30", 30.0), ("0.5", 0.5), ("0", None), ("-1", None), ("x", None)]
)
def test_the_callers_word_is_read_from_metadata(value: str, seconds: float | None) -> None:
    class Context:
        def invocation_metadata(self) -> list[tuple[str, str]]:
            return [("a", "b"), ("x-cellpay-staleness-max-s", value)]

    assert staleness_of(Context()) == seconds
