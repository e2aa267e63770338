"""CellService: what a cell does for the control plane in a move of slots."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cellpay.cell.v1 import cell_pb2, cell_pb2_grpc

from cells.requests import Checker
from cells.transfers.worker import Recovery
from router.guard import SlotsHere
from router.slots import SLOT_COUNT, SlotRange

_HOLD_MS_MAX = 10_000


class CellService(cell_pb2_grpc.CellServiceServicer):
    def __init__(self, here: SlotsHere, recovery: Recovery) -> None:
        self._here = here
        self._recovery = recovery

    async def DrainSlots(
        self, request: cell_pb2.DrainSlotsRequest, context: Any
    ) -> cell_pb2.DrainSlotsResponse:
        check = Checker()
        ranges = _ranges(check, request.ranges)
        if not 0 < request.hold_ms <= _HOLD_MS_MAX:
            check.wrong("hold_ms", f"must be 1 to {_HOLD_MS_MAX}")
        check.done()
        drained = await self._here.drain(ranges, request.hold_ms / 1000)
        return cell_pb2.DrainSlotsResponse(drained=drained)

    async def RecoverSlots(
        self, request: cell_pb2.RecoverSlotsRequest, context: Any
    ) -> cell_pb2.RecoverSlotsResponse:
        check = Checker()
        ranges = _ranges(check, request.ranges)
        check.done()
        slots = {slot for piece in ranges for slot in piece.slots()}
        found, left = await self._recovery.recover(slots & self._here.owned(), min_age_s=0)
        return cell_pb2.RecoverSlotsResponse(in_doubt_found=found, in_doubt_left=left)


def _ranges(check: Checker, ranges: Iterable[cell_pb2.SlotRange]) -> list[SlotRange]:
    found = []
    for index, piece in enumerate(ranges):
        if not 0 <= piece.first <= piece.last < SLOT_COUNT:
            check.wrong(f"ranges[{index}]", f"must lie in 0..{SLOT_COUNT - 1}")
        else:
            found.append(SlotRange(piece.first, piece.last))
    return found
