"""What all resources have in common: the provider, and that errors leave the state as it was."""

from __future__ import annotations

from typing import Any

from tf import iface, schema
from tf.types import Bool, Number, String

REASON = "Why: kept in the audit log."
DEFAULT_REASON = "terraform"


def required(name: str, kind: Any, text: str, *, replace: bool = False) -> schema.Attribute:
    return schema.Attribute(
        name, kind, required=True, requires_replace=replace or None, description=text
    )


def optional(
    name: str, kind: Any, default: Any, text: str, *, replace: bool = False
) -> schema.Attribute:
    return schema.Attribute(
        name, kind, optional=True, computed=True, default=default,
        requires_replace=replace or None, description=text,
    )  # fmt: skip


def computed(name: str, kind: Any, text: str) -> schema.Attribute:
    return schema.Attribute(name, kind, computed=True, description=text)


class MeshResource(iface.Resource):
    def __init__(self, provider: Any) -> None:
        self._provider = provider

    @property
    def plane(self) -> Any:
        return self._provider.plane

    def upgrade(self, ctx: Any, version: int, old: dict[str, Any]) -> dict[str, Any]:
        """There is one version of each schema so far."""
        return old


__all__ = [
    "Bool", "DEFAULT_REASON", "MeshResource", "Number", "REASON", "String", "computed", "optional",
    "required",
]  # fmt: skip
