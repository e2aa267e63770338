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
from router.tracing.current import error_of
from router.tracing.model import Root, SpanKind
from router.tracing.tracer import Tracer

REQUESTS_MAX = 1000
# A span's name, and the traceparent that came with the request; empty: none did.
TraceOf = tuple[str, str]

Request = TypeVar("Request")
Submit = Callable[[Sequence[Any], float | None], Awaitable[Sequence[Outcome | Refusal]]]


class Bulk:
    def __init__(
        self, lanes: Lanes, here: SlotsHere, tally: Tally, tracer: Tracer | None = None
    ) -> None:
        self._tracer = tracer
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
        trace_of: Callable[[Request], TraceOf] | None = None,
        ended: Callable[[Outcome | Refusal], None] | None = None,
    ) -> list[Any]:
        """Each request's resource, or the Refusal that is its outcome, in their order.

        `field` holds the requests; `command_of` raises Refusal for a request that is wrong.
        `submit`: another way into the lanes than the straight one.
        `trace_of`: for requests that belong to traces of their own, not to the call's. `ended`
        hears how each of them ended.
        """
        if len(requests) > REQUESTS_MAX:
            much = f"has {len(requests)} items; at most {REQUESTS_MAX}"
            raise bad_request([Violation(field, much)])
        outcomes: list[Any] = [None] * len(requests)
        commands: list[Command] = []
        places: list[int] = []
        roots: list[Root | None] = []
        tracer = self._tracer if trace_of is not None else None
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
                    if tracer is not None and trace_of is not None:
                        roots.append(_begin(tracer, *trace_of(request), command.slot))
            found: list[Any] = []
            new = [command.slot in self._here.newcomers for command in commands]
            with self._tally.many(found, new):
                found += await (
                    submit(commands, timeout_s)
                    if submit is not None
                    else self._lanes.submit_many(commands, timeout_s, roots)
                )
        finally:
            for command in commands:
                self._here.leave(command.slot)
        for place, outcome in zip(places, found, strict=True):
            if ended is not None:
                ended(outcome)
            outcomes[place] = _answer_of(outcome)
        if tracer is not None:
            for place, root in zip(places, roots, strict=True):
                _end(tracer, root, outcomes[place])
        return outcomes


def _answer_of(outcome: Outcome | Refusal) -> Any:
    try:
        return outcome if isinstance(outcome, Refusal) else resource_of(outcome)
    except Refusal as refusal:
        return refusal


def _end(tracer: Tracer, root: Root | None, answer: Any) -> None:
    if root is not None:
        tracer.end(root, error_of(answer) if isinstance(answer, Refusal) else "")


def _begin(tracer: Tracer, name: str, traceparent: str, slot: int) -> Root | None:
    """None for a request that came without a trace: the call's own says enough of it."""
    if not traceparent:
        return None
    root = tracer.begin(name, SpanKind.SERVER, traceparent)
    root.slot = slot
    return root


def status_bytes(refusal: Refusal) -> bytes:
    """As gRPC's trailer `grpc-status-details-bin` has it."""
    status: bytes = refusal.to_status().SerializeToString()
    return status
