"""A lean gRPC load generator: HTTP/2 frames by hand over mTLS, a process of its own.

A full client would take more of the two cores than the server under test. This one writes
unary calls with distinct bodies, keeps a fixed number in flight a connection, and reads answers
by their frames, in one thread for all connections (threads would wait for each other's turn):
a stream that ended with a DATA frame succeeded (a failed unary call of gRPC has headers and
trailers only). What it counted is checked against the database by the benchmark.
Frames: RFC 9113; header blocks: RFC 7541; messages: gRPC over HTTP/2.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from router.client import TlsFiles

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 0x1, 0x4, 0x1
_WINDOW_MAX = 2**31 - 1
_WINDOW_DEFAULT = 65_535
_READ_BYTES = 262_144
# What every peer takes (RFC 9113, 4.2).
_FRAME_MAX = 16_384
# The longest body of a job; the connection's window must have room for it.
_BODY_MAX = 32_768


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _indexed_later(name: str, value: str) -> bytes:
    """A literal that both sides remember (RFC 7541, 6.2.1), as gRPC's own clients send them."""
    raw_name, raw_value = name.encode(), value.encode()
    assert len(raw_name) < 127
    assert len(raw_value) < 127
    return b"\x40" + bytes([len(raw_name)]) + raw_name + bytes([len(raw_value)]) + raw_value


