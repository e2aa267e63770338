"""A TCP proxy in front of a database, for a cell that shall lose it while it lives on.

Broken, it swallows what comes on connections that are open and lets new ones hang: to the cell its
database is silent, and its health checks, its lease and the rest of the mesh are as they were.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

_END_S = 10.0


class Proxy:
    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._whole = asyncio.Event()
        self._whole.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    def break_off(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        """Connections of the bad time are closed; new ones go through."""
        self._whole.set()
        for writer in list(self._writers):
            writer.close()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.mend()
            async with asyncio.timeout(_END_S):
                while self._writers:
                    await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._whole.wait()
            up_reader, up_writer = await asyncio.open_connection(*self._upstream)
            self._writers.add(up_writer)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, up_writer))
                    group.create_task(self._pump(up_reader, writer))
            except* (OSError, EOFError):
                pass
            finally:
                self._writers.discard(up_writer)
                up_writer.close()
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._whole.wait()
            writer.write(data)
            await writer.drain()
        raise EOFError
