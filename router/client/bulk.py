"""Many payments in few calls, sent to whichever cells their payers have their homes in.

The client has no slot map of its own, and needs none: what a cell refuses as not its own names the
owner, and what is learned lasts until it is refused again. Payments are gathered by owner and by
the slot's remainder, so that two calls under way never have a slot in common (and no lane waits for
another's row locks).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import grpc
from cellpay.payments.v1 import payments_pb2 as pb

from router.client.mesh import Mesh
from router.errors import Refusal, refusal_of
from router.ids import slot_of_id

_SHARES = 8
_REROUTED = frozenset({"SLOT_MOVED", "SLOT_MOVING", "NOT_HOME", "NOT_OWNER"})
_RETRIED = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)
_WAIT_BASE_S = 0.02
_WAIT_CAP_S = 0.5


class BulkPayer:
    """Keeps what it learns of the slots' homes from one `pay` to the next."""

    def __init__(self, mesh: Mesh, *, batch_size: int = 256, timeout_s: float = 30.0) -> None:
        self._mesh = mesh
        self._batch_size = batch_size
        self._timeout_s = timeout_s
        self._owners: dict[int, str] = {}

    async def pay(self, requests: Sequence[pb.PayRequest]) -> list[pb.Payment | Refusal]:
        """Each request's payment or refusal, in their order. Every request needs its own
        idempotency key: what has no answer in time may be sent again."""
        outcomes: list[pb.Payment | Refusal] = [_NOT_SENT] * len(requests)
        until = asyncio.get_running_loop().time() + self._timeout_s
        left = list(range(len(requests)))
        tries = 0
        while left:
            async with asyncio.TaskGroup() as group:
                for share in self._shares(requests, left):
                    group.create_task(self._pay_share(requests, share, outcomes))
            left = [place for place in left if _worth_another(outcomes[place])]
            tries += 1
            wait = random.uniform(0.3, 1.0) * min(_WAIT_CAP_S, _WAIT_BASE_S * 2**tries)
            if not left or asyncio.get_running_loop().time() + wait > until:
                break
            await asyncio.sleep(wait)
        return outcomes

    def _shares(self, requests: Sequence[pb.PayRequest], places: Sequence[int]) -> list[list[int]]:
        shares: dict[tuple[str, int], list[int]] = {}
        for place in places:
            slot = _slot_of(requests[place])
            shares.setdefault((self._owners.get(slot, ""), slot % _SHARES), []).append(place)
        return list(shares.values())

    async def _pay_share(
        self,
        requests: Sequence[pb.PayRequest],
        places: Sequence[int],
        outcomes: list[pb.Payment | Refusal],
    ) -> None:
        """One call after the other."""
        for first in range(0, len(places), self._batch_size):
            part = places[first : first + self._batch_size]
            batch = pb.BatchPayRequest(payments=[requests[place] for place in part])
            try:
                answer = await self._mesh.payments.BatchPay(batch, timeout=self._timeout_s)
            except grpc.aio.AioRpcError as error:
                for place in part:
                    outcomes[place] = refusal_of(error)
                continue
            except Refusal as refusal:
                # The first has no valid ID, so the call has no home: the others need not suffer.
                outcomes[part[0]] = refusal
                await self._pay_share(requests, part[1:], outcomes)
                continue
            for place, result in zip(part, answer.results, strict=True):
                outcomes[place] = self._outcome(requests[place], result)

    def _outcome(self, request: pb.PayRequest, result: pb.PayResult) -> pb.Payment | Refusal:
        if not result.error_status:
            return result.payment
        refusal = Refusal.from_status(result.error_status)
        if refusal.reason in _REROUTED:
            self._owners[_slot_of(request)] = refusal.metadata.get("owner", "")
        return refusal


_NOT_SENT = Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "NOT_SENT", "the time was up before it went")


def _slot_of(request: pb.PayRequest) -> int:
    try:
        return slot_of_id(request.order_id)
    except ValueError:
        # The cell will say what is wrong with it.
        return -1


def _worth_another(outcome: pb.Payment | Refusal) -> bool:
    return isinstance(outcome, Refusal) and (
        outcome.reason in _REROUTED or outcome.code in _RETRIED
    )
