"""What a command needs of a mesh: who answers where, and what it is shown (places.py)."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from cellpay.control.v1 import (
    access_pb2_grpc,
    control_pb2,
    control_pb2_grpc,
    drills_pb2_grpc,
    operations_pb2_grpc,
    policies_pb2_grpc,
    reconciliation_pb2_grpc,
    reviews_pb2_grpc,
)

from control.cellctl.acting import ActingInterceptor, acting_as, acting_headers
from control.cellctl.failures import NoMesh
from control.cellctl.places import (
    CLIENT,
    OPERATOR,
    REMOTE_FILE,
    Places,
    Remote,
    places_of,
    read_remote,
)
from control.mesh import state as mesh_state
from control.slotmap import read_slot_map
from router.client import CallPolicy, Mesh, TlsFiles, connect
from router.client.bootstrap import xds_bootstrap
from router.slotmap import Owned, SlotMap
from router.store.etcd import connect_etcd
from router.store.model import Store, StoreUnavailable

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_AUDIT_TIMEOUT_MS = 120_000
_READ_TIMEOUT_S = 5.0
_NODE_ID = "client-cellctl"


@dataclass(frozen=True, slots=True)
class Session:
    data: Path
    places: Places
    # Of a mesh on this machine; of one elsewhere what was written down of it.
    _mesh: mesh_state.MeshState | Remote

    @staticmethod
    def open(data: Path) -> Session:
        """Raises NoMesh."""
        state, remote = mesh_state.load(data), read_remote(data)
        if state is not None and remote is not None:
            raise NoMesh(f"{data} has a mesh of its own, and {REMOTE_FILE} speaks of another")
        if remote is not None:
            return Session(data, remote.places(), remote)
        if state is not None:
            return Session(data, places_of(state), state)
        raise NoMesh(
            f"there is no mesh in {data}; start one with: cellctl up --data {data}, or write down"
            f" in {data / REMOTE_FILE} where one runs (docs/access.md)"
        )

    @property
    def state(self) -> mesh_state.MeshState:
        """Of a mesh on this machine. Raises NoMesh where it is elsewhere."""
        if isinstance(self._mesh, Remote):
            raise NoMesh(
                f"this is for a mesh on this machine; the one of {self.data / REMOTE_FILE} is its"
                " platform's to start, to stop and to give certificates"
            )
        return self._mesh

    @property
    def is_remote(self) -> bool:
        return isinstance(self._mesh, Remote)

    def tls(self, name: str) -> TlsFiles:
        if isinstance(self._mesh, Remote):
            return self._mesh.tls_of(name)
        folder = self.data / "tls"
        return TlsFiles(
            str(folder / "ca.pem"), str(folder / f"{name}.pem"), str(folder / f"{name}.key")
        )

    @property
    def client_bootstrap(self) -> Path:
        """Of clients on this machine."""
        return self.state.path / "xds" / "client.json"

    @property
    def edge_address(self) -> str:
        return self._known("edge")

    @property
    def http_address(self) -> str:
        """Of HTTP/JSON, which Envoy turns into gRPC."""
        return self._known("http")

    def _known(self, place: str) -> str:
        found: str = getattr(self.places, place)
        if not found:
            raise NoMesh(f"{self.data / REMOTE_FILE} does not say where `{place}` is")
        return found

    async def cells(self, name: str = OPERATOR) -> Sequence[str]:
        """Names of all, sorted. `name`: who asks."""
        if not isinstance(self._mesh, Remote):
            return sorted(self._mesh.cells)
        async with self.control(name) as control:
            request = control_pb2.ListCellsRequest()
            found = await control.ListCells(request, timeout=_READ_TIMEOUT_S)
        return sorted(item.cell for item in found.cells)

    @contextlib.asynccontextmanager
    async def control(
        self, name: str = "operator", at: str = ""
    ) -> AsyncIterator[control_pb2_grpc.ControlServiceAsyncStub]:
        async with self.control_channel(name, at) as channel:
            yield control_pb2_grpc.ControlServiceStub(channel)

    @contextlib.asynccontextmanager
    async def operations(
        self, name: str = "operator"
    ) -> AsyncIterator[operations_pb2_grpc.OperationsServiceAsyncStub]:
        async with self.control_channel(name) as channel:
            yield operations_pb2_grpc.OperationsServiceStub(channel)

    @contextlib.asynccontextmanager
    async def policies(
        self, name: str = "operator"
    ) -> AsyncIterator[policies_pb2_grpc.PolicyServiceAsyncStub]:
        async with self.control_channel(name) as channel:
            yield policies_pb2_grpc.PolicyServiceStub(channel)

    @contextlib.asynccontextmanager
    async def drills(
        self, name: str = "operator"
    ) -> AsyncIterator[drills_pb2_grpc.DrillServiceAsyncStub]:
        async with self.control_channel(name) as channel:
            yield drills_pb2_grpc.DrillServiceStub(channel)

    @contextlib.asynccontextmanager
    async def reconciliation(
        self, name: str = "operator"
    ) -> AsyncIterator[reconciliation_pb2_grpc.ReconciliationServiceAsyncStub]:
        async with self.control_channel(name) as channel:
            yield reconciliation_pb2_grpc.ReconciliationServiceStub(channel)

    @contextlib.asynccontextmanager
    async def reviews(
        self, name: str = "operator"
    ) -> AsyncIterator[reviews_pb2_grpc.ReviewsServiceAsyncStub]:
        async with self.control_channel(name) as channel:
            yield reviews_pb2_grpc.ReviewsServiceStub(channel)

    @contextlib.asynccontextmanager
    async def access(
        self, name: str = "operator"
    ) -> AsyncIterator[access_pb2_grpc.AccessServiceAsyncStub]:
        async with self.control_channel(name) as channel:
            yield access_pb2_grpc.AccessServiceStub(channel)

    @contextlib.asynccontextmanager
    async def control_channel(
        self, name: str = "operator", at: str = ""
    ) -> AsyncIterator[grpc.aio.Channel]:
        """To whichever controller takes it, or the one `at` an address; an operator is who `--as`
        says."""
        tls = self.tls(acting_as(name) if name == "operator" else name)
        if not tls.stamp():
            raise NoMesh(f"there is no identity {Path(tls.certificate).stem}; see cellctl identity")
        headers = acting_headers()
        interceptors = [ActingInterceptor(headers)] if headers else []
        async with grpc.aio.secure_channel(
            at or self.places.control, tls.channel_credentials(), interceptors=interceptors
        ) as channel:
            yield channel

    @contextlib.asynccontextmanager
    async def mesh(self, policy: CallPolicy | None = None) -> AsyncIterator[Mesh]:
        tls = self.tls(CLIENT)
        with contextlib.ExitStack() as stack:
            if isinstance(self._mesh, Remote):
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="cellctl-"))
                bootstrap = Path(folder) / "xds.json"
                servers = self._mesh.xds_servers or (self._mesh.control,)
                bootstrap.write_text(json.dumps(xds_bootstrap(servers, tls, _NODE_ID)))
            else:
                bootstrap = self.client_bootstrap
            async with connect(bootstrap, policy=policy, fallback=tls) as mesh:
                yield mesh

    @contextlib.asynccontextmanager
    async def database(self) -> AsyncIterator[AsyncEngine]:
        """The mesh's database; CELLPAY_DATABASE_URL names another one, CockroachDB included."""
        # Few commands need it, and it takes longer to load than all the rest.
        from cells.database import make_engine
        from cells.settings import DatabaseSettings

        url = os.environ.get("CELLPAY_DATABASE_URL") or self._known("database_url")
        settings = DatabaseSettings(
            idle_in_transaction_timeout_ms=_AUDIT_TIMEOUT_MS,
            statement_timeout_ms=_AUDIT_TIMEOUT_MS,
            transaction_timeout_ms=_AUDIT_TIMEOUT_MS,
        )
        engine = make_engine(url, "cellctl", settings, pool_size=2)
        try:
            yield engine
        finally:
            await engine.dispose()

    def nats(self) -> tuple[str, TlsFiles | None]:
        """Where the streams are, and what is shown there."""
        if url := os.environ.get("CELLPAY_NATS_URL"):
            return url, None
        return self._known("nats_url"), self.tls(OPERATOR) if self.is_remote else None

    async def slot_map(self) -> SlotMap | None:
        """etcd's; while it is away the controllers', who go on with the last one they heard of.
        None when neither answers, or before the mesh's first start."""
        with contextlib.suppress(StoreUnavailable, NoMesh):
            async with self.store() as store:
                current = await read_slot_map(store)
                return current[0] if current else None
        with contextlib.suppress(grpc.aio.AioRpcError):
            async with self.control() as control:
                request = control_pb2.GetSlotMapRequest()
                found = await control.GetSlotMap(request, timeout=_READ_TIMEOUT_S)
                return SlotMap(tuple(Owned(r.first, r.last, r.cell, r.epoch) for r in found.ranges))
        return None

    @contextlib.asynccontextmanager
    async def store(self) -> AsyncIterator[Store]:
        tls = self.tls(OPERATOR) if self.places.etcd_tls else None
        store = connect_etcd(self._known("etcd"), tls)
        try:
            yield store
        finally:
            await store.close()
