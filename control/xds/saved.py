"""The last snapshots on disk, so that a server starts with them while etcd or its controllers are
away. Whole or absent: written beside and moved into place."""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import structlog
from google.protobuf.any_pb2 import Any as AnyMessage

from control.xds.server import XdsServer
from control.xds.snapshot import SENDING_ORDER, Snapshot, Typed
from control.xds.translate import NodeKind

log = structlog.get_logger(__name__)

_FORMAT = 1


def save_snapshots(path: Path, snapshots: Mapping[NodeKind, Snapshot]) -> None:
    document = {
        "format": _FORMAT,
        "kinds": {
            kind: {
                type_url: {
                    "version": typed.version,
                    "resources": {
                        name: base64.b64encode(item.SerializeToString(deterministic=True)).decode()
                        for name, item in typed.resources.items()
                    },
                }
                for type_url, typed in snapshot.types.items()
            }
            for kind, snapshot in snapshots.items()
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(document, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_snapshots(path: Path) -> dict[NodeKind, Snapshot] | None:
    """None when there is nothing there that can be served."""
    try:
        document = json.loads(path.read_bytes())
        if document["format"] != _FORMAT:
            return None
        return {
            NodeKind(kind): Snapshot(
                NodeKind(kind),
                MappingProxyType({url: _typed(found[url]) for url in SENDING_ORDER}),
            )
            for kind, found in document["kinds"].items()
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep_snapshots(path: str, xds: XdsServer) -> None:
    """After each change of what is served. No path: nothing is kept. A full disk stops no xDS."""
    if path:
        try:
            save_snapshots(Path(path), xds.snapshots)
        except OSError as error:
            log.warning("the snapshot is not kept", path=path, why=type(error).__name__)


def restore_snapshots(path: str, xds: XdsServer) -> None:
    """Before etcd has answered: what was served last."""
    saved = load_snapshots(Path(path)) if path else None
    if saved:
        xds.serve(saved)


def _typed(document: Mapping[str, object]) -> Typed:
    resources = document["resources"]
    assert isinstance(resources, dict)
    packed = {
        name: AnyMessage.FromString(base64.b64decode(text, validate=True))
        for name, text in resources.items()
    }
    return Typed(str(document["version"]), MappingProxyType(packed))
