"""DrillService: step 1 of a drill's walk. Authorise, audit, write the plan, start its process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from cellpay.control.v1 import drills_pb2 as pb
from cellpay.control.v1 import drills_pb2_grpc

from control.audit import audit_put, audit_record, record_denial
from control.drills import rules
from control.drills.messages import drill_message, spec_of
from control.drills.model import Drill, plan
from control.drills.store import EndRequest, Journal, journals
from control.drills.watching import Keeper
from control.view import View
from router.errors import Refusal, Violation, bad_request
from router.identity import Caller, caller_of
from router.store.model import RUNNING_DRILL_KEY, Store, StoreUnavailable

_READERS = frozenset({"operator", "service", "cell", "controller", "edge"})
_WRITERS = frozenset({"operator"})
_REASON_CHARACTERS_MAX = 512
_DETAIL_CHARACTERS_MAX = 256
_PAGE_SIZE_DEFAULT = 50
_PAGE_SIZE_MAX = 500


class DrillService(drills_pb2_grpc.DrillServiceServicer):
    def __init__(self, store: Store, view: View, keeper: Keeper | None) -> None:
        """`keeper`: of the local mesh; None where there is none."""
        self._store = store
        self._view = view
        self._found_keeper = keeper

    async def StartDrill(self, request: pb.StartDrillRequest, context: Any) -> pb.Drill:
        action, detail = "drill.start", request.spec.name
        actor = await self._writer(context, action, detail, request.reason)
        try:
            drill = await self._start(request, actor)
        except Refusal as refusal:
            await self._denied(actor, action, detail, request.reason, refusal.reason)
            raise
        return drill_message(drill, self._data)

    async def _start(self, request: pb.StartDrillRequest, actor: str) -> Drill:
        data = self._data
        _check_reason(request.reason)
        spec = spec_of(request.spec)
        wrong = rules.violations_of(spec, dict(self._view.declared))
        if wrong:
            raise bad_request(wrong)
        journal = Journal(data, spec.name)
        before = journal.load()
        if before is not None and not before.ended:
            if before.spec == spec:
                return before
            raise Refusal(
                grpc.StatusCode.ALREADY_EXISTS,
                "DRILL_EXISTS",
                f"drill {spec.name} runs already, as another one ({before.spec.fault}, "
                f"{before.state}); end it first, or take another name",
            )
        running = await self._store.get(RUNNING_DRILL_KEY)
        self._require_alone(running.value if running else "", spec.name)
        run = before.run + 1 if before else 1
        drill = plan(spec, run, actor, request.reason, time_ms=time.time_ns() // 1_000_000)
        record = audit_record(
            actor, "drill.start", f"{spec.name} run {run}: {spec.fault}", request.reason
        )
        stored = await self._store.commit(
            expect={RUNNING_DRILL_KEY: running.revision if running else 0},
            puts={RUNNING_DRILL_KEY: spec.name, **audit_put(record)},
        )
        if stored is None:
            raise Refusal(
                grpc.StatusCode.ABORTED, "DRILL_RACE", "another drill began just now; look again"
            )
        journal.save(drill)
        self._keeper.start(journal)
        return drill

    def _require_alone(self, name: str, ours: str) -> None:
        """Two faults at once would prove nothing of either."""
        if not name or name == ours:
            return
        other = Journal(self._data, name).load()
        if other is not None and not other.ended:
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "DRILL_IN_PROGRESS",
                f"drill {name} is under way ({other.state}); wait for its end, or end it",
                metadata={"drill": name},
            )

    async def GetDrill(self, request: pb.GetDrillRequest, context: Any) -> pb.Drill:
        _reader(context)
        _, drill = self._find(request.name)
        return drill_message(drill, self._data)

    async def ListDrills(
        self, request: pb.ListDrillsRequest, context: Any
    ) -> pb.ListDrillsResponse:
        _reader(context)
        found = [drill for journal in journals(self._data) if (drill := journal.load())]
        found.sort(key=lambda drill: (-drill.history[0].time_ms, drill.spec.name))
        page, token = _page(found, request.page_size, request.page_token)
        return pb.ListDrillsResponse(
            drills=[drill_message(drill, self._data) for drill in page], next_page_token=token
        )

    async def EndDrill(self, request: pb.EndDrillRequest, context: Any) -> pb.Drill:
        action, detail = "drill.end", request.name
        actor = await self._writer(context, action, detail, request.reason)
        try:
            _check_reason(request.reason)
            journal, drill = self._find(request.name)
        except Refusal as refusal:
            await self._denied(actor, action, detail, request.reason, refusal.reason)
            raise
        if drill.ended or journal.end_request(drill.run):
            return drill_message(drill, self._data)
        end = EndRequest(drill.run, actor, request.reason, audited=True)
        try:
            record = audit_record(actor, action, f"{detail} run {drill.run}", request.reason)
            await self._store.commit(expect={}, puts=audit_put(record))
        except StoreUnavailable:
            # To heal needs no permission of a store that may be what is drilled.
            end = replace(end, audited=False)
        journal.ask_to_end(end)
        return drill_message(drill, self._data)

    @property
    def _data(self) -> Path:
        return self._keeper.data

    @property
    def _keeper(self) -> Keeper:
        if self._found_keeper is None:
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "NO_LOCAL_MESH",
                "drills are carried out on a local mesh, and this controller belongs to none",
            )
        return self._found_keeper

    def _find(self, name: str) -> tuple[Journal, Drill]:
        known = {journal.name: journal for journal in journals(self._data)}
        drill = known[name].load() if name in known else None
        if drill is None:
            raise Refusal(
                grpc.StatusCode.NOT_FOUND, "DRILL_NOT_FOUND", f"there is no drill {name[:64]!r}"
            )
        return known[name], drill

    async def _writer(self, context: Any, action: str, detail: str, reason: str) -> str:
        caller = caller_of(context)
        if caller is None or caller.kind not in _WRITERS:
            name = caller.spiffe_id if caller else "nobody"
            await self._denied(name, action, detail, reason, "not an operator")
            raise _not_allowed(caller)
        return caller.spiffe_id

    async def _denied(self, actor: str, action: str, detail: str, reason: str, why: str) -> None:
        record = audit_record(
            actor, action, detail[:_DETAIL_CHARACTERS_MAX], reason[:_DETAIL_CHARACTERS_MAX],
            f"denied: {why}",
        )  # fmt: skip
        await record_denial(self._store, record)


def _reader(context: Any) -> None:
    caller = caller_of(context)
    if caller is None or caller.kind not in _READERS:
        raise _not_allowed(caller)


def _not_allowed(caller: Caller | None) -> Refusal:
    who = caller.spiffe_id if caller else "a caller without an identity"
    return Refusal(
        grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED", f"{who} may not do this"
    )


def _check_reason(reason: str) -> None:
    if not reason.strip() or len(reason) > _REASON_CHARACTERS_MAX:
        wanted = f"must say why, in 1 to {_REASON_CHARACTERS_MAX} characters"
        raise bad_request([Violation("reason", wanted)])


def _page(drills: Sequence[Drill], size: int, token: str) -> tuple[Sequence[Drill], str]:
    """Pages end at a name: drills are few, and each name stands once."""
    if size < 0:
        raise bad_request([Violation("page_size", "must not be negative")])
    names = [drill.spec.name for drill in drills]
    if token and token not in names:
        raise bad_request([Violation("page_token", "is not a token we returned")])
    first = names.index(token) + 1 if token else 0
    last = first + min(size or _PAGE_SIZE_DEFAULT, _PAGE_SIZE_MAX)
    page = drills[first:last]
    return page, names[last - 1] if last < len(names) else ""
