"""The control plane as operators and strangers meet it: cellctl, refusals, the audit log."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from cellpay.accounts.v1 import accounts_pb2
from cellpay.control.v1 import control_pb2 as pb

from control.cellctl.session import Session
from control.mesh import launcher
from router.client import Mesh
from router.errors import details_of
from router.slots import slot_of_user

pytestmark = pytest.mark.mesh
ROOT = Path(__file__).resolve().parents[2]


def cellctl(session: Session, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a person runs it."""
    return subprocess.run(
        [sys.executable, "-m", "control.cellctl.main", *arguments],
        cwd=ROOT,
        env={**os.environ, "CELLPAY_DATA": str(session.data), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def document(session: Session, *arguments: str) -> Any:
    done = cellctl(session, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def test_status_shows_every_process_and_every_slot_once(session: Session, mesh: Mesh) -> None:
    request = accounts_pb2.OpenAccountRequest(user_id="status", currency="USD")
    await mesh.accounts.OpenAccount(request)
    status = document(session, "status")
    names = {item["name"] for item in status["processes"] if item["alive"]}
    assert {"etcd", "postgres", "nats", "envoy", "controller"} <= names
    assert {f"{role}-{cell}" for role in ("cell", "relay", "redis") for cell in "abc"} <= names
    assert all(item["pid"] for item in status["processes"] if item["alive"])
    assert sum(item["slots"] for item in status["cells"]) == 1024
    assert {item["health"] for item in status["cells"]} == {"healthy"}
    assert {item["region"] for item in status["cells"]} == {"region-a", "region-b", "region-c"}
    assert {item["kind"] for item in status["subscribers"]} >= {"client", "edge"}
    assert all(item["nacks"] == 0 for item in status["subscribers"])


def test_up_on_a_running_mesh_changes_nothing(session: Session) -> None:
    before = {item.name: item.pid for item in launcher.status(session.data)}
    done = cellctl(session, "up", "--cells", "3", "--detach")
    assert done.returncode == 0, done.stderr
    assert {item.name: item.pid for item in launcher.status(session.data)} == before


def test_route_names_the_home_of_a_user(session: Session) -> None:
    found = document(session, "route", "ann")
    assert found["slot"] == slot_of_user("ann")
    assert found["region"] == f"region-{found['cell']}"


def test_slots_move_there_and_back_and_the_books_hold(session: Session) -> None:
    done = cellctl(session, "move", "--slots", "5-9", "--to", "c", "--reason", "a test")
    assert done.returncode == 0, done.stderr
    ranges = {
        piece["slots"]: (item["cell"], piece["epoch"])
        for item in document(session, "status")["cells"]
        for piece in item["ranges"]
    }
    cell, epoch = ranges["5-9"]
    assert cell == "c"
    assert cellctl(session, "restore", "a", "--reason", "a test").returncode == 0
    newest = document(session, "operations")[0]
    assert newest["kind"] == "restore"
    assert newest["step"] == "done"
    assert newest["moves"][0]["epoch"] == epoch + 1
    assert newest["reason"] == "a test"
    one = cellctl(session, "operations", newest["operation_id"])
    assert "published" in one.stdout
    verified = cellctl(session, "verify")
    assert verified.returncode == 0, verified.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("failover", "x", "--reason", "r"), "UNKNOWN_CELL"),
        (("failover", "a", "--to", "x", "--reason", "r"), "UNKNOWN_CELL"),
        (("failover", "a", "--to", "a", "--reason", "r"), "NO_TARGET"),
        (("restore", "a", "--reason", "r"), "NOTHING_TO_MOVE"),
        (("drain", "a", "--reason", " "), "INVALID_REQUEST"),
        (("move", "--slots", "0-1024", "--to", "a", "--reason", "r"), "0-1023"),
        (("move", "--slots", "x", "--to", "a", "--reason", "r"), "not a slot"),
        (("operations", "op-none"), "OPERATION_NOT_FOUND"),
        (("load", "/nonexistent.csv"), "does not exist"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    session: Session, arguments: tuple[str, ...], said: str
) -> None:
    done = cellctl(session, *arguments)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_mesh_every_command_says_how_to_start_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "control.cellctl.main", "status", "--data", str(tmp_path / "none")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "cellctl up" in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_dead_cell_is_no_target(session: Session) -> None:
    await asyncio.to_thread(cellctl, session, "policy", "--no-automatic-failover", "--reason", "t")
    launcher.kill(session.data, "cell-c")
    try:
        for _ in range(100):
            cells = {item["cell"]: item for item in document(session, "status")["cells"]}
            if cells["c"]["health"] == "dead":
                break
            await asyncio.sleep(0.1)
        to_dead = cellctl(session, "failover", "a", "--to", "c", "--reason", "r")
        assert "TARGET_DEAD" in to_dead.stderr
        assert "CELL_DEAD" in cellctl(session, "drain", "c", "--reason", "r").stderr
        assert document(session, "route", "ann")["cell"] in "abc"
        owned = {item["cell"]: item["slots"] for item in document(session, "status")["cells"]}
        assert owned["c"] > 0, "the policy is off, and still it failed over"
    finally:
        await asyncio.to_thread(launcher.start, session.data, "cell-c")
        done = cellctl(session, "policy", "--automatic-failover", "--reason", "t")
    assert "on" in done.stdout


async def test_a_second_operation_is_refused_while_one_runs(session: Session) -> None:
    async def start() -> pb.Operation | grpc.aio.AioRpcError:
        async with session.control() as control:
            try:
                return await control.StartOperation(
                    pb.StartOperationRequest(
                        kind=pb.Operation.KIND_MOVE, first=0, last=300, target="b", reason="race"
                    ),
                    timeout=10,
                )
            except grpc.aio.AioRpcError as error:
                return error

    results = await asyncio.gather(*(start() for _ in range(6)))
    taken = [item for item in results if isinstance(item, pb.Operation)]
    refused = [item for item in results if isinstance(item, grpc.aio.AioRpcError)]
    assert len(taken) == 1
    reasons = {details_of(error).reason for error in refused}
    assert reasons <= {"OPERATION_IN_PROGRESS", "MAP_CHANGED", "NOTHING_TO_MOVE"}
    for _ in range(200):
        if document(session, "operations")[0]["step"] == "done":
            break
        await asyncio.sleep(0.05)
    assert cellctl(session, "restore", "a", "--reason", "back").returncode == 0


@pytest.mark.parametrize("who", ["client", "cell-a", "edge"])
async def test_only_operators_operate_and_denials_are_audited(session: Session, who: str) -> None:
    async with session.control(who) as control:
        await control.GetSlotMap(pb.GetSlotMapRequest(), timeout=5)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await control.StartOperation(
                pb.StartOperationRequest(
                    kind=pb.Operation.KIND_DRAIN, cell="a", reason=f"denied to {who}"
                ),
                timeout=5,
            )
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await control.SetFailoverPolicy(
                pb.SetFailoverPolicyRequest(reason=f"denied to {who}"), timeout=5
            )
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    records = document(session, "audit")
    mine = [item for item in records if item["reason"] == f"denied to {who}"]
    assert len(mine) == 2
    assert all(item["verdict"].startswith("denied") for item in mine)
    assert all(item["actor"].startswith("spiffe://cellpay.local/") for item in mine)


def test_every_operation_has_its_audit_record(session: Session) -> None:
    records = document(session, "audit")
    for operation in document(session, "operations"):
        named = [item for item in records if operation["operation_id"] in item["detail"]]
        assert len(named) == 1
        assert named[0]["verdict"] == "allowed"
        assert named[0]["reason"] == operation["reason"]


def test_a_file_is_loaded_once_however_often(session: Session, tmp_path: Path) -> None:
    rows = ["user_id,ordered_at,merchant_id,amount,currency"]
    rows += [f"load-{n % 20},1997-01-0{n % 9 + 1},load-shop,{n}.25,USD" for n in range(60)]
    rows += ["load-1,1997-01-01,load-shop,0.00,USD", "load-1,never,load-shop,1.00,USD"]
    path = tmp_path / "purchases.csv"
    path.write_text("\n".join(rows) + "\n")
    first = cellctl(session, "load", str(path))
    assert first.returncode == 0, first.stderr
    assert "62 rows: 60 paid now, 0 were paid before, 2 rejected" in first.stdout
    assert "load-shop: 1,785.00 USD" in first.stdout
    side = (tmp_path / "purchases.rejected.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in side[1:]] == ["62", "63"]
    before = document(session, "verify")["figures"]
    second = cellctl(session, "load", str(path))
    assert "62 rows: 0 paid now, 60 were paid before, 2 rejected" in second.stdout
    after = document(session, "verify")["figures"]
    for figure in ("payments", "orders", "movements", "accounts"):
        if figure != "accounts":
            assert after[figure] == before[figure]
