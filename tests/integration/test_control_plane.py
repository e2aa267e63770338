"""The control plane loses its parts, one after the other and all at once, and payments go on.

Three members of etcd with TLS and users, two controllers, a fallback xDS server. Nothing here
asserts how long a thing took; what a client could not pay is counted by the client.
"""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import pytest
from cellpay.control.v1 import access_pb2
from cellpay.control.v1 import control_pb2 as pb

from control.cellctl.session import Session
from control.cellctl.verify import verify_mesh
from control.mesh import ca, launcher, rotation
from control.mesh.options import MeshOptions
from control.mesh.state import ControlPlane
from router.errors import details_of
from router.identity import spiffe_id
from router.policies.model import REPORTS_PREFIX
from router.store.etcd import connect_etcd
from router.store.model import (
    CELL_HEALTH_PREFIX,
    LEADER_KEY,
    LIVE_CELLS_PREFIX,
    SLOT_MAP_KEY,
    StoreUnavailable,
)
from tests.chaos.payer import Payer
from tests.conftest import LEASE_TTL_S

pytestmark = pytest.mark.mesh

PLANE = ControlPlane(etcd_members=3, controllers=2, fallback=True, etcd_tls=True)
MEMBERS = PLANE.etcd_names()
CONTROLLERS = PLANE.controller_names()
ENDED = (pb.Operation.STEP_DONE, pb.Operation.STEP_FAILED)
SOON_S = 60.0


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    data = tmp_path_factory.mktemp("plane")
    options = MeshOptions(plane=PLANE, lease_ttl_s=LEASE_TTL_S)
    try:
        with launcher.running(data, 2, options):
            yield Session.open(data)
    finally:
        launcher.remove(data)


@contextmanager
def paying(plane: Session, name: str) -> Iterator[Payer]:
    """A client pays by xDS and through Envoy all the while, and nothing fails."""
    payer = Payer(plane.data, name, plane.edge_address)
    try:
        yield payer
    finally:
        counted = payer.end()
    assert counted["failed"] == {}, counted
    assert counted["paid"] > 0


async def start(plane: Session, *names: str) -> None:
    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(asyncio.to_thread(launcher.start, plane.data, name))


async def stop(plane: Session, *names: str) -> None:
    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(asyncio.to_thread(launcher.stop, plane.data, name))


