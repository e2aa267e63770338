"""A TCP proxy before a cell: what the network does to it, without touching the cell.

While the detour stands in etcd, under a lease of its own, xDS names the proxy's ports in place of
the cell's, to clients, to Envoy and to the other cells. Nobody restarts, and it heals by itself
when this process dies: its lease runs out, and xDS names the cell again. mTLS passes through.

It is not a network: loss is a retransmission's wait, since TCP shows loss to programs as nothing
else, and a partition cuts by who connects, which on loopback the kernel's socket table tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import structlog

from router.store.model import DETOURS_PREFIX, Store, StoreUnavailable

log = structlog.get_logger(__name__)

_LEASE_TTL_S = 4
_PIECE_BYTES_MAX = 64 * 1024
# What Linux waits at least before it sends a lost segment again.
_RETRANSMISSION_S = 0.2
# TCP_ESTABLISHED, TCP_CLOSE_WAIT … : any state but LISTEN (0A) may be our peer's end.
_LISTEN = "0A"
_SOCKET_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


@dataclass(frozen=True, slots=True)
class Weather:
    """What happens to what passes."""

    latency_s: float = 0.0
    loss_ratio: float = 0.0
    # Connections from these processes get no answer at all; asked at each new connection.
    cut_off: Callable[[], Collection[int]] = frozenset


@dataclass(slots=True)
class Passage:
    """What has come to the proxies."""

    connections: int = 0
    # Connections that got no answer.
    cut: int = 0
    pieces: int = 0
    # Pieces that waited for a retransmission.
    lost: int = 0


@contextlib.asynccontextmanager
async def detour(
    store: Store,
    group: asyncio.TaskGroup,
    cell: str,
    addresses: Collection[str],
    weather: Weather,
    passage: Passage,
) -> AsyncIterator[None]:
    """All new connections to the cell pass the proxy within the block, and are counted."""
    async with contextlib.AsyncExitStack() as stack:
        proxies = []
        for address in addresses:
            server = await asyncio.start_server(_handler(address, weather, passage), "127.0.0.1", 0)
            await stack.enter_async_context(_serving(server))
            proxies.append(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        lease = await store.lease(_LEASE_TTL_S)
        await store.commit(
            expect={}, puts={DETOURS_PREFIX + cell: json.dumps(proxies)}, lease=lease
        )

        async def keep() -> None:
            while True:
                await asyncio.sleep(_LEASE_TTL_S / 4)
                try:
                    await lease.refresh()
                except StoreUnavailable as error:
                    log.warning("the detour waits for etcd", why=str(error))

        task = group.create_task(keep())
        stack.callback(task.cancel)
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(StoreUnavailable):
                await lease.revoke()


@contextlib.asynccontextmanager
async def _serving(server: asyncio.Server) -> AsyncIterator[None]:
    try:
        yield
    finally:
        # Connections that stand end with this process: their peers go on as long as they like.
        server.close()


def _handler(
    address: str, weather: Weather, passage: Passage
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    host, _, port = address.rpartition(":")

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passage.connections += 1
        with contextlib.suppress(OSError):
            # Aside: it looks through the kernel's tables, and others wait to be let through.
            if await asyncio.to_thread(_is_cut_off, writer, weather):
                passage.cut += 1
                # A partition does not answer; it does not refuse either.
                await reader.read()
                return
            upstream, out = await asyncio.open_connection(host, int(port))
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_pass_on(reader, out, weather, passage))
                    group.create_task(_pass_on(upstream, writer, weather, passage))
            finally:
                out.close()
        writer.close()

    return handle


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, weather: Weather, passage: Passage
) -> None:
    """One direction. Pieces keep their order; each is late by its own latency, not by their sum."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=256)

    async def take() -> None:
        while piece := await reader.read(_PIECE_BYTES_MAX):
            lost = random.random() < weather.loss_ratio
            passage.pieces += 1
            passage.lost += lost
            late = weather.latency_s + (_RETRANSMISSION_S if lost else 0.0)
            await pieces.put((loop.time() + late, piece))
        await pieces.put((loop.time(), b""))

    async def give() -> None:
        while True:
            due, piece = await pieces.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not piece:
                break
            writer.write(piece)
            await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.write_eof()

    with contextlib.suppress(OSError):
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(take())
                group.create_task(give())
        except* OSError:
            writer.close()


def _is_cut_off(writer: asyncio.StreamWriter, weather: Weather) -> bool:
    pids = weather.cut_off()
    return bool(pids) and _comes_from(writer, pids)


def _comes_from(writer: asyncio.StreamWriter, pids: Collection[int]) -> bool:
    """True when one of these processes holds the other end of the connection."""
    peer = writer.get_extra_info("peername")
    ours = writer.get_extra_info("sockname")
    if peer is None or ours is None:
        return False
    inode = _inode_of(peer[1], ours[1])
    return inode is not None and any(inode in _socket_inodes(pid) for pid in pids)


def _inode_of(local_port: int, remote_port: int) -> str | None:
    # gRPC connects to 127.0.0.1 from sockets of IPv6, as ::ffff:127.0.0.1.
    tables = [path.read_text().splitlines()[1:] for path in _SOCKET_TABLES if path.exists()]
    for line in itertools.chain(*tables):
        fields = line.split()
        ports = (int(fields[1].rpartition(":")[2], 16), int(fields[2].rpartition(":")[2], 16))
        if ports == (local_port, remote_port) and fields[3] != _LISTEN:
            return fields[9]
    return None


def _socket_inodes(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(entry.path)
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found
