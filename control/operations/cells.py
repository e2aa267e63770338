"""CellCalls over gRPC: short calls, no retries; a dead cell must not hold up its failover."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import grpc
from cellpay.cell.v1 import cell_pb2, cell_pb2_grpc
from cellpay.risk.v1 import risk_pb2_grpc

from router.client.tls import TlsFiles
from router.slots import SlotRange

_DRAIN_TIMEOUT_S = 1.5
_RECOVER_TIMEOUT_S = 5.0
# How long the source parks requests while the move goes through.
_HOLD_MS = 3000
# A cell that comes back is reached at once, not after gRPC's two minutes of back-off.
OPTIONS = [
    # Cells are called by addresses, which certificates do not name; this is a name of every cell's
    # (control/mesh/ca.py, deploy/kubernetes/base/certificates.yaml).
    ("grpc.ssl_target_name_override", "cellpay"),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class GrpcCellCalls:
    def __init__(self, addresses_of: Callable[[str], Sequence[str]], tls: TlsFiles) -> None:
        self._addresses_of = addresses_of
        self._tls = tls
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._stamp = tls.stamp()
        # Of before the certificates were rotated: what is under way on them may end.
        self._retired: list[grpc.aio.Channel] = []

    async def drain(self, cell: str, ranges: Sequence[SlotRange]) -> str:
        """All processes of the cell at once: each parks what comes to it."""
        stubs = [self._stub(address) for address in self._addresses_of(cell)]
        if not stubs:
            return f"{cell} is dead"
        request = cell_pb2.DrainSlotsRequest(ranges=_messages(ranges), hold_ms=_HOLD_MS)
        calls = [stub.DrainSlots(request, timeout=_DRAIN_TIMEOUT_S) for stub in stubs]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        drained = 0
        for answer in answers:
            if isinstance(answer, grpc.aio.AioRpcError):
                return f"{cell} does not answer ({answer.code().name})"
            if isinstance(answer, BaseException):
                raise answer
            drained += answer.drained
        return f"{cell} drained, {drained} requests ended"

    async def recover(self, cell: str, ranges: Sequence[SlotRange]) -> int | None:
        addresses = self._addresses_of(cell)
        if not addresses:
            return None
        request = cell_pb2.RecoverSlotsRequest(ranges=_messages(ranges))
        try:
            answer = await self._stub(addresses[0]).RecoverSlots(
                request, timeout=_RECOVER_TIMEOUT_S
            )
        except grpc.aio.AioRpcError:
            return None
        return answer.in_doubt_left

    def reviews(self, cell: str) -> risk_pb2_grpc.ReviewsServiceAsyncStub | None:
        """To decide reviews of its users; None when it is dead."""
        addresses = self._addresses_of(cell)
        if not addresses:
            return None
        return risk_pb2_grpc.ReviewsServiceStub(self._channel(addresses[0]))

    def _stub(self, address: str) -> cell_pb2_grpc.CellServiceAsyncStub:
        return cell_pb2_grpc.CellServiceStub(self._channel(address))

    def _channel(self, address: str) -> grpc.aio.Channel:
        stamp = self._tls.stamp()
        if stamp not in ((), self._stamp):
            self._retired += self._channels.values()
            self._channels, self._stamp = {}, stamp
        if address not in self._channels:
            self._channels[address] = grpc.aio.secure_channel(
                address, self._tls.channel_credentials(), options=OPTIONS
            )
        return self._channels[address]

    async def close(self) -> None:
        for channel in [*self._channels.values(), *self._retired]:
            await channel.close(grace=None)


def _messages(ranges: Sequence[SlotRange]) -> list[cell_pb2.SlotRange]:
    return [cell_pb2.SlotRange(first=piece.first, last=piece.last) for piece in ranges]