async def begin(plane: Session, kind: pb.Operation.Kind.ValueType) -> pb.Operation:
    """Starts an operation, as soon as somebody can."""
    request = pb.StartOperationRequest(kind=kind, cell="a", reason="a test")
    async with asyncio.timeout(SOON_S):
        while True:
            try:
                async with plane.control() as control:
                    return await control.StartOperation(request, timeout=10, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
            await asyncio.sleep(0.1)


async def followed(plane: Session, operation: pb.Operation) -> pb.Operation:
    request = pb.GetOperationRequest(operation_id=operation.operation_id)
    async with asyncio.timeout(SOON_S):
        while operation.step not in ENDED:
            await asyncio.sleep(0.05)
            try:
                async with plane.control() as control:
                    operation = await control.GetOperation(request, timeout=10, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                assert error.code() == grpc.StatusCode.UNAVAILABLE
    return operation


async def operate_to_and_fro(plane: Session) -> None:
    for kind in (pb.Operation.KIND_DRAIN, pb.Operation.KIND_RESTORE):
        operation = await followed(plane, await begin(plane, kind))
        assert operation.step == pb.Operation.STEP_DONE


async def leader(plane: Session) -> str:
    """The process that leads now."""
    async with plane.store() as store, asyncio.timeout(SOON_S):
        while (item := await store.get(LEADER_KEY)) is None:
            await asyncio.sleep(0.1)
    return "controller" if item.value == "controller-1" else item.value


def etcd_as(plane: Session, name: str) -> Any:
    return connect_etcd(plane.state.etcd_addresses, plane.tls(name))


async def test_etcd_gives_each_certificate_its_own_rights_and_nobody_else_any(
    plane: Session,
) -> None:
    cell, operator = etcd_as(plane, "cell-a"), etcd_as(plane, "operator")
    slot_map = await cell.get(SLOT_MAP_KEY)
    assert slot_map == await operator.get(SLOT_MAP_KEY)
    own, other = f"{LIVE_CELLS_PREFIX}a-test", f"{LIVE_CELLS_PREFIX}b"
    for store, key in ((cell, SLOT_MAP_KEY), (cell, other), (cell, own), (operator, SLOT_MAP_KEY)):
        with pytest.raises(StoreUnavailable, match="permission denied"):
            await store.commit(expect={}, puts={key: "forged"})
    live = await cell.get(f"{LIVE_CELLS_PREFIX}a")
    assert await cell.commit(expect={}, puts={live.key: live.value})
    edge = etcd_as(plane, "edge")
    with pytest.raises(StoreUnavailable):
        await edge.get(SLOT_MAP_KEY)
    bare = connect_etcd(plane.state.etcd_addresses)
    with pytest.raises(StoreUnavailable):
        await bare.get(SLOT_MAP_KEY)
    for store in (cell, operator, edge, bare):
        await store.close()


async def test_etcds_users_are_made_again_for_a_cell_that_is_new(
    plane: Session, tmp_path: Path
) -> None:
    """As on a mesh that this program did not start: by root's certificate."""
    cells = {f"cell-{cell}": cell for cell in ("a", "b", "z")}
    document = {
        "etcd": plane.state.address("etcd"),
        "tls": asdict(plane.tls("root")),
        "users": {"controllers": ["controller-1"], "cells": cells},
    }
    path = tmp_path / "etcd-users.json"
    path.write_text(json.dumps(document))
    for _ in range(2):
        done = await asyncio.to_thread(make_users, path)
        assert done.returncode == 0, done.stderr
    new = connect_etcd(
        plane.state.etcd_addresses, ca.issue(plane.data / "tls", "cell-z", spiffe_id("cell", "z"))
    )
    assert await new.get(SLOT_MAP_KEY)
    assert await new.commit(expect={}, puts={f"{CELL_HEALTH_PREFIX}z/1": "{}"})
    with pytest.raises(StoreUnavailable, match="permission denied"):
        await new.commit(expect={}, puts={f"{CELL_HEALTH_PREFIX}a/1": "{}"})
    await new.close()
    path.write_text(json.dumps({**document, "tls": asdict(plane.tls("operator")), "wait_s": 1}))
    refused = await asyncio.to_thread(make_users, path)
    assert refused.returncode == 1
    assert "could not be made" in refused.stderr
    assert "Traceback" not in refused.stderr


def make_users(settings: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "control.etcd_users", str(settings)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


async def test_etcd_hears_of_health_and_policies_from_every_process_of_a_cell(
    plane: Session,
) -> None:
    wanted = {f"{REPORTS_PREFIX}{name}" for name in ("a-1", "a-relay", "b-1", "b-relay")}
    async with plane.store() as store, asyncio.timeout(SOON_S):
        while not wanted <= set((await store.list(REPORTS_PREFIX)).items):
            await asyncio.sleep(0.1)
        while len((await store.list(CELL_HEALTH_PREFIX)).items) < 2:
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("member", MEMBERS[:1])
async def test_with_one_of_three_members_killed_operations_go_on(
    plane: Session, member: str
) -> None:
    with paying(plane, f"one-of-three-{member}"):
        launcher.kill(plane.data, member, signal.SIGKILL)
        try:
            await operate_to_and_fro(plane)
        finally:
            await start(plane, member)
        await operate_to_and_fro(plane)


async def test_with_etcd_wholly_down_payments_and_reads_go_on(plane: Session) -> None:
    with paying(plane, "no-etcd"):
        await stop(plane, *MEMBERS)
        try:
            # Longer than a lease lives: nobody may take the cells for dead, now or afterwards.
            await asyncio.sleep(LEASE_TTL_S + 2)
            async with plane.control() as control:
                slot_map = await control.GetSlotMap(pb.GetSlotMapRequest(), timeout=10)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await control.SetFailoverPolicy(
                        pb.SetFailoverPolicyRequest(reason="a test"), timeout=20
                    )
            assert len(slot_map.ranges) == 2
            # The controllers lend the audit their map.
            assert (await verify_mesh(plane.data)).ok
            assert details_of(caught.value).reason == "ETCD_UNAVAILABLE"
        finally:
            await start(plane, *MEMBERS)
        await operate_to_and_fro(plane)


async def test_with_every_controller_dead_clients_go_on_and_new_ones_start(
    plane: Session,
) -> None:
    with paying(plane, "no-controller"):
        for name in CONTROLLERS:
            launcher.kill(plane.data, name, signal.SIGKILL)
        try:
            with paying(plane, "new-client"):
                await asyncio.sleep(1)
            # The fallback server itself starts from its disk.
            launcher.kill(plane.data, "xds-fallback", signal.SIGKILL)
            await start(plane, "xds-fallback")
            with paying(plane, "newer-client"):
                await asyncio.sleep(1)
        finally:
            await start(plane, *CONTROLLERS)
        await operate_to_and_fro(plane)


async def test_a_controller_that_starts_without_etcd_serves_the_last_snapshot(
    plane: Session,
) -> None:
    await stop(plane, "xds-fallback", *CONTROLLERS)
    await stop(plane, *MEMBERS)
    # It says that it is ready only once it knows the mesh; it serves before that.
    starting = asyncio.gather(start(plane, "controller"))
    try:
        async with asyncio.timeout(SOON_S):
            while "controller" not in _alive(plane):
                await asyncio.sleep(0.1)
        counted = (await asyncio.to_thread(Payer, plane.data, "without-etcd")).end()
        assert counted["failed"] == {}
        assert counted["paid"] > 0
    finally:
        await start(plane, *MEMBERS)
        await starting
        await start(plane, "controller-2", "xds-fallback")
    await operate_to_and_fro(plane)


def _alive(plane: Session) -> set[str]:
    return {item.name for item in launcher.status(plane.data) if item.alive}


@pytest.mark.parametrize("delay_s", [0.015])
async def test_a_controller_that_dies_in_an_operation_is_replaced_by_another_which_finishes(
    plane: Session, delay_s: float
) -> None:
    with paying(plane, f"replaced-{delay_s}"):
        dies = await leader(plane)
        operation = await begin(plane, pb.Operation.KIND_DRAIN)
        await asyncio.sleep(delay_s)
        launcher.kill(plane.data, dies, signal.SIGKILL)
        try:
            # Nobody starts it anew meanwhile.
            finished = await followed(plane, operation)
            assert finished.step == pb.Operation.STEP_DONE
            restored = await followed(plane, await begin(plane, pb.Operation.KIND_RESTORE))
            assert restored.step == pb.Operation.STEP_DONE
        finally:
            await start(plane, dies)


async def test_certificates_are_made_anew_under_load_and_nothing_fails(plane: Session) -> None:
    ports = [plane.state.address(name) for name in ("cell-a", "cell-b", *CONTROLLERS, "control")]
    shown = {address: _certificate(address) for address in ports}
    # A person's channel of before goes on with its connection.
    async with plane.control() as before:
        with paying(plane, "rotated"):
            for _ in range(2):
                await asyncio.to_thread(rotation.rotate, plane.state)
                await asyncio.sleep(2)
            # What starts now shows the new certificates, and so does whoever must connect anew.
            with paying(plane, "rotated-new"):
                await operate_to_and_fro(plane)
                launcher.kill(plane.data, "controller-2", signal.SIGKILL)
                await start(plane, "controller-2")
                await operate_to_and_fro(plane)
        await before.GetSlotMap(pb.GetSlotMapRequest(), timeout=10)
    for address, old in shown.items():
        assert _certificate(address) != old, f"{address} still shows its old certificate"


def _certificate(address: str) -> str:
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)), timeout=10)


async def test_a_certificate_of_another_ca_or_past_its_end_is_not_heard(
    plane: Session, tmp_path: Path
) -> None:
    from tests.integration.certificates import of_another_ca, past_its_end

    mesh_ca = plane.data / "tls"
    for files in (of_another_ca(mesh_ca, tmp_path), past_its_end(mesh_ca, tmp_path)):
        for name in ("controller", "control"):
            address = plane.state.address(name)
            credentials = files.channel_credentials()
            async with grpc.aio.secure_channel(address, credentials) as channel:
                call: Any = channel.unary_unary("/cellpay.control.v1.AccessService/WhoAmI")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(access_pb2.WhoAmIRequest().SerializeToString(), timeout=10)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        store = connect_etcd(plane.state.etcd_addresses, files)
        with pytest.raises(StoreUnavailable):
            await store.get(SLOT_MAP_KEY)
        await store.close()
