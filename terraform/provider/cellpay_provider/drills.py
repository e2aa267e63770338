"""`cellpay_drill`: applied, the fault is there and was judged; destroyed, it is healed, reported.

A drill that ended by itself meanwhile (its lease ran out, it was aborted) is seen by the next plan
as gone. Destroying it heals what is left, and that may be nothing: the mesh was restarted.
"""

from __future__ import annotations

import time
from typing import Any

import grpc
from cellpay.control.v1 import drills_pb2 as pb
from tf import schema

from cellpay_provider.plane import Failed, reason_of, told
from cellpay_provider.resource import (
    DEFAULT_REASON,
    REASON,
    MeshResource,
    Number,
    String,
    computed,
    optional,
    required,
)

_POLL_S = 0.3
# Checks before and after may take a minute each on a small machine, moves as long again.
_WAIT_S = 300.0
_ENDED = frozenset(
    {
        pb.Drill.STATE_REPORTED,
        pb.Drill.STATE_REFUSED,
        pb.Drill.STATE_ABORTED,
        pb.Drill.STATE_FAILED,
    }
)
_STANDS = _ENDED | {pb.Drill.STATE_CHECKED_DURING}
_SPEC = {
    "cell": (String(), "", "The cell that it is about."),
    "other_cell": (String(), "", "For a partition."),
    "region": (String(), "", "For the loss of a region."),
    "lease_s": (Number(), 120, "It heals by itself after this."),
    "observe_s": (Number(), 10, "Judged after this."),
    "check_s": (Number(), 3, "How long the steady state is measured before and after."),
    "latency_ms": (Number(), 0, "For latency and slow channel."),
    "loss_ratio": (Number(), 0, "For latency."),
    "clock_offset_s": (Number(), 0, "For a clock jump."),
    "times": (Number(), 0, "For overload."),
    "probe_rate_per_s": (Number(), 20, "Probe payments a second."),
}
_BOUNDS = {
    "success_min": (Number(), 0.99, "Of payments, before and after."),
    "p99_max_ms": (Number(), 2000, "Before and after."),
    "during_success_min": (Number(), 0.9, "While the fault lasts."),
    "during_p99_max_ms": (Number(), 12000, "While the fault lasts."),
    "abort_success_min": (Number(), 0.2, "Fewer lately, and it is aborted and healed."),
}


