"""Data `cellpay_mesh`: cells, owners, the policy, as they are now."""

from __future__ import annotations

import json
from typing import Any

from cellpay.control.v1 import control_pb2
from tf import iface, schema
from tf.types import Bool, List, Map, Number, String

from cellpay_provider.plane import told
from cellpay_provider.resource import computed


class MeshData(iface.DataSource):
    def __init__(self, provider: Any) -> None:
        self._provider = provider

    @classmethod
    def get_name(cls) -> str:
        return "mesh"

    @classmethod
    def get_schema(cls) -> schema.Schema:
        return schema.Schema(
            version=1,
            attributes=[
                computed("cells", List(String()), "Their names, in order."),
                computed("regions", Map(String()), "Cell → region."),
                computed("healthy", Map(Bool()), "Cell → whether it holds its lease."),
                computed("slots", Map(Number()), "Cell → how many slots it owns."),
                computed("ranges", String(), "Who owns what at which epoch, as JSON."),
                computed("revision", Number(), "etcd's, of the slot map."),
                computed("automatic_failover", Bool(), "The failover policy."),
            ],
        )

    def read(self, ctx: Any, config: dict[str, Any]) -> dict[str, Any] | None:
        with told(ctx.diagnostics, "the mesh"):
            plane = self._provider.plane
            cells, slot_map = plane.cells(), plane.slot_map()
            policy = plane.call(
                plane.control.GetFailoverPolicy, control_pb2.GetFailoverPolicyRequest()
            )
            ranges = [[item.first, item.last, item.cell, item.epoch] for item in slot_map.ranges]
            return {
                "cells": sorted(cells),
                "regions": {name: cell.region for name, cell in cells.items()},
                "healthy": {
                    name: cell.health == control_pb2.Cell.HEALTH_HEALTHY
                    for name, cell in cells.items()
                },
                "slots": {
                    name: sum(piece.last - piece.first + 1 for piece in cell.slots)
                    for name, cell in cells.items()
                },
                "ranges": json.dumps(ranges),
                "revision": slot_map.revision,
                "automatic_failover": policy.automatic,
            }
        return None
