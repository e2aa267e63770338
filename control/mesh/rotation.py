"""New certificates under a mesh that runs.

Servers read the files again at the next handshake, gRPC's xDS clients each second, Envoy when the
files move into place. The CA stays: whoever holds a certificate of it is still heard until that
certificate ends.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from control.mesh import ca
from control.mesh.state import MeshState
from router.identity import spiffe_id

_SUFFIX = ".pem"
_CA = "ca"


def issue_person(state: MeshState, name: str) -> None:
    """A certificate for a person, `spiffe://…/operator/<name>`."""
    ca.issue(state.path / "tls", name, spiffe_id("operator", name))


def rotate(state: MeshState) -> list[str]:
    """Makes every certificate but the CA's anew, with the same names; returns whose."""
    folder = state.path / "tls"
    made = []
    for certificate in sorted(folder.glob(f"*{_SUFFIX}")):
        name = certificate.name.removesuffix(_SUFFIX)
        if name != _CA:
            _replace(folder, name, ca.spiffe_id_of(certificate))
            made.append(name)
    return made


def _replace(folder: Path, name: str, identity: str) -> None:
    """Beside the old ones first: nobody may read half a file, and a new key with an old certificate
    for no longer than it takes to rename one file."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".rotating-") as temporary:
        beside = Path(temporary)
        for file in ("ca.pem", "ca.key"):
            shutil.copy2(folder / file, beside / file)
        files = ca.issue(beside, name, identity)
        os.replace(files.key, folder / f"{name}.key")
        os.replace(files.certificate, folder / f"{name}{_SUFFIX}")
