"""Drills as messages, and the other way."""

from __future__ import annotations

from pathlib import Path

from cellpay.control.v1 import drills_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from control.drills.model import Drill, Fault, Hypothesis, Spec
from control.drills.store import Journal
from router.errors import Violation, bad_request


def spec_of(message: pb.DrillSpec) -> Spec:
    """With the defaults where the message says nothing. Raises Refusal."""
    name = pb.Fault.Name(message.fault) if message.fault in pb.Fault.values() else ""
    try:
        fault = Fault(name.removeprefix("FAULT_").lower())
    except ValueError:
        known = ", ".join(Fault)
        raise bad_request([Violation("spec.fault", f"must be one of {known}")]) from None
    plain, bound = Spec("", fault), Hypothesis()
    wanted = message.hypothesis
    return Spec(
        name=message.name,
        fault=fault,
        cell=message.cell,
        other_cell=message.other_cell,
        region=message.region,
        lease_s=message.lease_s or plain.lease_s,
        observe_s=message.observe_s or plain.observe_s,
        latency_ms=message.latency_ms,
        loss_ratio=message.loss_ratio,
        clock_offset_s=message.clock_offset_s,
        times=message.times,
        check_s=message.check_s or plain.check_s,
        probe_rate_per_s=message.probe_rate_per_s or plain.probe_rate_per_s,
        hypothesis=Hypothesis(
            success_min=wanted.success_min or bound.success_min,
            p99_max_ms=wanted.p99_max_ms or bound.p99_max_ms,
            during_success_min=wanted.during_success_min or bound.during_success_min,
            during_p99_max_ms=wanted.during_p99_max_ms or bound.during_p99_max_ms,
            abort_success_min=wanted.abort_success_min or bound.abort_success_min,
        ),
    )


def drill_message(drill: Drill, data: Path) -> pb.Drill:
    spec = drill.spec
    bound = spec.hypothesis
    message = pb.Drill(
        spec=pb.DrillSpec(
            name=spec.name,
            fault=pb.Fault.Value(f"FAULT_{spec.fault.upper()}"),
            cell=spec.cell,
            other_cell=spec.other_cell,
            region=spec.region,
            lease_s=spec.lease_s,
            observe_s=spec.observe_s,
            latency_ms=spec.latency_ms,
            loss_ratio=spec.loss_ratio,
            clock_offset_s=spec.clock_offset_s,
            times=spec.times,
            check_s=spec.check_s,
            probe_rate_per_s=spec.probe_rate_per_s,
            hypothesis=pb.Hypothesis(
                success_min=bound.success_min,
                p99_max_ms=bound.p99_max_ms,
                during_success_min=bound.during_success_min,
                during_p99_max_ms=bound.during_p99_max_ms,
                abort_success_min=bound.abort_success_min,
            ),
        ),
        run=drill.run,
        state=pb.Drill.State.Value(f"STATE_{drill.state.upper()}"),
        actor=drill.actor,
        reason=drill.reason,
        history=[
            pb.Drill.StateRecord(
                state=pb.Drill.State.Value(f"STATE_{item.state.upper()}"),
                time=_timestamp(item.time_ms),
                note=item.note,
            )
            for item in drill.history
        ],
        checks=[
            pb.Drill.Check(
                phase=check.phase,
                payments=check.payments,
                success_ratio=check.success_ratio,
                p99_ms=check.p99_ms,
                books=check.books,
                holds=check.holds,
                why=check.why,
            )
            for check in drill.checks
        ],
        verdict=drill.verdict,
        outage_ms=drill.outage_ms,
        budget_burnt=drill.budget_burnt,
        report=str(Journal(data, spec.name).report_folder(drill.run)),
    )
    if drill.lease_until_ms is not None:
        message.lease_expire_time.CopyFrom(_timestamp(drill.lease_until_ms))
    return message


def _timestamp(time_ms: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMilliseconds(time_ms)
    return stamp
