"""Between protos and the model of operations, cells and the failover policy. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cellpay.control.v1 import control_pb2 as pb
from cellpay.control.v1 import operations_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from control.health import Pulses
from control.operations.model import Gate, Operation, OperationKind, Piece, Request
from control.operations.steps import Plan, Wish
from control.operations.waves import Figures, Known
from control.verdicts import FailoverPolicy, Pulse
from control.view import View
from router.errors import Violation, bad_request
from router.slotmap import Move, Owned
from router.slots import SLOT_COUNT, SlotRange

_KINDS = {
    pb.Operation.KIND_FAILOVER: OperationKind.FAILOVER,
    pb.Operation.KIND_DRAIN: OperationKind.DRAIN,
    pb.Operation.KIND_RESTORE: OperationKind.RESTORE,
    pb.Operation.KIND_MOVE: OperationKind.MOVE,
    pb.Operation.KIND_REBALANCE: OperationKind.REBALANCE,
    pb.Operation.KIND_REMOVE: OperationKind.REMOVE,
}
_REQUESTS = {
    Request.NONE: pb.Operation.REQUEST_UNSPECIFIED,
    Request.PAUSE: pb.Operation.REQUEST_PAUSE,
    Request.ABORT: pb.Operation.REQUEST_ABORT,
}
_WEIGHT_MAX = 1_000_000
_SOAK_MS_MAX = 3_600_000


def kind_name(kind: pb.Operation.Kind.ValueType) -> str:
    """The wire may bring a kind that this version does not know."""
    return _KINDS.get(kind, "unknown")


def detail_of(request: pb.StartOperationRequest) -> str:
    """What a refused attempt was about, for the audit log."""
    if request.region:
        return f"region {request.region}"
    cells = [*request.cells, *([request.cell] if request.cell else [])]
    return " ".join(cells) or f"slots {request.first}-{request.last}"


def wish_of(request: pb.StartOperationRequest, regions: Mapping[str, str]) -> Wish:
    """Raises Refusal that names each wrong field."""
    kind = _KINDS.get(request.kind)
    cells, violations = _cells(request, regions)
    slots = None
    if kind is None:
        violations.append(Violation("kind", "must be one that can be started"))
    elif kind == OperationKind.MOVE:
        if not request.target:
            violations.append(Violation("target", "a move needs a target"))
        if not cells:
            if not 0 <= request.first <= request.last < SLOT_COUNT:
                wrong = f"first..last must lie in 0..{SLOT_COUNT - 1}"
                violations.append(Violation("first", wrong))
            slots = SlotRange(request.first, request.last)
    elif kind == OperationKind.REBALANCE:
        if cells or request.target:
            violations.append(Violation("weights", "a rebalance names cells by weight only"))
        for cell, weight in sorted(request.weights.items()):
            if not 0 <= weight <= _WEIGHT_MAX:
                violations.append(Violation(f"weights[{cell}]", f"must be 0 to {_WEIGHT_MAX}"))
    elif not cells:
        violations.append(Violation("cell", "must name a cell, cells or a region"))
    if request.weights and kind != OperationKind.REBALANCE:
        violations.append(Violation("weights", "only a rebalance has weights"))
    violations += _percent_violations(request, kind)
    if violations or kind is None:
        raise bad_request(violations)
    target = "" if kind == OperationKind.RESTORE else request.target
    one = cells[0] if len(cells) == 1 else ""
    return Wish(
        kind, one, target, slots, cells=cells if not one else (),
        percents=tuple(request.percents), weights=dict(request.weights), force=request.force,
    )  # fmt: skip


def _cells(
    request: pb.StartOperationRequest, regions: Mapping[str, str]
) -> tuple[tuple[str, ...], list[Violation]]:
    named = [*([request.cell] if request.cell else []), *request.cells]
    violations = []
    if len(set(named)) != len(named) or "" in named:
        violations.append(Violation("cells", "must be different names"))
    if request.region:
        if named:
            violations.append(Violation("region", "either cells or a region"))
        named = sorted(cell for cell, region in regions.items() if region == request.region)
        if not named:
            there = ", ".join(sorted(set(regions.values())))
            violations.append(Violation("region", f"no cell is in it; there are {there}"))
    return tuple(named), violations


def _percent_violations(
    request: pb.StartOperationRequest, kind: OperationKind | None
) -> list[Violation]:
    percents = list(request.percents)
    if not percents:
        return []
    if kind != OperationKind.MOVE:
        return [Violation("percents", "only a move goes by percentages")]
    if any(not 0 < percent <= 100 for percent in percents) or percents != sorted(set(percents)):
        return [Violation("percents", "must grow, from 1 to 100 at most")]
    return []


def gate_of(request: pb.StartOperationRequest, wish: Wish) -> Gate | None:
    """A move by percentages is watched; nothing else is. Raises Refusal."""
    asked, usual = request.gate, Gate()
    violations = []
    if not 0 <= asked.soak_ms <= _SOAK_MS_MAX:
        violations.append(Violation("gate.soak_ms", f"must be 0 to {_SOAK_MS_MAX}"))
    if not 0 <= asked.failure_percent_max <= 100:
        violations.append(Violation("gate.failure_percent_max", "must be 0 to 100"))
    violations += [
        Violation(f"gate.{name}", "must not be negative")
        for name in ("p99_ms_max", "samples_min")
        if getattr(asked, name) < 0
    ]
    if violations:
        raise bad_request(violations)
    if not wish.percents:
        return None
    has_percent = asked.HasField("failure_percent_max")
    return Gate(
        asked.soak_ms or usual.soak_ms,
        asked.failure_percent_max if has_percent else usual.failure_percent_max,
        asked.p99_ms_max or usual.p99_ms_max,
        asked.samples_min or usual.samples_min,
    )


def policy_of(message: pb.FailoverPolicy, before: FailoverPolicy) -> FailoverPolicy:
    """`before`, with what the message sets. Raises Refusal."""
    violations = []
    if not 0 <= message.failure_percent <= 100:
        violations.append(Violation("policy.failure_percent", "must be 1 to 100"))
    violations += [
        Violation(f"policy.{name}", "must not be negative")
        for name in ("samples_min", "windows", "hold_down_s")
        if getattr(message, name) < 0
    ]
    if violations:
        raise bad_request(violations)
    real = message.real_traffic if message.HasField("real_traffic") else before.real_traffic
    return FailoverPolicy(
        message.automatic,
        real,
        message.failure_percent or before.failure_percent,
        message.samples_min or before.samples_min,
        message.windows or before.windows,
        message.hold_down_s or before.hold_down_s,
    )


def policy_message(policy: FailoverPolicy) -> pb.FailoverPolicy:
    return pb.FailoverPolicy(
        automatic=policy.automatic,
        real_traffic=policy.real_traffic,
        failure_percent=policy.failure_percent,
        samples_min=policy.samples_min,
        windows=policy.windows,
        hold_down_s=policy.hold_down_s,
    )


def range_message(owned: Owned) -> pb.SlotMap.Range:
    return pb.SlotMap.Range(first=owned.first, last=owned.last, cell=owned.cell, epoch=owned.epoch)


def timestamp(time_ms: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMilliseconds(time_ms)
    return stamp


def cell_message(cell: str, view: View, pulses: Pulses) -> pb.Cell:
    live = view.live.get(cell)
    owned = view.slot_map.owned_by(cell) if view.slot_map else ()
    held = view.held.get(cell)
    pulse = pulses.by_cell.get(cell, Pulse())
    window = pulses.windows.get(cell, Figures())
    health, note = pb.Cell.HEALTH_HEALTHY, ""
    if live is None or cell in view.gone:
        health, note = pb.Cell.HEALTH_DEAD, held.why if held and held.out else ""
    elif held is not None and held.out and not owned:
        health, note = pb.Cell.HEALTH_HELD_OUT, held.why
    elif pulse.bad >= view.policy.windows:
        health, note = pb.Cell.HEALTH_GREY, f"{pulse.bad} bad windows in a row"
    if cell in view.held_down:
        note = "; ".join(filter(None, (note, f"no automatic failover: {view.held_down[cell]}")))
    return pb.Cell(
        cell=cell,
        region=view.declared.get(cell, ""),
        health=health,
        address=live.addresses[0] if live else "",
        slots=[range_message(entry) for entry in owned],
        capacity=view.capacity.get(cell, 0),
        surge=view.surge.get(cell, 0),
        note=note,
        failure_percent=window.failure_percent,
        p99_ms=window.p99_ms,
    )


def plan_message(plan: Plan, known: Known, revision: int) -> operations_pb2.OperationPlan:
    loads = {cell: len(known.slot_map.slots_of(cell)) for cell in sorted(known.declared)}
    then = dict(loads)
    for move in plan.moves:
        then[move.source] = then.get(move.source, 0) - (move.last - move.first + 1)
        then[move.target] += move.last - move.first + 1
    return operations_pb2.OperationPlan(
        pieces=_piece_messages(plan.pieces),
        first_wave=_move_messages(plan.moves),
        waiting=plan.waiting,
        loads=[
            operations_pb2.OperationPlan.Load(
                cell=cell,
                slots_now=loads[cell],
                slots_then=then[cell],
                capacity=known.capacity.get(cell, 0),
            )
            for cell in loads
        ],
        revision=revision,
    )


def operation_message(operation: Operation) -> pb.Operation:
    return pb.Operation(
        operation_id=operation.operation_id,
        kind=pb.Operation.Kind.Value(f"KIND_{operation.kind.upper()}"),
        step=pb.Operation.Step.Value(f"STEP_{operation.step.upper()}"),
        cell=operation.cell,
        moves=_move_messages((*operation.moved, *operation.moves)),
        actor=operation.actor,
        reason=operation.reason,
        history=[
            pb.Operation.StepRecord(
                step=pb.Operation.Step.Value(f"STEP_{record.step.upper()}"),
                time=timestamp(record.time_ms),
                note=record.note,
            )
            for record in operation.history
        ],
        cells=operation.all_cells(),
        wave=operation.wave,
        rest=_piece_messages(operation.rest),
        percents=operation.percents,
        request=_REQUESTS[operation.request],
        undoes=operation.undoes,
        undone_by=operation.undone_by,
    )


def _move_messages(moves: Iterable[Move]) -> list[pb.Operation.Move]:
    return [pb.Operation.Move(**move._asdict()) for move in moves]


def _piece_messages(pieces: Iterable[Piece]) -> list[pb.Operation.Piece]:
    return [pb.Operation.Piece(**piece._asdict()) for piece in pieces]
