"""The control plane as the provider calls it: blocking stubs, and errors as sentences."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cellpay.control.v1 import control_pb2, control_pb2_grpc, drills_pb2_grpc
from google.rpc import error_details_pb2, status_pb2
from tf.utils import Diagnostics

_TIMEOUT_S = 10.0
_OPERATION_WAIT_S = 120.0
_POLL_S = 0.2
_OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 1000)]
_ENDED = ("STEP_DONE", "STEP_FAILED", "STEP_ABORTED", "STEP_ROLLED_BACK")


class NotConfigured(Exception):
    """The provider block names no mesh that can be found."""


class Unreachable(Exception):
    """No controller answers."""


class Failed(Exception):
    """The control plane took it on, and it did not come to its end."""


@dataclass(frozen=True)
class Access:
    """Where the control plane is, and as whom to call it."""

    address: str
    ca: str
    certificate: str
    key: str


def access_of(config: dict[str, Any]) -> Access:
    """From a mesh's directory, or from an address and certificates. Raises NotConfigured."""
    given = {name: config.get(name) or "" for name in ("address", "ca", "certificate", "key")}
    data = config.get("data") or ""
    if data and not given["address"]:
        folder = Path(data)
        try:
            state = json.loads((folder / "mesh.json").read_bytes())
        except FileNotFoundError:
            raise NotConfigured(
                f"there is no mesh in {folder}; start one with: cellctl up --data {folder}"
            ) from None
        ports = state["ports"]
        given["address"] = f"127.0.0.1:{ports.get('control', ports['controller'])}"
        for name, file in (
            ("ca", "ca.pem"),
            ("certificate", "operator.pem"),
            ("key", "operator.key"),
        ):
            given[name] = given[name] or str(folder / "tls" / file)
    missing = [name for name, value in given.items() if not value]
    if missing:
        raise NotConfigured(f"give `data`, a mesh's directory, or also: {', '.join(missing)}")
    return Access(**given)


class Plane:
    def __init__(self, access: Access) -> None:
        self.access = access
        credentials = grpc.ssl_channel_credentials(
            *(Path(path).read_bytes() for path in (access.ca, access.key, access.certificate))
        )
        self.channel = grpc.secure_channel(access.address, credentials, options=_OPTIONS)
        self.control = control_pb2_grpc.ControlServiceStub(self.channel)
        self.drills = drills_pb2_grpc.DrillServiceStub(self.channel)

    def call(self, method: Callable[..., Any], request: Any, timeout_s: float = _TIMEOUT_S) -> Any:
        """Waits for a controller that is just starting, not for one that is not there."""
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                raise Unreachable(
                    f"no controller answers at {self.access.address} ({error.details()}); "
                    "is the mesh up? cellctl status"
                ) from error
            raise

    def cells(self) -> dict[str, Any]:
        listed = self.call(self.control.ListCells, control_pb2.ListCellsRequest())
        return {cell.cell: cell for cell in listed.cells}

    def slot_map(self) -> Any:
        return self.call(self.control.GetSlotMap, control_pb2.GetSlotMapRequest())

    def owners(self, first: int, last: int) -> list[tuple[int, int, str]]:
        """Who owns what of this range: pieces of one owner, in order."""
        return [
            (max(first, piece.first), min(last, piece.last), piece.cell)
            for piece in self.slot_map().ranges
            if piece.first <= last and piece.last >= first
        ]

    def operate(self, **fields: Any) -> None:
        """An operation to its end; waits while another one runs. Raises Failed."""
        until = time.monotonic() + _OPERATION_WAIT_S
        request = control_pb2.StartOperationRequest(**fields)
        while True:
            try:
                operation = self.call(self.control.StartOperation, request)
                break
            except grpc.RpcError as error:
                busy = reason_of(error) in {"OPERATION_IN_PROGRESS", "MAP_CHANGED"}
                if not busy or time.monotonic() > until:
                    raise
                time.sleep(_POLL_S)
        while True:
            step = control_pb2.Operation.Step.Name(operation.step)
            if step == "STEP_DONE":
                return
            note = operation.history[-1].note if operation.history else ""
            if step in _ENDED or time.monotonic() > until:
                raise Failed(f"{operation.operation_id} stands at {step}: {note}")
            time.sleep(_POLL_S)
            get = control_pb2.GetOperationRequest(operation_id=operation.operation_id)
            operation = self.call(self.control.GetOperation, get)

    def move(self, pieces: Sequence[tuple[int, int, str]], reason: str) -> None:
        """Each piece to its cell, where it is not there already."""
        for first, last, cell in pieces:
            for low, high, owner in self.owners(first, last):
                if owner != cell:
                    self.operate(
                        kind=control_pb2.Operation.KIND_MOVE,
                        first=low, last=high, target=cell, reason=reason,
                    )  # fmt: skip


def _details(error: grpc.RpcError) -> list[Any]:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return list(status_pb2.Status.FromString(value).details)
    return []


def reason_of(error: grpc.RpcError) -> str:
    """The server's UPPER_SNAKE_CASE reason; empty when it gave none."""
    info = error_details_pb2.ErrorInfo()
    for packed in _details(error):
        if packed.Unpack(info):
            return info.reason
    return ""


@contextmanager
def told(diagnostics: Diagnostics, what: str) -> Iterator[None]:
    """Failures within the block become Terraform's errors: what failed, why, which fields."""
    try:
        yield
    except grpc.RpcError as error:
        lines = [f"{reason_of(error) or error.code().name}: {error.details()}"]
        bad = error_details_pb2.BadRequest()
        for packed in _details(error):
            if packed.Unpack(bad):
                lines += [f"{item.field}: {item.description}" for item in bad.field_violations]
        diagnostics.add_error(what, "\n".join(lines))
    except (NotConfigured, Unreachable, Failed, OSError, ValueError) as error:
        diagnostics.add_error(what, str(error))
