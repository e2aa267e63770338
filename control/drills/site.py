"""The mesh that a drill is about, as the drill's process reaches it: processes, slots, store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import grpc
from cellpay.control.v1 import control_pb2 as pb
from cellpay.control.v1 import control_pb2_grpc

from control.chain.store import ChainedStore
from control.drills.model import Spec, Undo
from control.drills.probe import Probe
from control.mesh import state as mesh_state
from control.mesh.errors import MeshMismatch
from control.mesh.processes import Identity, identify, is_alive, session_of
from control.mesh.state import MeshState
from router.client.tls import TlsFiles
from router.slotmap import SlotMap
from router.store.etcd import connect_etcd
from router.store.model import LIVE_CELLS_PREFIX, SLOT_MAP_KEY, Store

_CALL_TIMEOUT_S = 10.0
_OPERATION_WAIT_S = 60.0
_LIVE_WAIT_S = 60.0
_POLL_S = 0.1
_ENDED = (pb.Operation.STEP_DONE, pb.Operation.STEP_FAILED)
# Until the failover that the fault has started is over, the map changes under a plan.
_BUSY = frozenset({grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED})
_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


class NotPossible(Exception):
    """This fault cannot be had here and now; nothing was done."""


class Unmovable(Exception):
    """Slots did not go where they should within the time given."""


class Proof(NamedTuple):
    """Whether the fault is in force, by what can be seen of it."""

    felt: bool
    seen: str


def _no_proof() -> Proof:
    return Proof(False, "nothing was injected")


@dataclass(slots=True)
class Site:
    """`remember` writes down how to undo a thing before it is done. `held` is what the fault needs
    alive (proxies, load); closing it is the first part of healing. `proof` is asked when the fault
    is judged: a steady state that nothing disturbed proves nothing."""

    data: Path
    spec: Spec
    cells: Mapping[str, str]
    store: Store
    control: control_pb2_grpc.ControlServiceAsyncStub
    remember: Callable[[Undo], None]
    group: asyncio.TaskGroup
    probe: Probe | None = None
    proof: Callable[[], Proof] = _no_proof
    held: AsyncExitStack = field(default_factory=AsyncExitStack)

    def state(self) -> MeshState:
        found = mesh_state.load(self.data)
        if found is None:
            raise MeshMismatch(f"{self.data} holds no mesh any more")
        return found

    def identities(self, name: str) -> list[Identity]:
        """The living processes behind a name: a cell may be several."""
        record = self.state().processes.get(name)
        if record is None or not is_alive(record.identity):
            return []
        return [record.identity, *session_of(record.identity)]

    def names(self, *roles: str, cell: str = "") -> list[str]:
        """The living processes of these roles, of one cell or of all."""
        return [
            name
            for name, record in self.state().processes.items()
            if record.role in roles and cell in {"", record.cell} and is_alive(record.identity)
        ]

    async def slot_map(self) -> SlotMap:
        item = await self.store.get(SLOT_MAP_KEY)
        if item is None:
            raise NotPossible("the mesh has no slot map yet")
        return SlotMap.from_json(item.value)

    async def addresses(self, cell: str) -> list[str]:
        item = await self.store.get(LIVE_CELLS_PREFIX + cell)
        return [] if item is None else list(json.loads(item.value)["addresses"])

    async def operate(self, request: pb.StartOperationRequest) -> None:
        """An operation to its end; waits for those that run. Raises Unmovable."""
        until = asyncio.get_running_loop().time() + _OPERATION_WAIT_S
        why = "it never began"
        while asyncio.get_running_loop().time() < until:
            try:
                operation = await self.control.StartOperation(
                    request, timeout=_CALL_TIMEOUT_S, wait_for_ready=True
                )
                while operation.step not in _ENDED:
                    await asyncio.sleep(_POLL_S)
                    operation = await self.control.GetOperation(
                        pb.GetOperationRequest(operation_id=operation.operation_id),
                        timeout=_CALL_TIMEOUT_S,
                        wait_for_ready=True,
                    )
                if operation.step == pb.Operation.STEP_DONE:
                    return
                why = operation.history[-1].note
            except grpc.aio.AioRpcError as error:
                why = error.details() or error.code().name
                if error.code() not in _BUSY | _AWAY:
                    raise Unmovable(why) from error
            await asyncio.sleep(5 * _POLL_S)
        raise Unmovable(why)

    async def wait_live(self, cell: str) -> None:
        until = asyncio.get_running_loop().time() + _LIVE_WAIT_S
        while not await self.addresses(cell):
            if asyncio.get_running_loop().time() > until:
                raise Unmovable(f"cell {cell} does not come back")
            await asyncio.sleep(_POLL_S)


@asynccontextmanager
async def open_site(
    data: Path, spec: Spec, group: asyncio.TaskGroup, remember: Callable[[Undo], None]
) -> AsyncIterator[Site]:
    state = mesh_state.load(data)
    if state is None:
        raise MeshMismatch(f"{data} holds no mesh")
    # A controller's child writes to etcd as a controller does, audit chain included.
    etcd_tls = tls_of(data, "controller-1") if state.plane.etcd_tls else None
    store = ChainedStore(connect_etcd(state.etcd_addresses, etcd_tls))
    credentials = tls_of(data, "operator").channel_credentials()
    options = [("grpc.min_reconnect_backoff_ms", 500), ("grpc.max_reconnect_backoff_ms", 1000)]
    cells = {cell: mesh_state.region_of(cell) for cell in state.cells}
    try:
        async with grpc.aio.secure_channel(
            state.control_address, credentials, options=options
        ) as channel:
            control: control_pb2_grpc.ControlServiceAsyncStub = control_pb2_grpc.ControlServiceStub(
                channel
            )
            yield Site(data, spec, cells, store, control, remember, group)
    finally:
        await store.close()


def tls_of(data: Path, name: str) -> TlsFiles:
    folder = data / "tls"
    return TlsFiles(*(str(folder / item) for item in ("ca.pem", f"{name}.pem", f"{name}.key")))


def identity_of(target: str, detail: str) -> Identity | None:
    """The process that was written down, if it is still that one."""
    identity = Identity(int(target), detail)
    return identity if identify(identity.pid) == identity else None
