"""A mesh is rolled from yesterday's version to today's, slot by slot, while money moves.

The order is docs/upgrades.md's: the schema, the controllers, then cell by cell. Cells of both
versions stand side by side on one database and move money to each other; at the end the books are
audited.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pytest
from cellpay.control.v1 import control_pb2 as pb

from control.cellctl.session import Session
from control.mesh import launcher
from control.mesh.options import MeshOptions
from router.client import Mesh, connect_direct
from tests.chaos.test_stories import cells, money_moving, operate
from tests.conftest import LEASE_TTL_S, PATIENT

pytestmark = pytest.mark.chaos
ROOT = Path(__file__).resolve().parents[2]
_DAY_S = 86_400
# What a cell takes over in one step: versions share a cell's slots in between.
_WAVES = 4
_SLOTS = 1024
OVERRIDES = {
    "settlement": {"interval_s": 2.0},
    "transfers": {"recovery_age_s": 2.0, "recovery_interval_s": 0.5, "try_timeout_s": 5.0},
}


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else b""


def version_before() -> str:
    """The commit that was the newest a day before this one's, or else the one before; empty when
    this clone does not have it."""
    if _git("rev-parse", "--is-shallow-repository").strip() != b"false":
        return ""
    now_s = int(_git("log", "-1", "--format=%ct") or 0)
    yesterday = _git("rev-list", "-1", f"--before={now_s - _DAY_S}", "HEAD")
    return (yesterday or _git("rev-parse", "HEAD~1")).decode().strip()


@pytest.fixture(scope="module")
def yesterday(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The environment of a process of the version before, with its own sources and stubs."""
    commit = version_before()
    if not commit:
        pytest.skip("a shallow clone, or one of a single commit, has no version before this one")
    folder = tmp_path_factory.mktemp("yesterday")
    with tarfile.open(fileobj=BytesIO(_git("archive", commit))) as archive:
        archive.extractall(folder, filter="data")
    path = f"{folder}{os.pathsep}{folder / 'protos' / 'gen'}"
    environment = {"PYTHONPATH": path}
    subprocess.run(
        [sys.executable, "protos/build_stubs.py"],
        cwd=folder, env={**os.environ, **environment}, check=True, capture_output=True,
    )  # fmt: skip
    return environment


@pytest.fixture
def rolled(tmp_path: Path, yesterday: Mapping[str, str]) -> Iterator[Session]:
    """Today's schema and controller; cells and relays are yesterday's."""
    data = tmp_path / "mesh"
    only = ("base", "schema", "controller")
    options = MeshOptions(only=only, cell_overrides=OVERRIDES, lease_ttl_s=LEASE_TTL_S)
    try:
        with launcher.running(data, 2, options):
            with ThreadPoolExecutor() as starting:
                names = ("cell-a", "cell-b", "relay-a", "relay-b")
                list(starting.map(lambda name: _start_old(data, name, yesterday), names))
            launcher.start(data, "envoy")
            yield Session.open(data)
    finally:
        launcher.remove(data)


def _start_old(data: Path, name: str, yesterday: Mapping[str, str]) -> None:
    launcher.start(data, name, environment=yesterday)


def version_of(session: Session, name: str, yesterday: Mapping[str, str]) -> str:
    """By the sources that the process was started with."""
    (pid,) = [item.pid for item in launcher.status(session.data) if item.name == name]
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    is_old = f"PYTHONPATH={yesterday['PYTHONPATH']}".encode() in environment
    return "yesterday's" if is_old else "today's"


async def move(session: Session, first: int, last: int, target: str) -> None:
    operation = await operate(
        session, kind=pb.Operation.KIND_MOVE, first=first, last=last, target=target
    )
    assert operation.step == pb.Operation.STEP_DONE, operation


async def replace(session: Session, cell: str) -> None:
    """Ends the processes of a cell without slots, and starts today's."""
    assert not (await cells(session))[cell].slots
    async with asyncio.TaskGroup() as group:
        for name in (f"cell-{cell}", f"relay-{cell}"):
            group.create_task(asyncio.to_thread(launcher.restart, session.data, name))


async def roll(session: Session, yesterday: Mapping[str, str]) -> None:
    """Cell b first; then slot by slot from yesterday's to today's, and back to today's a."""
    step = _SLOTS // _WAVES
    await move(session, 0, _SLOTS - 1, "a")
    await replace(session, "b")
    assert version_of(session, "cell-a", yesterday) == "yesterday's"
    assert version_of(session, "cell-b", yesterday) == "today's"
    for first in range(0, _SLOTS, step):
        await move(session, first, first + step - 1, "b")
    await replace(session, "a")
    await move(session, 0, _SLOTS // 2 - 1, "a")


async def test_a_mesh_is_rolled_slot_by_slot_and_its_books_hold(
    rolled: Session, yesterday: Mapping[str, str]
) -> None:
    # By Envoy: this process may be in another mesh by xDS, of other tests.
    async with connect_direct(rolled.edge_address, rolled.tls("client"), policy=PATIENT) as mesh:
        await _roll_under_load(rolled, mesh, yesterday)
    for name in ("cell-a", "cell-b", "relay-a", "relay-b"):
        assert version_of(rolled, name, yesterday) == "today's"


async def _roll_under_load(session: Session, mesh: Mesh, yesterday: Mapping[str, str]) -> None:
    """Money moves all the while; `money_moving` audits it at the end."""
    async with money_moving(session, mesh, mesh, "upgrade") as bank:
        await roll(session, yesterday)
        # Each version has done some of it.
        assert bank.counts["transfer"] > 0
