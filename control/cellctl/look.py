"""`cellctl route`, `operations`: where a user is at home, and what was moved."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer
from cellpay.control.v1 import control_pb2 as pb

from control.cellctl.options import DATA, DEFAULT_DATA, JSON
from control.cellctl.session import Session
from control.cellctl.show import console, operation_document, print_json, show_operation, table
from router.slots import slot_of_user


def route(user_id: str, data: DATA = DEFAULT_DATA, as_json: JSON = False) -> None:
    """Where a user is at home."""

    async def find() -> dict[str, Any]:
        slot = slot_of_user(user_id)
        async with Session.open(data).control() as control:
            slot_map = await control.GetSlotMap(pb.GetSlotMapRequest(), timeout=5)
            cells = await control.ListCells(pb.ListCellsRequest(), timeout=5)
        home = next(piece for piece in slot_map.ranges if piece.first <= slot <= piece.last)
        cell = next((item for item in cells.cells if item.cell == home.cell), pb.Cell())
        return {
            "user_id": user_id, "slot": slot, "cell": home.cell, "epoch": home.epoch,
            "region": cell.region, "address": cell.address,
        }  # fmt: skip

    found = asyncio.run(find())
    if as_json:
        print_json(found)
    else:
        console.print("  ".join(f"{name} {value}" for name, value in found.items()))


def operations(
    operation_id: Annotated[str, typer.Argument(help="One operation, in full.")] = "",
    data: DATA = DEFAULT_DATA,
    as_json: JSON = False,
) -> None:
    """Operations, newest first, or one of them."""

    async def fetch() -> list[pb.Operation]:
        async with Session.open(data).control() as control:
            if operation_id:
                request = pb.GetOperationRequest(operation_id=operation_id)
                return [await control.GetOperation(request, timeout=5)]
            listed = await control.ListOperations(pb.ListOperationsRequest(), timeout=5)
            return list(listed.operations)

    found = asyncio.run(fetch())
    if as_json:
        print_json([operation_document(operation) for operation in found])
    elif operation_id:
        show_operation(found[0])
    else:
        table(
            "operations",
            ("id", "kind", "cell", "step", "actor", "reason"),
            [
                [document[name] for name in
                 ("operation_id", "kind", "cell", "step", "actor", "reason")]
                for document in map(operation_document, found)
            ],
        )  # fmt: skip
