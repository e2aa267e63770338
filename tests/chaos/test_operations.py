"""Operations through bad days: a region fails over in waves, a bad move takes itself back, a grey
cell is noticed and held out. Each story ends with the audit of the books."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import grpc
import pytest
from cellpay.control.v1 import control_pb2 as pb
from cellpay.control.v1 import operations_pb2 as ops_pb
from sqlalchemy.engine import make_url

from control.cellctl.session import Session
from control.mesh import launcher
from control.mesh.components import place_of, settings_of
from router.client import Mesh
from router.errors import details_of
from tests.chaos.proxy import Proxy
from tests.chaos.test_stories import cells, money_moving, operate, until_idle, until_slotless

pytestmark = pytest.mark.chaos

_PATIENCE_S = 60.0


async def declare(session: Session, cell: str, capacity: int) -> None:
    async with session.operations() as operations:
        await operations.DeclareCell(
            ops_pb.DeclareCellRequest(cell=cell, capacity=capacity, reason="a drill"), timeout=10
        )


async def until_step(session: Session, operation_id: str, *steps: int) -> pb.Operation:
    async with session.control() as control, asyncio.timeout(_PATIENCE_S):
        while True:
            operation = await control.GetOperation(
                pb.GetOperationRequest(operation_id=operation_id), timeout=10
            )
            if operation.step in steps:
                return operation
            await asyncio.sleep(0.05)


def slots_of(cell: pb.Cell) -> int:
    return sum(piece.last - piece.first + 1 for piece in cell.slots)


async def set_policy(session: Session, *, automatic: bool, real_traffic: bool) -> None:
    policy = pb.FailoverPolicy(
        automatic=automatic, real_traffic=real_traffic, samples_min=5, hold_down_s=3600
    )
    async with session.control() as control:
        await control.SetFailoverPolicy(
            pb.SetFailoverPolicyRequest(policy=policy, reason="a drill"), timeout=10
        )


async def start(session: Session, **fields: object) -> pb.Operation:
    async with session.control() as control:
        return await control.StartOperation(
            pb.StartOperationRequest(reason="a drill", **fields),  # type: ignore[arg-type]
            timeout=10,
        )


async def test_a_region_fails_over_in_waves_as_head_room_comes(
    session: Session, mesh: Mesh, edge: Mesh
) -> None:
    before = {name: slots_of(cell) for name, cell in (await cells(session)).items()}
    async with money_moving(session, mesh, edge, "waves"):
        for cell in ("a", "c"):
            await declare(session, cell, before[cell] + 50)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await start(session, kind=pb.Operation.KIND_DRAIN, region="region-b")
        assert details_of(refused.value).reason == "NO_HEAD_ROOM"
        operation = await start(session, kind=pb.Operation.KIND_FAILOVER, region="region-b")
        await until_step(session, operation.operation_id, pb.Operation.STEP_WAITING)
        now = {name: slots_of(cell) for name, cell in (await cells(session)).items()}
        assert now == {
            "a": before["a"] + 50,
            "b": before["b"] - 100,
            "c": before["c"] + 50,
        }, "no target is given more than its head-room; the rest stays where it is"
        # What waits holds nobody up.
        aside = await operate(
            session, kind=pb.Operation.KIND_MOVE, first=1023, last=1023, target="b"
        )
        assert aside.step == pb.Operation.STEP_DONE
        await declare(session, "a", 0)
        done = await until_step(session, operation.operation_id, pb.Operation.STEP_DONE)
        assert done.wave > 1
        await declare(session, "c", 0)
        for region in ("region-b", "region-c"):
            restored = await operate(session, kind=pb.Operation.KIND_RESTORE, region=region)
            assert restored.step == pb.Operation.STEP_DONE
    assert {name: slots_of(cell) for name, cell in (await cells(session)).items()} == before


@pytest.fixture(scope="module")
async def proxy(session: Session) -> AsyncIterator[Proxy]:
    """Cell b reaches its database through it."""
    settings = settings_of(session.state, place_of("cell-b", session.state.cells))
    was = settings.read_text()
    document = json.loads(was)
    url = make_url(document["database_url"])
    await set_policy(session, automatic=False, real_traffic=False)
    async with Proxy(url.host or "", url.port or 0).running() as made:
        through = url.set(host="127.0.0.1", port=made.port)
        document["database_url"] = through.render_as_string(hide_password=False)
        settings.write_text(json.dumps(document))
        await asyncio.to_thread(launcher.restart, session.data, "cell-b")
        await until_lives(session, "b")
        yield made
        made.mend()
        await set_policy(session, automatic=False, real_traffic=True)
        settings.write_text(was)
        await asyncio.to_thread(launcher.restart, session.data, "cell-b")
        await until_lives(session, "b")
        await set_policy(session, automatic=True, real_traffic=True)


async def until_lives(session: Session, cell: str) -> None:
    async with asyncio.timeout(_PATIENCE_S):
        while (await cells(session))[cell].health == pb.Cell.HEALTH_DEAD:
            await asyncio.sleep(0.05)


async def test_a_gradual_move_takes_itself_back_when_its_target_fails_payments(
    session: Session, mesh: Mesh, edge: Mesh, proxy: Proxy
) -> None:
    before = (await cells(session))["a"]
    async with money_moving(session, mesh, edge, "gradual"):
        proxy.break_off()
        operation = await start(
            session,
            kind=pb.Operation.KIND_MOVE,
            cell="a",
            target="b",
            percents=[10, 50, 100],
            gate=pb.Gate(soak_ms=60_000, samples_min=5),
        )
        ended = await until_step(session, operation.operation_id, pb.Operation.STEP_ROLLED_BACK)
        assert ended.wave == 1, "it stops before its second wave"
        assert "failed payments" in ended.history[-1].note
        back = await until_step(
            session, ended.undone_by, pb.Operation.STEP_DONE, pb.Operation.STEP_FAILED
        )
        proxy.mend()
        assert (back.step, back.undoes) == (pb.Operation.STEP_DONE, operation.operation_id)
    after = (await cells(session))["a"]
    assert slots_of(after) == slots_of(before)


async def test_a_grey_cell_is_failed_over_and_held_out_when_it_flaps(
    session: Session, mesh: Mesh, edge: Mesh, proxy: Proxy
) -> None:
    """It answers its health checks and keeps its lease; only its payments fail."""
    await set_policy(session, automatic=True, real_traffic=True)
    async with money_moving(session, mesh, edge, "grey"):
        for times in (1, 2):
            proxy.break_off()
            await until_slotless(session, "b")
            await until_idle(session)
            assert (await cells(session))["b"].health == pb.Cell.HEALTH_HELD_OUT
            proxy.mend()
            if times == 2:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await start(session, kind=pb.Operation.KIND_RESTORE, cell="b")
                assert details_of(refused.value).reason == "CELL_HELD_OUT"
            # By force the first time too: other tests of this mesh may have had it failed over.
            restored = await operate(session, kind=pb.Operation.KIND_RESTORE, cell="b", force=True)
            assert restored.step == pb.Operation.STEP_DONE
            await asyncio.sleep(2)
    async with session.control() as control:
        listed = await control.ListOperations(pb.ListOperationsRequest(), timeout=10)
    reasons = [item.reason for item in listed.operations]
    assert sum("fails its payments" in reason for reason in reasons) == 2
