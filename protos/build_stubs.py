"""Builds the importable package `cellpay` from the .proto files.

Runs as `make protos` and as hatch's build hook, so that a clean clone installs. The proto package
is the Python package, so protoc's absolute imports are right as they stand.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

PROTO_ROOT = Path(__file__).resolve().parent
OUT = PROTO_ROOT / "gen"
DESCRIPTORS = "cellpay/descriptors.binpb"


def proto_files() -> list[Path]:
    return sorted((PROTO_ROOT / "cellpay").rglob("*.proto"))


def stale() -> bool:
    """True when a stub is missing or older than the youngest .proto file or this script."""
    sources = [*proto_files(), Path(__file__)]
    stamp = OUT / ".built"
    if not stamp.exists():
        return True
    built = stamp.stat().st_mtime
    return any(source.stat().st_mtime > built for source in sources)


def build(*, force: bool = False) -> None:
    if not force and not stale():
        return
    import google.api.annotations_pb2
    import grpc_tools
    from grpc_tools import protoc

    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    # googleapis-common-protos: google/api and google/rpc, beside their generated code.
    common = Path(google.api.annotations_pb2.__file__).parents[2]
    includes = [f"-I{PROTO_ROOT}", f"-I{well_known}", f"-I{common}"]
    (OUT / "cellpay").mkdir()
    code = protoc.main(
        [
            "protoc",
            *includes,
            f"--python_out={OUT}",
            f"--grpc_python_out={OUT}",
            f"--plugin=protoc-gen-mypy={_plugin('protoc-gen-mypy')}",
            f"--plugin=protoc-gen-mypy_grpc={_plugin('protoc-gen-mypy_grpc')}",
            f"--mypy_out={OUT}",
            f"--mypy_grpc_out={OUT}",
            *(str(path) for path in proto_files()),
        ]
    )
    if code == 0:
        # All messages with their comments, for the HTTP edge, OpenAPI and lint; errors too, which
        # no message names but the edge writes as JSON.
        code = protoc.main(
            [
                "protoc",
                *includes,
                f"--descriptor_set_out={OUT / DESCRIPTORS}",
                "--include_imports",
                "--include_source_info",
                "google/rpc/status.proto",
                "google/rpc/error_details.proto",
                *(str(path) for path in proto_files()),
            ]
        )
    if code != 0:
        raise SystemExit(f"protoc failed with code {code}")
    for folder in [OUT / "cellpay", *(p for p in (OUT / "cellpay").rglob("*") if p.is_dir())]:
        (folder / "__init__.py").touch()
    (OUT / "cellpay" / "py.typed").touch()
    (OUT / ".built").touch()


def _plugin(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise SystemExit(f"{name} is missing: pip install mypy-protobuf")
    return found


if __name__ == "__main__":
    build(force="--force" in sys.argv)
