"""etcd's users and roles: who has which certificate may do what, whatever the program does.

A user is the common name of a certificate; there are no passwords. Controllers write everything of
ours, a cell only what it tells of itself, an operator's certificate only reads: what operators
change goes through a controller, which knows roles, approvals and the audit log.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from control.mesh.errors import StartFailure
from control.mesh.state import MeshState
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


def ensure(state: MeshState) -> None:
    """Makes users and roles that are missing, and turns authentication on. Repeatable."""
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            with _auth(state) as auth:
                _ensure(state, auth)
            return
        except Exception as error:
            # A cluster that has just started may have no leader yet.
            if not _passes(error) or time.monotonic() > deadline:
                raise StartFailure("etcd", f"its users could not be made: {error}") from error
        time.sleep(_POLL_S)


def _passes(error: Exception) -> bool:
    import grpc

    return isinstance(error, grpc.RpcError) and error.code() in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )


@contextlib.contextmanager
def _auth(state: MeshState) -> Iterator[Any]:
    # The base components are started without gRPC: its import takes a while.
    import grpc
    from aetcd.rpc import rpc_pb2_grpc

    tls = state.path / "tls"
    credentials = grpc.ssl_channel_credentials(
        (tls / "ca.pem").read_bytes(),
        (tls / "root.key").read_bytes(),
        (tls / "root.pem").read_bytes(),
    )
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(state.address("etcd"), credentials, options=options) as channel:
        yield rpc_pb2_grpc.AuthStub(channel)


def _ensure(state: MeshState, auth: Any) -> None:
    from aetcd import rpc

    users = set(auth.UserList(rpc.AuthUserListRequest(), timeout=_CALL_S).users)
    roles = set(auth.RoleList(rpc.AuthRoleListRequest(), timeout=_CALL_S).roles)

    def role(name: str, *grants: tuple[str, bool, Any]) -> None:
        if name not in roles:
            auth.RoleAdd(rpc.AuthRoleAddRequest(name=name), timeout=_CALL_S)
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
    for number in range(1, 4):
        user(f"controller-{number}", "controller")
    role(_OPERATOR, (_ROOT_KEY, True, rpc.Permission.READ))
    user(_OPERATOR, _OPERATOR)
    for cell in state.cells:
        name = f"cell-{cell}"
        own = ((key, prefix, rpc.Permission.READWRITE) for key, prefix in cell_keys(cell))
        role(name, (_ROOT_KEY, True, rpc.Permission.READ), *own)
        user(name, name)
    auth.AuthEnable(rpc.AuthEnableRequest(), timeout=_CALL_S)
