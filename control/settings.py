"""The controller's settings: read once in serve.py, passed down in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from control.access.rules import Role
from router.documents import read_document
from router.edge.hardening import NO_RANGES, Ranges
from router.tracing.model import TracingSettings


@dataclass(frozen=True, slots=True)
class TlsSettings:
    ca: str
    certificate: str
    key: str


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    name: str
    listen: str
    database_url: str
    # host:port of each member, with commas between.
    etcd: str
    tls: TlsSettings
    # Cell → region: what the first controller declares.
    cells: Mapping[str, str]
    edge_listen: str
    # Shows these to etcd, whose user is the certificate's common name; without, etcd has no TLS.
    etcd_tls: TlsSettings | None = None
    # An address that all controllers of a machine share (SO_REUSEPORT), or behind which a load
    # balancer has them: clients know this one, and whoever lives takes it.
    shared_listen: str = ""
    # Where the last xDS snapshots are kept, to serve them before etcd has answered.
    snapshot: str = ""
    # SPIFFE ID (or `…/*` for a kind) → roles, stored at the first start; later `cellctl roles`.
    role_bindings: Mapping[str, Sequence[Role]] = field(default_factory=dict)
    # Whether what needs a second person waits for one: the first value.
    approvals: bool = True
    # How long an approval that was asked for may be given and used.
    approval_ttl_s: int = 3600
    # The policy's first value; later it is changed by `cellctl policy`.
    automatic_failover: bool = True
    # A leader that dies is replaced after this.
    leader_ttl_s: int = 3
    # A cell that this controller has never seen alive is given this long to come up.
    startup_grace_s: float = 30.0
    # A lease must be gone for this long: a cell that registers anew within it is no failover.
    dead_confirm_s: float = 0.25
    # A cell that was told to end, and whose slots were moved away for it, is given them back when
    # it has come again and lived for this long; 0: never.
    give_back_after_s: float = 10.0
    # host:port where kubelets ask (router/probes.py); empty: nowhere.
    probe_listen: str = ""
    # From where the gRPC edge may be called.
    edge_ranges: Ranges = NO_RANGES
    # The directory of the local mesh that this controller belongs to, where drills are carried out;
    # empty: none, and drills are refused.
    mesh: str = ""
    # Where Envoy is told to send its spans, and how many of the traces that it begins.
    tracing: TracingSettings = field(default_factory=TracingSettings)


def read_settings(path: Path) -> ControllerSettings:
    return TypeAdapter(ControllerSettings).validate_json(read_document(path))
