"""What a command needs of a mesh: addresses and certificates of a local one, by its directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
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
from control.mesh import state as mesh_state
from control.slotmap import read_slot_map
from router.client import CallPolicy, Mesh, TlsFiles, connect
from router.slotmap import Owned, SlotMap
from router.store.etcd import connect_etcd
from router.store.model import Store, StoreUnavailable

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_AUDIT_TIMEOUT_MS = 120_000
_READ_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Session:
    data: Path
    state: mesh_state.MeshState

    @staticmethod
    def open(data: Path) -> Session:
        state = mesh_state.load(data)
        if state is None:
            raise NoMesh(f"there is no mesh in {data}; start one with: cellctl up --data {data}")
        return Session(data, state)

    def tls(self, name: str) -> TlsFiles:
        folder = self.data / "tls"
        return TlsFiles(
            str(folder / "ca.pem"), str(folder / f"{name}.pem"), str(folder / f"{name}.key")
        )

    @property
    def client_bootstrap(self) -> Path:
        return self.data / "xds" / "client.json"

    @property
    def control_address(self) -> str:
        """Where every controller listens; the kernel gives a connection to a living one."""
        return self.state.control_address

    @property
    def edge_address(self) -> str:
        return self.state.address("envoy")

    @property
    def http_address(self) -> str:
        """Of HTTP/JSON, which Envoy turns into gRPC."""
        return self.state.address("envoy.http")

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
            at or self.control_address, tls.channel_credentials(), interceptors=interceptors
        ) as channel:
            yield channel

    @contextlib.asynccontextmanager
    async def mesh(self, policy: CallPolicy | None = None) -> AsyncIterator[Mesh]:
        async with connect(
            self.client_bootstrap, policy=policy, fallback=self.tls("client")
        ) as mesh:
            yield mesh

    @contextlib.asynccontextmanager
    async def database(self) -> AsyncIterator[AsyncEngine]:
        """The mesh's database; CELLPAY_DATABASE_URL names another one, CockroachDB included."""
        # Few commands need it, and it takes longer to load than all the rest.
        from cells.database import make_engine
        from cells.settings import DatabaseSettings

        url = os.environ.get("CELLPAY_DATABASE_URL", self.state.database_url)
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

    async def slot_map(self) -> SlotMap | None:
        """etcd's; while it is away the controllers', who go on with the last one they heard of.
        None when neither answers, or before the mesh's first start."""
        with contextlib.suppress(StoreUnavailable):
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
        tls = self.tls("operator") if self.state.plane.etcd_tls else None
        store = connect_etcd(self.state.etcd_addresses, tls)
        try:
            yield store
        finally:
            await store.close()
