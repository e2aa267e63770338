"""The last snapshots on disk, so that a server starts with them while etcd or its controllers are
away. Whole or absent: written beside and moved into place."""

from __future__ import annotations

import asyncio
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


class KeptSnapshots:
    """What a server serves, kept in one file; written only when its content is another."""

    def __init__(self, path: str, xds: XdsServer) -> None:
        """Serves what was served last, until somebody says what is true now. No path: nothing is
        kept."""
        self._path = Path(path) if path else None
        self._xds = xds
        self._versions: list[tuple[str, str, str]] = []
        self.changed = asyncio.Event()
        saved = load_snapshots(self._path) if self._path else None
        if saved:
            self._versions = _versions(saved)
            xds.serve(saved)

    async def run(self) -> None:
        """Keeps each change, aside: clients that wait for it do not wait for this disk."""
        while True:
            await self.changed.wait()
            self.changed.clear()
            await asyncio.to_thread(self.keep)

    def keep(self) -> None:
        """After a change of what is served. A full disk stops no xDS."""
        versions = _versions(self._xds.snapshots)
        if self._path is None or versions == self._versions:
            return
        try:
            save_snapshots(self._path, self._xds.snapshots)
            self._versions = versions
        except OSError as error:
            log.warning("the snapshot is not kept", path=str(self._path), why=type(error).__name__)


def _versions(snapshots: Mapping[NodeKind, Snapshot]) -> list[tuple[str, str, str]]:
    return sorted(
        (kind, url, typed.version)
        for kind, snapshot in snapshots.items()
        for url, typed in snapshot.types.items()
    )


def _typed(document: Mapping[str, object]) -> Typed:
    resources = document["resources"]
    assert isinstance(resources, dict)
    packed = {
        name: AnyMessage.FromString(base64.b64decode(text, validate=True))
        for name, text in resources.items()
    }
    return Typed(str(document["version"]), MappingProxyType(packed))
