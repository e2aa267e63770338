"""Joining a mesh: one at a time in a process, for gRPC has one client of the control plane."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from router.client import connect, mesh
from router.client.mesh import BOOTSTRAP_VARIABLE


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    monkeypatch.delenv(BOOTSTRAP_VARIABLE, raising=False)
    # Tests of a real mesh may have run in this process before.
    monkeypatch.setattr(mesh, "_open", Counter())

    def write(name: str) -> Path:
        server = {"server_uri": "127.0.0.1:9", "channel_creds": [{"type": "insecure"}]}
        (tmp_path / name).write_text(
            json.dumps({"xds_servers": [server], "node": {"id": f"client-{name}"}})
        )
        return tmp_path / name

    return write


async def test_a_process_is_in_one_mesh_at_a_time(bootstrap: Callable[[str], Path]) -> None:
    ours, others = bootstrap("ours"), bootstrap("others")
    async with connect(ours), connect(ours):
        with pytest.raises(ValueError, match=r"this process is in the mesh of .*ours"):
            async with connect(others):
                pass
    async with connect(others), connect():
        pass


async def test_without_a_bootstrap_there_is_no_mesh(bootstrap: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match=BOOTSTRAP_VARIABLE):
        async with connect():
            pass
