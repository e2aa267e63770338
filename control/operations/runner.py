"""Executes operations: step 4 of a failover's walk. Any controller resumes at any step.

Each step is done first and recorded after, and doing it twice is doing it once: drain and recover
are repeatable, the fence skips what is fenced, and publishing is one compare-and-set of the slot
map together with the operation's own record.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog

from control.fencing import FenceConflict
from control.operations.model import ENDED, Operation, Step
from control.operations.steps import Action, next_action
from router.slotmap import Move, SlotMap, StaleMove
from router.slots import SlotRange
from router.store.model import (
    OPERATIONS_PREFIX,
    RUNNING_OPERATION_KEY,
    SLOT_MAP_KEY,
    Item,
    Store,
    StoreUnavailable,
)

log = structlog.get_logger(__name__)

_RECOVER_TRIES_MAX = 20
_RECOVER_WAIT_S = 0.25
# The next failover waits for this one: a target that has died too must not hold it up.
_RECOVER_UNANSWERED_MAX = 3
_RECOVER_BUDGET_S = 10.0
_STORE_RETRY_S = 0.2
_STUCK_RETRY_S = 5.0


class CellCalls(Protocol):
    """What a running operation asks of cells. Both are repeatable; failures are answers too."""

    async def drain(self, cell: str, ranges: Sequence[SlotRange]) -> str:
        """Stops the cell's requests for the slots; a note for people. Never raises."""
        ...

    async def recover(self, cell: str, ranges: Sequence[SlotRange]) -> int | None:
        """In-doubt transfers left in the slots; None when the cell does not answer."""
        ...


class SlotFence(Protocol):
    """The database's fence. `assign` is atomic and idempotent; it blocks until it is done."""

    async def assign(self, moves: Sequence[Move], operation_id: str) -> None: ...


class Runner:
    def __init__(
        self,
        store: Store,
        fence: SlotFence,
        cells: CellCalls,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._store = store
        self._fence = fence
        self._cells = cells
        self._now_ms = now_ms

    async def run(self, operation_id: str) -> Operation | None:
        """Takes the operation to its end; None when there is no such operation."""
        key = OPERATIONS_PREFIX + operation_id
        while True:
            try:
                item = await self._store.get(key)
                if item is None:
                    return None
                operation = Operation.from_json(item.value)
                if operation.step in ENDED:
                    return operation
                await self.step(operation, item)
            except StoreUnavailable as error:
                log.warning("the operation waits for etcd", operation=operation_id, why=str(error))
                await asyncio.sleep(_STORE_RETRY_S)
            except StaleMove as error:
                # Nothing of ours does this. Clients need the xDS of this process meanwhile, so it
                # goes on, and publishes once somebody has mended the map.
                log.critical("the slot map moved under a fenced operation", why=str(error))
                await asyncio.sleep(_STUCK_RETRY_S)

    async def step(self, operation: Operation, item: Item) -> None:
        """One step: do it, then record it. StoreUnavailable means it may have to be redone."""
        actions: dict[Action, Callable[[Operation, Item], Awaitable[None]]] = {
            Action.DRAIN: self._drain,
            Action.FENCE: self._fence_slots,
            Action.PUBLISH: self._publish,
            Action.RECOVER: self._recover,
            Action.FINISH: self._finish,
        }
        action = next_action(operation)
        log.info("operation", id=operation.operation_id, action=action)
        await actions[action](operation, item)

    async def _record(self, operation: Operation, item: Item, step: Step, note: str = "") -> None:
        """Records the step unless another controller was first; either way the loop reads anew."""
        following = operation.at(step, time_ms=self._now_ms(), note=note)
        await self._store.commit(
            expect={item.key: item.revision}, puts={item.key: following.to_json()}
        )

    async def _drain(self, operation: Operation, item: Item) -> None:
        async with asyncio.TaskGroup() as group:
            notes = [
                group.create_task(self._cells.drain(cell, ranges))
                for cell, ranges in _by_cell(operation, "source").items()
            ]
        await self._record(
            operation, item, Step.DRAINED, "; ".join(note.result() for note in notes)
        )

    async def _fence_slots(self, operation: Operation, item: Item) -> None:
        try:
            await self._fence.assign(operation.moves, operation.operation_id)
        except FenceConflict as error:
            failed = operation.at(Step.FAILED, time_ms=self._now_ms(), note=str(error))
            await self._end(failed, item)
            return
        await self._record(operation, item, Step.FENCED)

    async def _publish(self, operation: Operation, item: Item) -> None:
        """The map and the step in one compare-and-set: nobody publishes from a stale plan.

        Raises StaleMove when the map contradicts the fence.
        """
        current = await self._store.get(SLOT_MAP_KEY)
        if current is None:
            raise StoreUnavailable("there is no slot map")
        following = SlotMap.from_json(current.value).apply(operation.moves)
        published = operation.at(Step.PUBLISHED, time_ms=self._now_ms())
        await self._store.commit(
            expect={item.key: item.revision, SLOT_MAP_KEY: current.revision},
            puts={item.key: published.to_json(), SLOT_MAP_KEY: following.to_json()},
        )

    async def _recover(self, operation: Operation, item: Item) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = {
                cell: group.create_task(self._recover_at(cell, ranges))
                for cell, ranges in _by_cell(operation, "target").items()
            }
        rest = {cell: task.result() for cell, task in tasks.items() if task.result() != 0}
        note = f"left to the cells' own recovery: {rest}" if rest else "nothing in doubt"
        await self._record(operation, item, Step.RECOVERED, note)

    async def _recover_at(self, cell: str, ranges: Sequence[SlotRange]) -> int | None:
        """What is left in doubt there; None when the cell's last word was silence."""
        left: int | None = None
        unanswered = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RECOVER_BUDGET_S):
                for _ in range(_RECOVER_TRIES_MAX):
                    left = await self._cells.recover(cell, ranges)
                    unanswered = unanswered + 1 if left is None else 0
                    if left == 0 or unanswered == _RECOVER_UNANSWERED_MAX:
                        break
                    await asyncio.sleep(_RECOVER_WAIT_S)
        return left

    async def _finish(self, operation: Operation, item: Item) -> None:
        await self._end(operation.at(Step.DONE, time_ms=self._now_ms()), item)

    async def _end(self, ended: Operation, item: Item) -> None:
        """The last step and the way free for the next operation, in one commit."""
        await self._store.commit(
            expect={item.key: item.revision},
            puts={item.key: ended.to_json()},
            deletes=[RUNNING_OPERATION_KEY],
        )


def _by_cell(operation: Operation, side: str) -> dict[str, list[SlotRange]]:
    ranges: dict[str, list[SlotRange]] = {}
    for move in operation.moves:
        ranges.setdefault(getattr(move, side), []).append(SlotRange(move.first, move.last))
    return ranges