def _literal(name: str, value: str) -> bytes:
    """One that nobody remembers (RFC 7541, 6.2.2), for a value that never comes again."""
    raw = value.encode()
    # Always long: a prefix of seven bits that is full, and the rest in two bytes (5.1).
    assert 127 <= len(raw) < 127 + 128 * 128
    rest = len(raw) - 127
    length = bytes([0x7F, 0x80 | rest % 128, rest // 128])
    return b"\x00" + bytes([len(name)]) + name.encode() + length + raw


class Signed(NamedTuple):
    """A message, and the header that signs it."""

    body: bytes
    authorization: str


@cache
def _header_blocks(path: str, more: tuple[tuple[str, str], ...]) -> tuple[bytes, bytes]:
    """The first call's header block, and every later one's: a byte a header."""
    headers = (
        (":method", "POST"), (":scheme", "https"), (":path", path),
        (":authority", "localhost"), ("content-type", "application/grpc"), ("te", "trailers"),
        *more,
    )  # fmt: skip
    first = b"".join(_indexed_later(name, value) for name, value in headers)
    # The newest entry of the dynamic table is 62.
    last = 61 + len(headers)
    return first, bytes(0x80 | (last - number) for number in range(len(headers)))


@dataclass(slots=True)
class Result:
    """What a run saw. Latencies in seconds, of successful calls, in the order of their ends."""

    seconds: float = 0.0
    failed: int = 0
    latencies: list[float] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    def percentile_ms(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000


class Connection:
    """One HTTP/2 connection to one server."""

    def __init__(
        self, address: str, tls: TlsFiles, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        """`headers`: of every call, beside gRPC's own."""
        self._headers = headers
        host, _, port = address.rpartition(":")
        context = ssl.create_default_context(cafile=tls.ca)
        context.load_cert_chain(tls.certificate, tls.key)
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection((host, int(port)))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = context.wrap_socket(plain, server_hostname="localhost")
        self._buffer = b""
        # What the header table holds.
        self._path = ""
        self._stream = 1
        self._send_window = _WINDOW_DEFAULT
        settings = struct.pack(">HI", 4, _WINDOW_MAX)
        self._socket.sendall(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, settings)
            + _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _WINDOW_MAX - _WINDOW_DEFAULT))
        )

    def close(self) -> None:
        self._socket.close()

    def begin(
        self,
        path: str,
        bodies: Iterator[bytes | Signed],
        in_flight: int,
        per_s: float | None,
        *,
        keep_bodies: bool,
    ) -> None:
        self.result = Result()
        self._started: dict[int, float] = {}
        self._answered: dict[int, bytes] = {}
        self._calls = (path, bodies)
        self._in_flight = in_flight
        self._per_s = per_s
        self._keep_bodies = keep_bodies
        self._began = time.perf_counter()
        self._sent = 0
        self._exhausted = False

    @property
    def ended(self) -> bool:
        return self._exhausted and not self._started

    @property
    def _has_room(self) -> bool:
        return len(self._started) < self._in_flight and self._send_window > _BODY_MAX

    def due(self) -> float | None:
        """When the next call of an open loop is, if there is room for it."""
        if self._per_s is None or self._exhausted or not self._has_room:
            return None
        return self._began + self._sent / self._per_s

    def send(self) -> None:
        """What is due, as far as there is room."""
        path, bodies = self._calls
        out = []
        now = time.perf_counter()
        while not self._exhausted and self._has_room:
            due = now if self._per_s is None else self._began + self._sent / self._per_s
            if due > now:
                break
            body = next(bodies, None)
            if body is None:
                self._exhausted = True
                break
            out.append(self._call(path, body))
            self._started[self._stream - 2] = due
            self._sent += 1
        if out:
            self._socket.sendall(b"".join(out))

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> None:
        """What has come. Waits when nothing has."""
        self._read()
        while self._socket.pending():
            self._read()

    def _call(self, path: str, body: bytes | Signed) -> bytes:
        first, later = _header_blocks(path, self._headers)
        block = later if path == self._path else first
        if isinstance(body, Signed):
            block += _literal("authorization", body.authorization)
            body = body.body
        self._path = path
        stream = self._stream
        self._stream += 2
        payload = b"\x00" + struct.pack(">I", len(body)) + body
        self._send_window -= len(payload)
        frames = [_frame(_HEADERS, _END_HEADERS, stream, block)]
        for start in range(0, len(payload), _FRAME_MAX):
            piece = payload[start : start + _FRAME_MAX]
            last = start + _FRAME_MAX >= len(payload)
            frames.append(_frame(_DATA, _END_STREAM if last else 0, stream, piece))
        return b"".join(frames)

    def _read(self) -> None:
        data = self._socket.recv(_READ_BYTES)
        if not data:
            raise ConnectionError("the server closed the connection")
        buffer = self._buffer + data
        position, end = 0, len(buffer)
        replies = []
        while end - position >= 9:
            length = int.from_bytes(buffer[position : position + 3], "big")
            if end - position < 9 + length:
                break
            kind, flags = buffer[position + 3], buffer[position + 4]
            stream = int.from_bytes(buffer[position + 5 : position + 9], "big")
            payload = buffer[position + 9 : position + 9 + length]
            position += 9 + length
            if kind == _DATA:
                self._answered[stream] = self._answered.get(stream, b"") + payload
            if (kind in (_HEADERS, _DATA) and flags & _END_STREAM) or kind == _RST_STREAM:
                self._end(stream)
            elif kind == _SETTINGS and not flags & _ACK:
                replies.append(_frame(_SETTINGS, _ACK, 0, b""))
            elif kind == _PING and not flags & _ACK:
                replies.append(_frame(_PING, _ACK, 0, payload))
            elif kind == _WINDOW_UPDATE and stream == 0:
                self._send_window += int.from_bytes(payload, "big")
            elif kind == _GOAWAY:
                raise ConnectionError(f"GOAWAY: {payload[8:]!r}")
        self._buffer = buffer[position:]
        if replies:
            self._socket.sendall(b"".join(replies))

    def _end(self, stream: int) -> None:
        since = self._started.pop(stream, None)
        body = self._answered.pop(stream, None)
        if since is None:
            return
        if body is None:
            self.result.failed += 1
            return
        self.result.latencies.append(time.perf_counter() - since)
        if self._keep_bodies:
            self.result.bodies.append(body[5:])


def run(
    connections: Sequence[Connection],
    path: str,
    bodies: Sequence[Iterator[bytes | Signed]],
    *,
    in_flight: int,
    per_s: float | None = None,
    keep_bodies: bool = False,
) -> list[Result]:
    """Calls `path` with each body until they are all answered: a result a connection.

    `in_flight` and `per_s` are each connection's. With `per_s` it is an open loop: calls begin when
    they are due, whether the server keeps up or not, and latencies count from then (Gil Tene's
    coordinated omission, corrected).
    """
    # select(2): epoll's timeouts are whole milliseconds.
    with selectors.SelectSelector() as selector:
        for connection, mine in zip(connections, bodies, strict=True):
            connection.begin(path, mine, in_flight, per_s, keep_bodies=keep_bodies)
            selector.register(connection, selectors.EVENT_READ, connection)
        active = list(connections)
        begin = time.perf_counter()
        while active:
            for connection in active:
                connection.send()
            for connection in [each for each in active if each.ended]:
                connection.result.seconds = time.perf_counter() - begin
                selector.unregister(connection)
                active.remove(connection)
            dues = [due for connection in active if (due := connection.due()) is not None]
            wait = max(0.0, min(dues) - time.perf_counter()) if dues else None
            for key, _ in selector.select(wait) if active else ():
                key.data.read()
    return [connection.result for connection in connections]
