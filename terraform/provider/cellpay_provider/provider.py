"""The provider: its configuration, and what it offers."""

from __future__ import annotations

import os
from typing import Any

from tf import iface, schema, types
from tf.utils import Diagnostics

from cellpay_provider.cells import Cell, SlotAssignment
from cellpay_provider.drills import Drill
from cellpay_provider.mesh import MeshData
from cellpay_provider.plane import NotConfigured, Plane, access_of
from cellpay_provider.policies import FailoverPolicy, document_policies

_DATA_VARIABLE = "CELLPAY_DATA"


class CellpayProvider(iface.Provider):
    def __init__(self) -> None:
        self._config: dict[str, Any] = {}
        self._plane: Plane | None = None

    @property
    def plane(self) -> Plane:
        """Connected when first needed: `terraform validate` needs no mesh. Raises NotConfigured."""
        if self._plane is None:
            self._plane = Plane(access_of(self._config))
        return self._plane

    def get_model_prefix(self) -> str:
        return "cellpay_"

    def full_name(self) -> str:
        return "cellpay.local/cellpay/cellpay"

    def get_provider_schema(self, diags: Diagnostics) -> schema.Schema:
        names = {
            "data": "The directory of a local mesh; CELLPAY_DATA when not given.",
            "address": "host:port of a controller, without a local mesh.",
            "ca": "The mesh's CA, a PEM file.",
            "certificate": "The operator's certificate, a PEM file.",
            "key": "Its key, a PEM file.",
        }
        return schema.Schema(
            version=1,
            attributes=[
                schema.Attribute(name, types.String(), optional=True, description=text)
                for name, text in names.items()
            ],
        )

    def validate_config(self, diags: Diagnostics, config: dict[str, Any]) -> None:
        """Nothing that needs the mesh: it may be started by another part of the configuration."""

    def configure_provider(self, diags: Diagnostics, config: dict[str, Any]) -> None:
        self._config = dict(config or {})
        self._config["data"] = self._config.get("data") or os.environ.get(_DATA_VARIABLE, "")
        try:
            access_of(self._config)
        except NotConfigured as error:
            diags.add_error("no control plane", str(error))

    def get_data_sources(self) -> list[type[iface.DataSource]]:
        return [MeshData]

    def get_resources(self) -> list[type[iface.Resource]]:
        return [Cell, SlotAssignment, FailoverPolicy, Drill, *document_policies()]
