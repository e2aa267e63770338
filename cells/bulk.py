"""Many requests in one call: each is checked, decided and answered for itself.

What they share is the call and, as far as they come together, the ledger's group. Their slots may
be any of this cell's: each is held here while its request runs, as the guard does for one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from cells.answers import resource_of
from cells.ledger.model import Command, Outcome
from cells.ledger.worker import Lanes
from router.errors import Refusal, Violation, bad_request
from router.guard import SlotsHere
from router.tally import Tally

REQUESTS_MAX = 1000

Request = TypeVar("Request")
Submit = Callable[[Sequence[Any], float | None], Awaitable[Sequence[Outcome | Refusal]]]


class Bulk:
    def __init__(self, lanes: Lanes, here: SlotsHere, tally: Tally) -> None:
        self._lanes = lanes
        self._here = here
        self._tally = tally

    async def run(
        self,
        field: str,
        requests: Sequence[Request],
        command_of: Callable[[Request], Command],
        timeout_s: float | None,
        submit: Submit | None = None,
    ) -> list[Any]:
        """Each request's resource, or the Refusal that is its outcome, in their order.

        `field` holds the requests; `command_of` raises Refusal for a request that is wrong.
        `submit`: another way into the lanes than the straight one.
        """
        if len(requests) > REQUESTS_MAX:
            much = f"has {len(requests)} items; at most {REQUESTS_MAX}"
            raise bad_request([Violation(field, much)])
        outcomes: list[Any] = [None] * len(requests)
        commands: list[Command] = []
        places: list[int] = []
        try:
            for place, request in enumerate(requests):
                try:
                    command = command_of(request)
                    self._here.enter_now(command.slot)
                except Refusal as refusal:
                    outcomes[place] = refusal
                else:
                    commands.append(command)
                    places.append(place)
            found: list[Any] = []
            new = [command.slot in self._here.newcomers for command in commands]
            with self._tally.many(found, new):
                found += await (submit or self._lanes.submit_many)(commands, timeout_s)
        finally:
            for command in commands:
                self._here.leave(command.slot)
        for place, outcome in zip(places, found, strict=True):
            try:
                outcomes[place] = outcome if isinstance(outcome, Refusal) else resource_of(outcome)
            except Refusal as refusal:
                outcomes[place] = refusal
        return outcomes


def status_bytes(refusal: Refusal) -> bytes:
    """As gRPC's trailer `grpc-status-details-bin` has it."""
    status: bytes = refusal.to_status().SerializeToString()
    return status
