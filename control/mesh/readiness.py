"""Is it ready? One probe for each kind of server; none of them waits longer than a second."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PROBE_WAIT_S = 1.0
_LOG_READ_MAX = 1 << 20
# Health answers any workload of the mesh.
_PROBE_CERTIFICATE = "client"
# Line 8 of postmaster.pid, as `pg_ctl --wait` reads it.
_POSTMASTER_STATUS_LINE = 7


@dataclass(frozen=True, slots=True)
class Started:
    """A process that was started and may not be ready yet."""

    pid: int
    log: Path
    log_offset: int


Probe = Callable[[Started], bool]


def etcd_healthy(address: str) -> Probe:
    """Healthy means that it can commit, not only that it listens."""

    def probe(_: Started) -> bool:
        status, body = _get(address, "/health")
        if status != http.client.OK:
            return False
        answer = json.loads(body)
        return isinstance(answer, dict) and answer.get("health") == "true"

    return probe


def http_ok(address: str, path: str) -> Probe:
    def probe(_: Started) -> bool:
        return _get(address, path)[0] == http.client.OK

    return probe


def postmaster_ready(data: Path) -> Probe:
    """Ready as the postmaster itself says it, after recovery: no driver is needed to ask."""

    def probe(started: Started) -> bool:
        try:
            lines = (data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return (
            len(lines) > _POSTMASTER_STATUS_LINE
            and lines[0].strip() == str(started.pid)
            and lines[_POSTMASTER_STATUS_LINE].strip() == "ready"
        )

    return probe


def nats_info(address: str) -> Probe:
    """NATS greets each connection with INFO, after JetStream has recovered its streams."""

    def probe(_: Started) -> bool:
        line = _converse(address, b"")
        return line.startswith(b"INFO ") and b'"jetstream":true' in line

    return probe


def redis_pong(address: str) -> Probe:
    def probe(_: Started) -> bool:
        return _converse(address, b"PING\r\n").startswith(b"+PONG")

    return probe


def grpc_serving(address: str, tls: Path) -> Probe:
    """The gRPC health service answers SERVING over mutual TLS; `tls`: the mesh's certificates."""

    def probe(_: Started) -> bool:
        # The base components are started without gRPC: its import takes a while.
        import grpc
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        credentials = grpc.ssl_channel_credentials(
            (tls / "ca.pem").read_bytes(),
            (tls / f"{_PROBE_CERTIFICATE}.key").read_bytes(),
            (tls / f"{_PROBE_CERTIFICATE}.pem").read_bytes(),
        )
        options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(address, credentials, options=options) as channel:
            # Its methods are made at run time, which its types do not know.
            stub: Any = health_pb2_grpc.HealthStub(channel)
            try:
                answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=_PROBE_WAIT_S)
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    return probe


def log_says(text: str) -> Probe:
    """For processes that listen nowhere: this start has written this text."""

    def probe(started: Started) -> bool:
        try:
            with open(started.log, "rb") as log:
                log.seek(started.log_offset)
                return text.encode() in log.read(_LOG_READ_MAX)
        except OSError:
            return False

    return probe


def _get(address: str, path: str) -> tuple[int, bytes]:
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=_PROBE_WAIT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def _converse(address: str, request: bytes) -> bytes:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_PROBE_WAIT_S) as connection:
            if request:
                connection.sendall(request)
            return connection.makefile("rb").readline()
    except OSError:
        return b""
