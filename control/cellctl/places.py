"""Where a mesh is that a command works on: on this machine, as mesh.json says, or elsewhere, as an
operator has written it down in remote.json of the directory that `--data` names.

    {"control": "controller.cellpay.svc:7500",
     "tls": {"ca": "/run/tls/ca.crt", "certificate": "/run/tls/tls.crt", "key": "/run/tls/tls.key"}}

That is enough for whatever asks the control plane. What else a command needs, and is not there, it
says. `${NAME}` and `${file:/path}` are filled in as in all settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from control.cellctl.failures import NoMesh
from control.mesh.state import MeshState
from router.client import TlsFiles
from router.documents import BadSettings, read_document

REMOTE_FILE = "remote.json"
# The identity of who names no other; the one that calls cells as a client does.
OPERATOR, CLIENT = "operator", "client"


@dataclass(frozen=True, slots=True)
class Places:
    """Addresses are host:port. Empty: not known, and what needs it says so."""

    # Where a controller takes a call, whichever it is.
    control: str
    # Each by itself: its xDS subscribers are known to none but it.
    controllers: tuple[str, ...]
    # Of gRPC, and of HTTP with JSON.
    edge: str = ""
    http: str = ""
    # Of each member, with commas between.
    etcd: str = ""
    etcd_tls: bool = True
    database_url: str = ""
    nats_url: str = ""
    # Cell → where its first process answers Prometheus.
    probes: Mapping[str, str] = field(default_factory=dict)


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True)
class Remote:
    """remote.json."""

    control: str
    # What an operator shows: to controllers, to etcd, to NATS.
    tls: TlsFiles
    # What `--as NAME` shows; `client`: what is shown to cells, if not the same.
    identities: Mapping[str, TlsFiles] = field(default_factory=dict)
    # Each of several behind `control`.
    controllers: tuple[str, ...] = ()
    # As gRPC's bootstrap has them; empty: `control`.
    xds_servers: tuple[str, ...] = ()
    edge: str = ""
    http: str = ""
    etcd: str = ""
    database_url: str = ""
    nats_url: str = ""
    probes: Mapping[str, str] = field(default_factory=dict)

    def places(self) -> Places:
        return Places(
            self.control, self.controllers or (self.control,), self.edge, self.http, self.etcd,
            etcd_tls=True, database_url=self.database_url, nats_url=self.nats_url,
            probes=self.probes,
        )  # fmt: skip

    def tls_of(self, name: str) -> TlsFiles:
        """Raises NoMesh for a name that the file does not know."""
        if name in self.identities:
            return self.identities[name]
        if name in {OPERATOR, CLIENT}:
            return self.tls
        raise NoMesh(f"there is no identity {name}; {REMOTE_FILE} names {_listed(self.identities)}")


_ADAPTER = TypeAdapter(Remote)


def read_remote(data: Path) -> Remote | None:
    """None where there is no such file. Raises NoMesh for one that cannot be read."""
    path = data / REMOTE_FILE
    if not path.exists():
        return None
    try:
        return _ADAPTER.validate_json(read_document(path))
    except ValidationError as error:
        # Not the error itself: it quotes values, and one of them may be a password.
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'the file'}: {item['msg']}"
            for item in error.errors(include_input=False, include_url=False)
        )
        raise NoMesh(f"{path} does not describe a mesh: {wrong}") from None
    except (BadSettings, OSError) as error:
        raise NoMesh(f"{path} cannot be read: {error}") from None


def places_of(state: MeshState) -> Places:
    """Of a mesh on this machine."""
    return Places(
        state.control_address,
        tuple(state.address(name) for name in state.plane.controller_names()),
        state.address("envoy"),
        state.address("envoy.http"),
        state.etcd_addresses,
        state.plane.etcd_tls,
        state.database_url,
        state.nats_url,
        {cell: state.probes_of(f"cell-{cell}") for cell in state.cells},
    )


def _listed(names: Mapping[str, TlsFiles]) -> str:
    return ", ".join(sorted(names)) or "none"
