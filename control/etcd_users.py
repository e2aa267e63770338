"""etcd's users and roles: who has which certificate may do what, whatever the program does.

    python -m control.etcd_users SETTINGS.json

A user is the common name of a certificate; there are no passwords. Controllers write everything of
ours, a cell only what it tells of itself, an operator's certificate only reads: what operators
change goes through a controller, which knows roles, approvals and the audit log. Repeatable: what
is there stays, and a cell that is new is added.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from router.client.tls import TlsFiles
from router.documents import BadSettings, read_document
from router.policies.model import REPORTS_PREFIX
from router.store.model import (
    CELL_HEALTH_PREFIX,
    CHANNEL_BREAKERS_PREFIX,
    JOINED_CELLS_PREFIX,
    KEYS_PREFIX,
    LEAVING_CELLS_PREFIX,
    LIVE_CELLS_PREFIX,
    OWN_KEYS_PREFIX,
)

_ROOT_KEY = "/cellpay/"
_WAIT_S = 20.0
_CALL_S = 3.0
_POLL_S = 0.1
_OPERATOR = "operator"


class NoUsers(Exception):
    """They could not be made."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True)
class EtcdUsers:
    """Common names of certificates."""

    controllers: tuple[str, ...]
    # Common name → the cell that it is.
    cells: Mapping[str, str]
    operators: tuple[str, ...] = (_OPERATOR,)


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True)
class Settings:
    # host:port of a member.
    etcd: str
    # Of a certificate whose common name is `root`.
    tls: TlsFiles
    users: EtcdUsers
    # For a cluster that is not there yet.
    wait_s: float = field(default=_WAIT_S)


def cell_keys(cell: str) -> tuple[tuple[str, bool], ...]:
    """What a cell writes: keys, and whether each is a prefix. Its relay's reports are its own."""
    return (
        (f"{LIVE_CELLS_PREFIX}{cell}", False),
        (f"{LEAVING_CELLS_PREFIX}{cell}", False),
        (f"{JOINED_CELLS_PREFIX}{cell}/", True),
        (f"{CELL_HEALTH_PREFIX}{cell}/", True),
        (f"{REPORTS_PREFIX}{cell}-", True),
        (f"{CHANNEL_BREAKERS_PREFIX}{cell}/", True),
        # Any cell may be the home of any merchant.
        (KEYS_PREFIX, True),
        (OWN_KEYS_PREFIX, True),
    )


def ensure(address: str, tls: TlsFiles, users: EtcdUsers, wait_s: float = _WAIT_S) -> None:
    """Makes users and roles that are missing, and turns authentication on. `tls`: root's. Raises
    NoUsers."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            with _auth(address, tls) as auth:
                _ensure(auth, users)
            return
        except Exception as error:
            # A cluster that has just started may have no leader yet.
            if not _passes(error) or time.monotonic() > deadline:
                raise NoUsers(f"etcd's users could not be made: {error}") from error
        time.sleep(_POLL_S)


def _passes(error: Exception) -> bool:
    import grpc

    return isinstance(error, grpc.RpcError) and error.code() in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )


@contextlib.contextmanager
def _auth(address: str, tls: TlsFiles) -> Iterator[Any]:
    # A mesh's base components are started without gRPC: its import takes a while.
    import grpc
    from aetcd.rpc import rpc_pb2_grpc

    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(address, tls.channel_credentials(), options=options) as channel:
        yield rpc_pb2_grpc.AuthStub(channel)


def _ensure(auth: Any, wanted: EtcdUsers) -> None:
    from aetcd import rpc

    users = set(auth.UserList(rpc.AuthUserListRequest(), timeout=_CALL_S).users)
    roles = set(auth.RoleList(rpc.AuthRoleListRequest(), timeout=_CALL_S).roles)

    def role(name: str, *grants: tuple[str, bool, Any]) -> None:
        if name not in roles:
            auth.RoleAdd(rpc.AuthRoleAddRequest(name=name), timeout=_CALL_S)
            roles.add(name)
        for key, is_prefix, kind in grants:
            raw = key.encode()
            end = raw[:-1] + bytes([raw[-1] + 1]) if is_prefix else b""
            permission = rpc.Permission(permType=kind, key=raw, range_end=end)
            request = rpc.AuthRoleGrantPermissionRequest(name=name, perm=permission)
            auth.RoleGrantPermission(request, timeout=_CALL_S)

    def user(name: str, role_name: str) -> None:
        if name not in users:
            options = rpc.UserAddOptions(no_password=True)
            request = rpc.AuthUserAddRequest(name=name, options=options)
            auth.UserAdd(request, timeout=_CALL_S)
        grant = rpc.AuthUserGrantRoleRequest(user=name, role=role_name)
        auth.UserGrantRole(grant, timeout=_CALL_S)

    if "root" not in roles:
        role("root")
    user("root", "root")
    role("controller", (_ROOT_KEY, True, rpc.Permission.READWRITE))
    for name in wanted.controllers:
        user(name, "controller")
    role(_OPERATOR, (_ROOT_KEY, True, rpc.Permission.READ))
    for name in wanted.operators:
        user(name, _OPERATOR)
    for name, cell in wanted.cells.items():
        own = ((key, prefix, rpc.Permission.READWRITE) for key, prefix in cell_keys(cell))
        role(f"cell-{cell}", (_ROOT_KEY, True, rpc.Permission.READ), *own)
        user(name, f"cell-{cell}")
    auth.AuthEnable(rpc.AuthEnableRequest(), timeout=_CALL_S)


def read_settings(path: Path) -> Settings:
    """Raises BadSettings, ValidationError, OSError."""
    return TypeAdapter(Settings).validate_json(read_document(path))


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m control.etcd_users SETTINGS.json")
    try:
        settings = read_settings(Path(sys.argv[1]))
        ensure(settings.etcd, settings.tls, settings.users, settings.wait_s)
    except (BadSettings, ValidationError, NoUsers, OSError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