class Drill(MeshResource):
    @classmethod
    def get_name(cls) -> str:
        return "drill"

    @classmethod
    def get_schema(cls) -> schema.Schema:
        more = [
            optional(name, kind, default, text, replace=True)
            for name, (kind, default, text) in (_SPEC | _BOUNDS).items()
        ]
        return schema.Schema(
            version=1,
            attributes=[
                required("name", String(), "Lower case letters, digits, hyphens.", replace=True),
                required("fault", String(), "cell_loss, pause, nats_loss …", replace=True),
                *more,
                optional("reason", String(), DEFAULT_REASON, REASON),
                computed("run", Number(), "Which run of this name it is."),
                computed("state", String(), "checked_during while it lasts."),
                computed("during", String(), "What the check while it lasts said."),
                computed("report", String(), "Where its report will be."),
            ],
        )

    def _get(self, name: str) -> Any | None:
        try:
            return self.plane.call(self.plane.drills.GetDrill, pb.GetDrillRequest(name=name))
        except grpc.RpcError as error:
            if reason_of(error) == "DRILL_NOT_FOUND":
                return None
            raise

    def _follow(self, drill: Any, until: frozenset[int]) -> Any:
        """Over a controller's death if need be: the drill's process does not need it."""
        deadline = time.monotonic() + _WAIT_S
        while drill.state not in until:
            if time.monotonic() > deadline:
                raise Failed(f"drill {drill.spec.name} still stands at {_state(drill)}")
            time.sleep(_POLL_S)
            request = pb.GetDrillRequest(name=drill.spec.name)
            drill = self.plane.drills.GetDrill(request, timeout=30, wait_for_ready=True)
        return drill

    def create(self, ctx: Any, planned: dict[str, Any]) -> dict[str, Any] | None:
        with told(ctx.diagnostics, f"drill {planned['name']}"):
            fault = f"FAULT_{planned['fault'].upper()}"
            if fault not in pb.Fault.keys()[1:]:
                known = ", ".join(
                    name.removeprefix("FAULT_").lower() for name in pb.Fault.keys()[1:]
                )
                raise ValueError(f"there is no fault {planned['fault']!r}; there are {known}")
            spec = pb.DrillSpec(
                name=planned["name"],
                fault=pb.Fault.Value(fault),
                hypothesis=pb.Hypothesis(
                    **{name: _plain(planned[name], Number()) for name in _BOUNDS}
                ),
                **{name: _plain(planned[name], kind) for name, (kind, _, _) in _SPEC.items()},
            )
            request = pb.StartDrillRequest(spec=spec, reason=planned["reason"])
            drill = self.plane.call(self.plane.drills.StartDrill, request)
            drill = self._follow(drill, _STANDS)
            if drill.state in _ENDED:
                # Healed already, so nothing is left that Terraform would have to know of.
                raise Failed(
                    f"it is {_state(drill)}: {drill.history[-1].note or _why(drill)}; "
                    f"its report: {drill.report}"
                )
            return {**planned, **_outcome(drill)}
        return None

    def read(self, ctx: Any, current: dict[str, Any]) -> dict[str, Any] | None:
        with told(ctx.diagnostics, f"drill {current['name']}"):
            drill = self._get(current["name"])
            if drill is None or drill.state in _ENDED or drill.run != current["run"]:
                return None
            return {**current, **_outcome(drill)}
        return current

    def update(
        self, ctx: Any, current: dict[str, Any], planned: dict[str, Any]
    ) -> dict[str, Any] | None:
        """Only the reason can change, for the end."""
        return {**current, "reason": planned["reason"]}

    def delete(self, ctx: Any, current: dict[str, Any]) -> dict[str, Any] | None:
        name = current["name"]
        with told(ctx.diagnostics, f"drill {name}"):
            drill = self._get(name)
            if drill is None:
                ctx.diagnostics.add_warning(
                    f"drill {name}",
                    "this mesh does not know it: it is another mesh, with nothing to heal",
                )
                return None
            if drill.run != current["run"]:
                return None
            request = pb.EndDrillRequest(name=name, reason=current["reason"])
            drill = self._follow(
                self.plane.call(self.plane.drills.EndDrill, request, timeout_s=20), _ENDED
            )
            if drill.state == pb.Drill.STATE_FAILED:
                raise Failed(f"{drill.history[-1].note or _why(drill)}; its report: {drill.report}")
            if drill.verdict != "held":
                told_why = f"{_state(drill)}: {_why(drill)}; its report: {drill.report}"
                ctx.diagnostics.add_warning(f"drill {name}: the steady state broke", told_why)
            return None
        return current

    def import_(self, ctx: Any, id: str) -> dict[str, Any] | None:
        with told(ctx.diagnostics, f"drill {id}"):
            drill = self._get(id)
            if drill is None or drill.state in _ENDED:
                raise ValueError(f"no drill {id!r} is under way")
            spec = drill.spec
            return {
                "name": spec.name,
                "fault": pb.Fault.Name(spec.fault).removeprefix("FAULT_").lower(),
                **{name: getattr(spec, name) for name in _SPEC},
                **{name: getattr(spec.hypothesis, name) for name in _BOUNDS},
                "reason": drill.reason,
                **_outcome(drill),
            }
        return None


def _plain(value: Any, kind: Any) -> Any:
    """Terraform sends a number that binary cannot hold exactly, such as 0.99, as its digits."""
    return float(value) if isinstance(kind, Number) and isinstance(value, str) else value


def _state(drill: Any) -> str:
    return pb.Drill.State.Name(drill.state).removeprefix("STATE_").lower()


def _outcome(drill: Any) -> dict[str, Any]:
    during = [check for check in drill.checks if check.phase == "during"]
    told_during = "held" if during and during[-1].holds else _why(drill)
    return {
        "run": drill.run, "state": _state(drill), "during": told_during, "report": drill.report,
    }  # fmt: skip


def _why(drill: Any) -> str:
    """What did not hold; else the last thing that was noted, as why it was cut short."""
    broken = "; ".join(f"{check.phase}: {check.why}" for check in drill.checks if not check.holds)
    notes = [record.note for record in drill.history if record.note]
    return broken or (notes[-1] if notes else "")
