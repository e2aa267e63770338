"""What the last step of an operation changes beside its own record."""

from __future__ import annotations

import json

from control.operations.model import Operation, OperationKind
from control.operations.records import Change
from router.slotmap import SlotMap
from router.store.model import DECLARED_CELLS_PREFIX, HELD_CELLS_PREFIX, Store


async def closing(store: Store, operation: Operation, slot_map: SlotMap, change: Change) -> None:
    """Adds to the commit that ends the operation. What it expects makes it safe to repeat.

    A cell that has been given slots while its removal was paused stays.
    """
    if operation.kind == OperationKind.REMOVE:
        for cell in set(operation.all_cells()) - slot_map.cells():
            await _amend(store, DECLARED_CELLS_PREFIX + cell, change, removed=True)
    if operation.kind == OperationKind.RESTORE:
        for cell in operation.all_cells():
            await _amend(store, HELD_CELLS_PREFIX + cell, change, out=False)


async def _amend(store: Store, key: str, change: Change, **fields: bool) -> None:
    item = await store.get(key)
    if item is not None:
        change.expect[key] = item.revision
        change.puts[key] = json.dumps({**json.loads(item.value), **fields})
