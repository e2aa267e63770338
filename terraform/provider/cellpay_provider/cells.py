"""`cellpay_cell` and `cellpay_slot_assignment`: who serves what. Destroying puts it back."""

from __future__ import annotations

import json
from typing import Any

from cellpay.control.v1 import control_pb2
from tf import schema

from cellpay_provider.plane import told
from cellpay_provider.resource import (
    DEFAULT_REASON,
    REASON,
    Bool,
    MeshResource,
    Number,
    String,
    computed,
    optional,
    required,
)

_SLOTS_MAX = 1024
# What a range shows that more than one cell owns: the plan then says what it is to become.
_MIXED = "mixed"


class Cell(MeshResource):
    """A cell that the mesh has: whether it serves. Cells come and go with the mesh, not here."""

    @classmethod
    def get_name(cls) -> str:
        return "cell"

    @classmethod
    def get_schema(cls) -> schema.Schema:
        return schema.Schema(
            version=1,
            attributes=[
                required("cell", String(), "Its name.", replace=True),
                optional("drained", Bool(), False, "True: for maintenance, it owns no slot."),
                optional("reason", String(), DEFAULT_REASON, REASON),
                computed("region", String(), "Where it is."),
            ],
        )

    def _state(self, cell: str, reason: str) -> dict[str, Any] | None:
        found = self.plane.cells().get(cell)
        if found is None:
            return None
        return {
            "cell": cell,
            "drained": not found.slots,
            "reason": reason,
            "region": found.region,
        }

    def _apply(self, planned: dict[str, Any]) -> dict[str, Any]:
        current = self._state(planned["cell"], planned["reason"])
        if current is None:
            known = ", ".join(sorted(self.plane.cells()))
            raise ValueError(f"there is no cell {planned['cell']!r}; there are {known}")
        if current["drained"] != planned["drained"]:
            kind = "KIND_DRAIN" if planned["drained"] else "KIND_RESTORE"
            self.plane.operate(
                kind=control_pb2.Operation.Kind.Value(kind),
                cell=planned["cell"],
                reason=planned["reason"],
            )
        return {**current, "drained": planned["drained"]}

    def create(self, ctx: Any, planned: dict[str, Any]) -> dict[str, Any] | None:
        with told(ctx.diagnostics, f"cell {planned['cell']}"):
            return self._apply(planned)
        return None

    def read(self, ctx: Any, current: dict[str, Any]) -> dict[str, Any] | None:
        with told(ctx.diagnostics, f"cell {current['cell']}"):
            return self._state(current["cell"], current["reason"])
        return current

    def update(
        self, ctx: Any, current: dict[str, Any], planned: dict[str, Any]
    ) -> dict[str, Any] | None:
        with told(ctx.diagnostics, f"cell {planned['cell']}"):
            return self._apply(planned)
        return current

    def delete(self, ctx: Any, current: dict[str, Any]) -> dict[str, Any] | None:
        """A drained cell gets its slots back."""
        with told(ctx.diagnostics, f"cell {current['cell']}"):
            if self._state(current["cell"], "") is not None:
                self._apply({**current, "drained": False})
            return None
        return current

    def import_(self, ctx: Any, id: str) -> dict[str, Any] | None:
        with told(ctx.diagnostics, f"cell {id}"):
            state = self._state(id, DEFAULT_REASON)
            if state is None:
                raise ValueError(f"there is no cell {id!r}")
            return state
        return None


class SlotAssignment(MeshResource):
    """A range of slots is some cell's; destroyed, it is again whose it was."""

    @classmethod
    def get_name(cls) -> str:
        return "slot_assignment"

    @classmethod
    def get_schema(cls) -> schema.Schema:
        return schema.Schema(
            version=1,
            attributes=[
                required("first", Number(), "The first slot.", replace=True),
                required("last", Number(), "The last slot, included.", replace=True),
                required("cell", String(), "Whose they are to be."),
                optional("reason", String(), DEFAULT_REASON, REASON),
                computed("previous", String(), "Whose they were before, as JSON."),
            ],
        )

    def validate(self, diags: Any, type_name: str, config: dict[str, Any]) -> None:
        first, last = config.get("first"), config.get("last")
        known = isinstance(first, int) and isinstance(last, int)
        if known and not 0 <= first <= last < _SLOTS_MAX:
            wanted = f"first and last must be 0 to {_SLOTS_MAX - 1}, and not run backwards"
            diags.add_error("no such range of slots", wanted, path=["first"])

    def _cell(self, first: int, last: int) -> str:
        owners = {owner for _, _, owner in self.plane.owners(first, last)}
        return owners.pop() if len(owners) == 1 else _MIXED

    def create(self, ctx: Any, planned: dict[str, Any]) -> dict[str, Any] | None:
        first, last = int(planned["first"]), int(planned["last"])
        with told(ctx.diagnostics, f"slots {first}-{last}"):
            previous = self.plane.owners(first, last)
            self.plane.move([(first, last, planned["cell"])], planned["reason"])
            return {**planned, "previous": json.dumps(previous)}
        return None

    def read(self, ctx: Any, current: dict[str, Any]) -> dict[str, Any] | None:
        first, last = int(current["first"]), int(current["last"])
        with told(ctx.diagnostics, f"slots {first}-{last}"):
            return {**current, "cell": self._cell(first, last)}
        return current

    def update(
        self, ctx: Any, current: dict[str, Any], planned: dict[str, Any]
    ) -> dict[str, Any] | None:
        first, last = int(planned["first"]), int(planned["last"])
        with told(ctx.diagnostics, f"slots {first}-{last}"):
            self.plane.move([(first, last, planned["cell"])], planned["reason"])
            return {**planned, "previous": current["previous"]}
        return current

    def delete(self, ctx: Any, current: dict[str, Any]) -> dict[str, Any] | None:
        with told(ctx.diagnostics, f"slots {current['first']}-{current['last']}"):
            self.plane.move(json.loads(current["previous"]), current["reason"])
            return None
        return current

    def import_(self, ctx: Any, id: str) -> dict[str, Any] | None:
        """ID: `0-99`. Whose the slots were before is not known: destroying leaves them."""
        with told(ctx.diagnostics, f"slots {id}"):
            low, _, high = id.partition("-")
            first, last = int(low), int(high or low)
            owners = self.plane.owners(first, last)
            return {
                "first": first, "last": last, "cell": self._cell(first, last),
                "reason": DEFAULT_REASON, "previous": json.dumps(owners),
            }  # fmt: skip
        return None
