"""Steps of branches on their way to the payees' cells, many in one call.

Steps to one cell gather while calls to it are under way, as commands do in a lane: alone a step
goes at once, under load hundreds share a call. Each has its own outcome.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
from cellpay.transfers.v1 import participant_pb2 as pb

from router.errors import Refusal, refusal_of
from router.guard import SlotsHere
from router.ids import slot_of_id
from router.tracing.current import current, within
from router.tracing.model import Scope

_STEPS_MAX = 256
# Calls to one cell at once: enough to have one on each way.
_CALLS_MAX = 2
# The cell says: not mine (now). Nothing was executed; the next map is milliseconds away.
_ELSEWHERE = frozenset({"NOT_HOME", "SLOT_MOVED", "SLOT_MOVING", "NOT_OWNER"})
_REROUTE_BASE_S = 0.003
_REROUTE_CAP_S = 0.05


class Participants(Protocol):
    """What it needs of the mesh: the stub of ParticipantService."""

    def AdvanceBranches(self, request: pb.AdvanceBranchesRequest, *, timeout: float) -> Any: ...


@dataclass(slots=True)
class _Sending:
    step: pb.BranchStep
    future: asyncio.Future[None]
    scope: Scope | None


@dataclass(slots=True)
class _Road:
    """To one cell."""

    steps: deque[_Sending] = field(default_factory=deque)
    calls: int = 0


class BranchCalls:
    def __init__(self, participants: Participants, here: SlotsHere, call_timeout_s: float) -> None:
        self._participants = participants
        self._here = here
        self._timeout_s = call_timeout_s
        self._roads: dict[str, _Road] = {}
        self._ready: asyncio.Queue[str] = asyncio.Queue()

    async def step(self, step: pb.BranchStep) -> None:
        """Returns when the step was taken. Raises Refusal: what the payee's cell says, or
        UNAVAILABLE and the like when it did not say."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._timeout_s
        tries = 0
        while True:
            try:
                await self._once(step)
                return
            except Refusal as refusal:
                wait = random.uniform(0.3, 1.0) * min(_REROUTE_CAP_S, _REROUTE_BASE_S * 1.6**tries)
                if refusal.reason not in _ELSEWHERE or loop.time() + wait >= until:
                    raise
            tries += 1
            await asyncio.sleep(wait)

    async def run(self) -> None:
        """Sends for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                cell = await self._ready.get()
                road = self._roads[cell]
                while road.steps and road.calls < _CALLS_MAX:
                    count = min(_STEPS_MAX, len(road.steps))
                    taken = [road.steps.popleft() for _ in range(count)]
                    road.calls += 1
                    group.create_task(self._send(cell, road, taken))

    async def _once(self, step: pb.BranchStep) -> None:
        slot_map = self._here.map
        cell = slot_map.at(slot_of_id(step.payee_account_id)).cell if slot_map else ""
        scope = current.get()
        if scope is not None:
            step.traceparent = scope.traceparent
        sending = _Sending(step, asyncio.get_running_loop().create_future(), scope)
        self._roads.setdefault(cell, _Road()).steps.append(sending)
        self._ready.put_nowait(cell)
        await sending.future

    async def _send(self, cell: str, road: _Road, taken: Sequence[_Sending]) -> None:
        request = pb.AdvanceBranchesRequest(steps=[sending.step for sending in taken])
        try:
            # The call is in the trace of its first step; each step carries its own.
            with within(taken[0].scope):
                answer = await self._participants.AdvanceBranches(request, timeout=self._timeout_s)
            for sending, result in zip(taken, answer.results, strict=True):
                if result.error_status:
                    _fail(sending, Refusal.from_status(result.error_status))
                elif not sending.future.done():
                    sending.future.set_result(None)
        except grpc.aio.AioRpcError as error:
            for sending in taken:
                _fail(sending, refusal_of(error))
        finally:
            for sending in taken:
                # Whatever else went wrong: nobody may wait for ever.
                _fail(sending, _LOST)
            road.calls -= 1
            self._ready.put_nowait(cell)


def _fail(sending: _Sending, refusal: Refusal) -> None:
    with contextlib.suppress(asyncio.InvalidStateError):
        sending.future.set_exception(refusal)


_LOST = Refusal(grpc.StatusCode.UNAVAILABLE, "BRANCH_CALL_LOST", "the call to the branch broke off")
