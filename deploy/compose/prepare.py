"""Before anything of the compose file starts: certificates, master keys, owners of the volumes.

    python prepare.py FOLDER USER_ID

Repeatable: what is there and valid stays. A development CA; production has the platform's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from control.mesh import ca
from router.identity import spiffe_id

CELLS = ("a", "b", "c")
# Service → kind and name of its SPIFFE ID. A service is reached by its own name.
IDENTITIES = {
    "controller": ("controller", "controller-1"),
    "etcd": ("etcd", "etcd"),
    "nats": ("service", "nats"),
    "redis": ("service", "redis"),
    "edge": ("edge", "edge"),
    "client": ("service", "client"),
    "operator": ("operator", "operator"),
    # etcd's administrator, by the common name.
    "root": ("service", "root"),
    **{f"cell-{cell}": ("cell", cell) for cell in CELLS},
}


def prepare(folder: Path) -> None:
    for service, (kind, name) in IDENTITIES.items():
        ca.issue(folder / "tls", service, spiffe_id(kind, name), hosts=(service,))
    keystore = folder / "keystore" / "master.json"
    if not keystore.exists():
        command = [sys.executable, "-m", "cells.vault.keystore", "create", str(keystore)]
        subprocess.run(command, check=True)
    for volume in ("etcd", "nats", "controller"):
        (folder / volume).mkdir(exist_ok=True)


def give(folder: Path, user_id: int) -> None:
    """Everything to the user that the services run as."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user_id, user_id)


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))
    give(Path(sys.argv[1]), int(sys.argv[2]))
