"""Executes operations: step 4 of a failover's walk. Any controller resumes at any step.

Doing a step twice is doing it once: drain and recover are repeatable, the fence skips what is
fenced, and publishing is one compare-and-set of the slot map together with the operation's own
record. A wave is planned from the map that the same compare-and-set expects.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol

import structlog

from control.audit import audit_put, audit_record, new_id
from control.fencing import FenceConflict
from control.operations.closing import closing
from control.operations.model import (
    GRANTED,
    Operation,
    OperationKind,
    Request,
    Step,
    StepRecord,
    slot_count,
)
from control.operations.records import Change, changed, handed_over
from control.operations.steps import Action, NoPlan, Plan, next_action, undo
from control.operations.watching import NO_TRAFFIC, Traffic, WaveWatch
from control.operations.waves import Known, Verdict, onward
from router.slotmap import Move, SlotMap, StaleMove
from router.slots import SlotRange
from router.store.model import (
    OPERATIONS_PREFIX,
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
# Between two waves that short head-room makes: a target warms up before more comes.
_WAVE_PAUSE_S = 1.0
# How often a gradual move is looked at.
_WATCH_INTERVAL_S = 0.1
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


def _nothing_known() -> Known | None:
    return None


class Runner:
    def __init__(
        self,
        store: Store,
        fence: SlotFence,
        cells: CellCalls,
        *,
        known: Callable[[], Known | None] = _nothing_known,
        traffic: Traffic = NO_TRAFFIC,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`known`: what later waves are planned from. `traffic`: what a gradual move is judged
        by."""
        self._store = store
        self._fence = fence
        self._cells = cells
        self._known = known
        self._watch = WaveWatch(traffic)
        self._now_ms = now_ms

    async def run(self, operation_id: str) -> Operation | None:
        """Takes the operation to its end or its rest; None when there is no such operation."""
        key = OPERATIONS_PREFIX + operation_id
        has_waited = False
        while True:
            try:
                item = await self._store.get(key)
                if item is None:
                    return None
                operation = Operation.from_json(item.value)
                waits = operation.step == Step.WAITING
                if next_action(operation) == Action.NOTHING or (waits and has_waited):
                    return operation
                has_waited = waits
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
            Action.COMMIT: self._commit_to,
            Action.MOVE: self._move,
            Action.PUBLISH: self._tell,
            Action.RECOVER: self._recover,
            Action.GO_ON: self._go_on,
        }
        action = next_action(operation)
        if action != Action.GO_ON:
            log.info("operation", id=operation.operation_id, wave=operation.wave, action=action)
        await actions[action](operation, item)

    async def _record(self, operation: Operation, item: Item, step: Step, note: str = "") -> None:
        """Records the step unless another controller was first; either way the loop reads anew."""
        following = operation.at(step, time_ms=self._now_ms(), note=note)
        await self._commit(changed(operation, following, item.revision))

    async def _commit(self, change: Change) -> None:
        await self._store.commit(expect=change.expect, puts=change.puts, deletes=change.deletes)

    async def _commit_to(self, operation: Operation, item: Item) -> None:
        """Before anybody waits: this commit is not part of the stall."""
        await self._record(operation, item, Step.DRAINED)

    async def _move(self, operation: Operation, item: Item) -> None:
        """Drain, fence, publish. From the first drained request to the published map somebody
        waits, so that all which is known before is read before, and one commit tells it all:
        whoever takes over in between does it again from the start, which is doing it once."""
        current = await self._map()
        drained = await self._drain(operation)
        try:
            await self._fence_slots(operation)
        except FenceConflict as error:
            await self._record(operation, item, Step.FAILED, str(error))
            return
        fenced = operation.at(Step.FENCED, time_ms=self._now_ms(), note=drained)
        await self._publish(operation, fenced, item, current)

    async def _fence_slots(self, operation: Operation) -> None:
        await self._fence.assign(operation.moves, operation.operation_id)

    async def _tell(self, operation: Operation, item: Item) -> None:
        """Of what another version has fenced and not published."""
        await self._publish(operation, operation, item, await self._map())

    async def _drain(self, operation: Operation) -> str:
        async with asyncio.TaskGroup() as group:
            notes = [
                group.create_task(self._cells.drain(cell, ranges))
                for cell, ranges in _by_cell(operation, "source").items()
            ]
        return "; ".join(note.result() for note in notes)

    async def _publish(
        self, before: Operation, fenced: Operation, item: Item, current: Item
    ) -> None:
        """The map and the step in one compare-and-set: nobody publishes from a stale plan.

        Raises StaleMove when the map contradicts the fence.
        """
        following = SlotMap.from_json(current.value).apply(fenced.moves)
        change = changed(before, fenced.published(time_ms=self._now_ms()), item.revision)
        change.expect[SLOT_MAP_KEY] = current.revision
        change.puts[SLOT_MAP_KEY] = following.to_json()
        await self._commit(change)

    async def _map(self) -> Item:
        current = await self._store.get(SLOT_MAP_KEY)
        if current is None:
            raise StoreUnavailable("there is no slot map")
        return current

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

    async def _go_on(self, operation: Operation, item: Item) -> None:
        """After a wave, or while it waits: what was asked for, the way back, or what follows."""
        if operation.request in (Request.PAUSE, Request.ABORT):
            granted = GRANTED[operation.request][operation.step]
            await self._leave(operation, item, granted, f"after wave {operation.wave}, as asked")
            return
        current = await self._map()
        slot_map = SlotMap.from_json(current.value)
        known = self._known()
        if known is None:
            known = Known(slot_map, slot_map, slot_map.cells(), ())
        else:
            known = replace(known, slot_map=slot_map)
        if operation.gate is not None and operation.step == Step.RECOVERED:
            verdict = self.verdict(operation, known)
            if verdict == Verdict.LOOK:
                await asyncio.sleep(_WATCH_INTERVAL_S)
                return
            if verdict != Verdict.PASS:
                await self._roll_back(operation, item, known, current.revision, verdict)
                return
        following = onward(operation, known)
        if following.step == operation.step:
            return
        if following.step == Step.PLANNED and operation.step == Step.RECOVERED:
            await asyncio.sleep(0 if operation.gate else _WAVE_PAUSE_S)
        after = operation.onward(
            following.step, following.moves, time_ms=self._now_ms(), note=following.note
        )
        change = changed(operation, after, item.revision)
        change.expect[SLOT_MAP_KEY] = current.revision
        if following.step == Step.DONE:
            await closing(self._store, operation, slot_map, change)
        await self._commit(change)

    async def _leave(self, operation: Operation, item: Item, step: Step, note: str) -> None:
        after = operation.onward(step, (), time_ms=self._now_ms(), note=note)
        await self._commit(changed(operation, after, item.revision))

    def verdict(self, operation: Operation, known: Known) -> Verdict:
        """Of the wave that a gradual move has just made."""
        return self._watch.verdict(operation, known)

    async def _roll_back(
        self, operation: Operation, item: Item, known: Known, revision: int, verdict: Verdict
    ) -> None:
        """Hands its turn to the operation that takes its moves back."""
        way = undo(operation, known)
        if isinstance(way, NoPlan):
            note = f"{verdict}, and no way back: {way.message}"
            await self._leave(operation, item, Step.PAUSED, note)
            return
        now_ms = self._now_ms()
        back = inverse(operation, way, operation.actor, verdict, now_ms)
        note = f"{verdict} in wave {operation.wave}; {back.operation_id} takes it back"
        after = operation.onward(Step.ROLLED_BACK, (), time_ms=now_ms, note=note)
        change = handed_over(
            operation, replace(after, undone_by=back.operation_id), item.revision, back
        )
        change.expect[SLOT_MAP_KEY] = revision
        detail = f"{back.operation_id}: takes {operation.operation_id} back"
        change.puts.update(
            audit_put(audit_record(operation.actor, "operation.rollback", detail, verdict))
        )
        log.warning("a gradual move is rolled back", operation=operation.operation_id, why=verdict)
        await self._commit(change)


def inverse(operation: Operation, way: Plan, actor: str, reason: str, now_ms: int) -> Operation:
    """The operation that takes another one's moves back; it waits when nothing of it fits yet."""
    step = Step.PLANNED if way.moves else Step.WAITING
    note = f"{slot_count(way.pieces)} slots go back"
    return Operation(
        new_id("op"), OperationKind.ROLLBACK, operation.cell, way.moves, actor, reason, step,
        (StepRecord(step, now_ms, note),), cells=operation.cells, rest=way.pieces, force=True,
        undoes=operation.operation_id,
    )  # fmt: skip


def _by_cell(operation: Operation, side: str) -> dict[str, list[SlotRange]]:
    ranges: dict[str, list[SlotRange]] = {}
    for move in operation.moves:
        ranges.setdefault(getattr(move, side), []).append(SlotRange(move.first, move.last))
    return ranges
