"""Everything that a mesh writes anywhere, sink by sink, for whoever seeks what must not be there.

The write-ahead log is left out: it holds what the tables hold.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import redis.asyncio
from nats.js.errors import NotFoundError
from sqlalchemy import text

from cells.outbox.stream import STREAM, connect_stream
from control.cellctl.session import Session

# Master keys are at home there.
_SECRET_FOLDERS = ("keystore", "tls")
# What another program writes next to us may be anything.
_FILE_BYTES_MAX = 32 * 1024 * 1024
_TABLES = text("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")


async def database(session: Session) -> AsyncIterator[tuple[str, bytes]]:
    """Each table with all its rows, as text."""
    async with session.database() as engine, engine.connect() as connection:
        for name in sorted((await connection.execute(_TABLES)).scalars()):
            # Bytes come as hexadecimal: `spellings` has that too.
            rows = await connection.execute(text(f"SELECT CAST(t AS text) FROM {name} AS t"))
            yield f"table {name}", "\n".join(rows.scalars()).encode()


async def stream(session: Session) -> AsyncIterator[tuple[str, bytes]]:
    async with connect_stream(session.state.nats_url, "sinks") as jetstream:
        number = 0
        try:
            while True:
                message = await jetstream.get_msg(STREAM, seq=number + 1, next=True, subject=">")
                number = int(message.seq)
                headers = repr(message.headers or "").encode()
                yield f"message {number}", message.subject.encode() + headers + message.data
        except NotFoundError:
            return


async def caches(session: Session) -> AsyncIterator[tuple[str, bytes]]:
    """Every key of every cell's Redis, with its value."""
    for cell in session.state.cells:
        client = redis.asyncio.Redis.from_url(session.state.redis_url(cell))
        try:
            async for key in client.scan_iter("*"):
                yield f"redis-{cell}", key + b" " + repr(await _value(client, key)).encode()
        finally:
            await client.aclose()


async def _value(client: redis.asyncio.Redis, key: bytes) -> object:
    kind: Any = await client.type(key)
    match kind.decode():
        case "string":
            return await client.get(key)
        case "hash":
            return await client.hgetall(key)
        case "list":
            return await client.lrange(key, 0, -1)
        case "set":
            return await client.smembers(key)
        case "zset":
            return await client.zrange(key, 0, -1, withscores=True)
        case other:
            raise AssertionError(f"{key!r} is a {other}, which nobody looks into")


async def etcd(session: Session) -> AsyncIterator[tuple[str, bytes]]:
    async with session.store() as store:
        listing = await store.list("/")
        for key, item in listing.items.items():
            yield f"etcd {key}", f"{key} {item.value}".encode()


def files(session: Session, since: float) -> Iterator[tuple[str, bytes]]:
    """Of the mesh's directory, logs and the servers' own files among them; and temporary files
    that have been written since."""
    for path in _files_below(session.data):
        if path.relative_to(session.data).parts[0] not in _SECRET_FOLDERS:
            yield from _content(path, 0)
    for path in Path(tempfile.gettempdir()).glob("*"):
        yield from _content(path, since)


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield Path(parent) / name


def _content(path: Path, since: float) -> Iterator[tuple[str, bytes]]:
    try:
        status = path.lstat()
        regular = stat.S_ISREG(status.st_mode) and status.st_size <= _FILE_BYTES_MAX
        if regular and status.st_mtime >= since:
            yield str(path), path.read_bytes()
    except OSError:
        # Gone meanwhile, or not ours to read.
        return


def processes(session: Session) -> Iterator[tuple[str, bytes]]:
    """What `ps` shows to everybody."""
    for name, record in session.state.processes.items():
        for what in ("cmdline", "environ"):
            try:
                yield f"{what} of {name}", Path(f"/proc/{record.identity.pid}/{what}").read_bytes()
            except OSError:
                continue
