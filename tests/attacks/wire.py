"""Connections below gRPC: TLS with a certificate, then whatever bytes an attacker likes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from h2 import config, connection, events, exceptions

from router.client import TlsFiles

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
HEADERS, CONTINUATION, PING = 1, 9, 6


def tls_context(files: TlsFiles, *protocols: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=files.ca)
    context.load_cert_chain(files.certificate, files.key)
    context.check_hostname = False
    context.set_alpn_protocols(list(protocols))
    return context


async def connected(
    address: str, files: TlsFiles, *protocols: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(
        host, int(port), ssl=tls_context(files, *(protocols or ("h2",)))
    )


@dataclass
class Http2:
    """One connection; reads in the background what the server says."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    state: Any = field(
        default_factory=lambda: connection.H2Connection(
            config.H2Configuration(client_side=True, validate_outbound_headers=False)
        )
    )
    # Stream → :status, by headers that came.
    statuses: dict[int, str] = field(default_factory=dict)
    headers: dict[int, dict[str, str]] = field(default_factory=dict)
    resets: dict[int, int] = field(default_factory=dict)
    # The error code of a GOAWAY.
    goaway: int | None = None
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    # The server has said its bounds, and heard that we know them.
    settled: asyncio.Event = field(default_factory=asyncio.Event)

    async def flush(self) -> None:
        data = self.state.data_to_send()
        if data:
            self.writer.write(data)
        with contextlib.suppress(ConnectionError, RuntimeError):
            await self.writer.drain()

    async def raw(self, data: bytes) -> None:
        """Bytes that no library would send."""
        self.writer.write(data)
        with contextlib.suppress(ConnectionError, RuntimeError):
            await self.writer.drain()

    async def listen(self) -> None:
        try:
            while data := await self.reader.read(65_536):
                heard = self.state.receive_data(data)
                for event in heard:
                    self._take(event)
                await self.flush()
                if any(isinstance(event, events.RemoteSettingsChanged) for event in heard):
                    self.settled.set()
        except (OSError, exceptions.ProtocolError):
            pass
        finally:
            self.closed.set()

    def _take(self, event: Any) -> None:
        match event:
            case events.ResponseReceived() | events.TrailersReceived():
                found = {name.decode(): value.decode() for name, value in event.headers}
                self.headers.setdefault(event.stream_id, {}).update(found)
                if ":status" in found:
                    self.statuses[event.stream_id] = found[":status"]
            case events.StreamReset():
                self.resets[event.stream_id] = int(event.error_code)
            case events.ConnectionTerminated():
                self.goaway = int(event.error_code or 0)
            case events.DataReceived():
                with contextlib.suppress(exceptions.ProtocolError):
                    self.state.acknowledge_received_data(
                        event.flow_controlled_length, event.stream_id
                    )

    async def ended(self, stream: int, timeout: float = 10.0) -> bool:
        """Whether this stream, or all, came to an end."""
        async with asyncio.timeout(timeout):
            while not self.closed.is_set():
                if stream in self.resets or "grpc-status" in self.headers.get(stream, {}):
                    return True
                if self.statuses.get(stream, "200") != "200":
                    return True
                await asyncio.sleep(0.005)
        return True

    async def gone(self, timeout: float = 10.0) -> bool:
        """Whether the server ended the connection."""
        try:
            async with asyncio.timeout(timeout):
                await self.closed.wait()
        except TimeoutError:
            return False
        return True


@contextlib.asynccontextmanager
async def http2(address: str, files: TlsFiles, *, settle: bool = True) -> AsyncIterator[Http2]:
    """`settle`: waits for the server's SETTINGS: gRPC holds a client to those that it has
    acknowledged (docs/security.md, what is left)."""
    reader, writer = await connected(address, files)
    found = Http2(reader, writer)
    found.state.initiate_connection()
    await found.flush()
    async with asyncio.TaskGroup() as group:
        listening = group.create_task(found.listen())
        try:
            if settle:
                await asyncio.wait_for(found.settled.wait(), 10)
            yield found
        finally:
            listening.cancel()
            writer.transport.abort()


def grpc_headers(path: str, *more: tuple[str, str]) -> list[tuple[str, str]]:
    return [
        (":method", "POST"),
        (":scheme", "https"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *more,
    ]


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def grpc_message(data: bytes, *, compressed: bool = False) -> bytes:
    return struct.pack(">BI", compressed, len(data)) + data
